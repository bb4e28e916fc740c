"""What a family declares, against what transformers' own model computes."""

import pytest
import torch
import transformers
from tiny import VARIANTS, make_model, token_ids
from torch import nn

from quantkit.families import FAMILIES
from quantkit.families.lookup import family_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=VARIANTS, scope="module")
def model_and_family(request, tmp_path_factory):
    architecture, config = VARIANTS[request.param]
    folder = make_model(tmp_path_factory.mktemp(request.param), architecture, **config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, family_of({"architectures": [architecture]})


def observed_stages(model, layer):
    """Names of a layer's linears in order of computation, neighbours that see the same tensor together."""
    seen = []  # (input, names); the inputs are kept, so that no address is used twice

    def hook_of(name):
        def hook(_module, inputs):
            value = inputs[0]
            known, names = seen[-1] if seen else (torch.empty(0), [])
            if known.data_ptr() == value.data_ptr() and known.shape == value.shape:
                assert torch.equal(known, value)
                names.append(name)
            else:
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
        matrices = {name for name, parameter in layer.named_parameters() if parameter.dim() > 1 and "norm" not in name}
        assert matrices == {name + ".weight" for name in family.linears}


def test_what_runtimes_fuse_is_one_stage(model_and_family):
    _, family = model_and_family
    leaves = {tuple(name.rpartition(".")[2] for name in stage) for stage in family.stages}
    assert leaves.issuperset(family.fused.values())


def test_embedding_head_layers_and_class_have_the_declared_names(model_and_family):
    model, family = model_and_family
    assert type(model).__name__ == family.model_class
    assert model.get_submodule(family.embedding) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert len(model.get_submodule(family.layers)) == model.config.num_hidden_layers


@torch.no_grad()
def watched(model, layer, names):
    """(inputs, output) of modules of a layer in one forward; a pair's first where a module returns one."""
    seen, handles = {}, []
    for name in names:

        def hook(_module, args, kwargs, output, name=name):
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            seen[name] = values, output[0] if isinstance(output, tuple) else output

        handles.append(layer.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    model(token_ids(1, 12))
    for handle in handles:
        handle.remove()
    return seen


def test_attention_and_mlp_give_what_their_last_linear_computes(model_and_family):
    model, family = model_and_family
    layer = model.get_submodule(family.layers)[0]
    results = watched(model, layer, [name for end in family.ends for name in (end.module, end.linear)])
    for end in family.ends:
        assert torch.equal(results[end.module][1], results[end.linear][1])
        inside = [name for name in family.linears if name == end.module or name.startswith(end.module + ".")]
        assert inside[-1] == end.linear
        assert (end.linear,) in family.stages
    assert {family.stages[-1][0]} < {end.linear for end in family.ends}  # the memo spares the last pass too


def test_what_a_module_alone_reads_is_read_by_nothing_else(model_and_family):
    """Garbage from there changes nothing while the module itself gives the right answer."""
    model, family = model_and_family
    layer = model.get_submodule(family.layers)[0]
    with torch.no_grad():
        expected = model(token_ids(1, 12)).logits
    for end in family.ends:
        _, answer = watched(model, layer, [end.module])[end.module]

        def right(_module, _args, output, answer=answer):
            return (answer, *output[1:]) if isinstance(output, tuple) else answer

        handles = [layer.get_submodule(end.module).register_forward_hook(right)]
        for name in end.only_for:
            assert not f"{name}.".startswith(f"{end.module}.")
            garbage = lambda _module, _args, output: torch.randn_like(output)  # noqa: E731
            handles.append(layer.get_submodule(name).register_forward_hook(garbage))
        with torch.no_grad():
            found = model(token_ids(1, 12)).logits
        for handle in handles:
            handle.remove()
        assert torch.equal(found, expected)


def test_the_attention_is_fused_where_transformers_can(model_and_family):
    model, family = model_and_family
    assert family.attention == ("sdpa" if model._supports_sdpa else "eager")


def test_an_architecture_belongs_to_one_family():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        if not family.config_set:  # a family that is written as itself
            assert family.model_class in family.architectures
        assert getattr(transformers, family.model_class).config_class.model_type == family.model_type


def test_the_norms_are_where_the_family_says(model_and_family):
    model, family = model_and_family
    config, sizes = model.config, {name: tuple(value.shape) for name, value in model.named_parameters()}
    hidden = model.get_input_embeddings().weight.shape[1]
    final = sizes.get(f"{family.final_norm}.weight")
    assert final == (None if family.final_norm is None else (hidden,))
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    lengths = {"head": head, "queries": head * config.num_attention_heads, "keys": head * keys}
    norms = {name: shape for name, shape in sizes.items() if name.startswith(f"{family.layers}.0.") and "norm" in name}
    for name, shape in norms.items():
        module, _, _ = name.removeprefix(f"{family.layers}.0.").rpartition(".")
        if len(shape) == 1:  # Cohere's norms of heads have a row for each
            assert shape == (lengths.get(family.head_norms.get(module), hidden),), name


def test_every_family_is_tried():
    tried = {family_of({"architectures": [architecture]}).name for architecture, _ in VARIANTS.values()}
    # What is written as another family's class has that family's layers; tests/pipeline/test_xverse.py runs it.
    assert tried == {family.name for family in FAMILIES if family.model_class in family.architectures}
