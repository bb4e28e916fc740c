"""What a family declares, against what transformers' own model computes."""

import pytest
import torch
import transformers
from tiny import VARIANTS, make_model, token_ids
from torch import nn

from quantkit.families import FAMILIES
from quantkit.families.lookup import family_of


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For models this small a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=VARIANTS, scope="module")
def model_and_family(request, tmp_path_factory):
    architecture, config = VARIANTS[request.param]
    folder = make_model(tmp_path_factory.mktemp(request.param), architecture, **config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, family_of({"architectures": [architecture]})


def observed_stages(model, layer):
    """Names of a layer's linears in order of computation, those that see the same tensor together."""
    seen = []  # (input, names); the inputs are kept, so that no address is used twice

    def hook_of(name):
        def hook(_module, inputs):
            value = inputs[0]
            for known, names in seen:
                if known.data_ptr() == value.data_ptr() and known.shape == value.shape:
                    assert torch.equal(known, value)
                    names.append(name)
                    return
            seen.append((value, [name]))

        return hook

    linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in linears]
    with torch.no_grad():
        model(token_ids(2, 24))
    for handle in handles:
        handle.remove()
    return tuple(tuple(names) for _, names in seen)


def test_declared_stages_are_those_that_a_forward_shows(model_and_family):
    model, family = model_and_family
    for layer in model.get_submodule(family.layers):
        assert observed_stages(model, layer) == family.stages


def test_every_linear_of_a_layer_is_declared_and_nothing_else(model_and_family):
    model, family = model_and_family
    for layer in model.get_submodule(family.layers):
        found = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        assert sorted(found) == sorted(family.linears)
        matrices = [name for name, parameter in layer.named_parameters() if parameter.dim() > 1]
        assert sorted(matrices) == sorted(name + ".weight" for name in family.linears)


def test_what_runtimes_fuse_is_one_stage(model_and_family):
    _, family = model_and_family
    shared = {tuple(name.rpartition(".")[2] for name in stage) for stage in family.stages if len(stage) > 1}
    assert shared == set(family.fused.values())


def test_embedding_head_layers_and_class_have_the_declared_names(model_and_family):
    model, family = model_and_family
    assert type(model).__name__ == family.model_class
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert len(model.get_submodule(family.layers)) == model.config.num_hidden_layers


def test_attention_and_mlp_give_what_their_last_linear_computes(model_and_family):
    model, family = model_and_family
    layer = model.get_submodule(family.layers)[0]
    results, handles = {}, []
    for name in [name for module, linear, norm in family.ends for name in (module, f"{module}.{linear}", norm)]:
        hook = lambda _module, _inputs, output, name=name: results.update({name: output})  # noqa: E731
        handles.append(layer.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        model(token_ids(1, 12))
    for handle in handles:
        handle.remove()
    for module, linear, _ in family.ends:
        output = results[module]
        first = output[0] if isinstance(output, tuple) else output
        assert torch.equal(first, results[f"{module}.{linear}"])
        assert f"{module}.{linear}" in family.linears
        inside = [name for name in family.linears if name.startswith(module + ".")]
        assert inside[-1] == f"{module}.{linear}"


def test_an_architecture_belongs_to_one_family():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        if not family.config_set:  # a family that is written as itself
            assert family.model_class in family.architectures
        assert hasattr(transformers, family.model_class)


def test_every_family_is_tried():
    tried = {family_of({"architectures": [architecture]}).name for architecture, _ in VARIANTS.values()}
    # What is written as another family's class has that family's layers; tests/pipeline/test_xverse.py runs it.
    assert tried == {family.name for family in FAMILIES if family.model_class in family.architectures}
