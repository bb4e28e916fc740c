"""One decoder layer: its Hessians, its quantized linears and what it hands on, against transformers' own layers."""

import pytest
import torch
import transformers
from reference import damped, hessian_reference, loss_reference
from tiny import VARIANTS, make_model, token_ids

from quantkit.errors import BadInputError
from quantkit.families.lookup import family_of
from quantkit.methods import gptq, rtn
from quantkit.methods.hessian import HessianSum
from quantkit.pipeline import layerwise
from quantkit.pipeline.layerwise import (
    advance,
    collect_hessian,
    quantize_with_data,
    quantize_without_data,
    read_layer,
)
from quantkit.pipeline.memo import Memo
from quantkit.plan.rows import Stage
from quantkit.skeleton import Skeleton
from quantkit.tensors import Grid
from quantkit.weights.source import open_folder

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = token_ids(5, 32)
GRID = Grid(4, 32)
BOTH = ("self_attn", "mlp")
SETTINGS = gptq.Settings("static", 0.05)


class Layer:
    """The first layer of a tiny checkpoint, filled, with what runs into it."""

    def __init__(self, folder, grid=GRID, skipped=()):
        self.checkpoint = open_folder(folder)
        self.source = self.checkpoint.source
        self.skeleton = Skeleton(family_of(self.checkpoint.config), self.checkpoint.config)
        family = self.skeleton.family
        outer = self.skeleton.outer_names()
        self.skeleton.fill({name: self.source.read(name) for name in outer})
        self.hidden, calls = self.skeleton.embed(IDS)
        self.call = calls[0]
        self.tensors = read_layer(self.source, self.skeleton.layer_names(0))
        self.skeleton.fill(self.tensors)
        self.stages = tuple(
            Stage(
                layer=0,
                linears=tuple(f"{family.layers}.0.{linear}" for linear in names),
                grid=None if names[0] in skipped else grid,
                in_features=self.weight(names[0]).shape[1],
                out_features=tuple(self.weight(linear).shape[0] for linear in names),
            )
            for names in family.stages
        )

    def weight(self, linear):
        return self.source.read(f"{self.skeleton.family.layers}.0.{linear}.weight")

    @property
    def ends(self):
        """Every module that a memo can answer for."""
        return tuple(end.module for end in self.skeleton.family.ends)

    def quantize(self, remembered=()):
        kept = Memo(self.skeleton.family, remembered)
        found = list(
            quantize_with_data(self.skeleton, self.stages, self.tensors, self.hidden, self.call, SETTINGS, kept)
        )
        advance(self.skeleton, 0, self.hidden, self.call, kept)
        return found


def transformers_model(checkpoint):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def input_of(model, linear):
    """What a linear of transformers' model sees."""
    seen = []
    handle = model.get_submodule(linear).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(IDS)
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module")
def make_layer(tmp_path_factory):
    """A fresh layer of a checkpoint that is written once."""
    folders = {}

    def make(name="llama", **options):
        if name not in folders:
            architecture, config = VARIANTS[name]
            folders[name] = make_model(tmp_path_factory.mktemp(name), architecture, **config)
        return Layer(folders[name], **options)

    return make


@pytest.fixture(params=VARIANTS)
def layer(request, make_layer):
    return make_layer(request.param)


def test_a_layer_is_read_as_it_is_stored(tmp_path):
    checkpoint = open_folder(make_model(tmp_path, dtype=torch.bfloat16))
    names = [name for name in checkpoint.source.infos if ".layers.0." in name]
    found = read_layer(checkpoint.source, names)
    assert list(found) == names
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, checkpoint.source.read(name))


class OneTensor:
    def __init__(self, tensor):
        self.tensor = tensor

    def read(self, _name):
        return self.tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_counted_and_named(dtype):
    tensor = torch.ones(20, 30, dtype=dtype)
    tensor[3, 4], tensor[5, 6], tensor[7, 8] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(BadInputError, match=r"tensor a\.weight has 3 values that are NaN or infinite"):
        read_layer(OneTensor(tensor), ["a.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_values_are_not_taken_for_infinite(dtype):
    tensor = torch.full((20, 30), torch.finfo(dtype).max, dtype=dtype)
    assert torch.equal(read_layer(OneTensor(tensor), ["a"])["a"], tensor)


def test_hessians_are_those_of_the_inputs_that_transformers_shows(layer):
    model = transformers_model(layer.checkpoint)
    kept = Memo(layer.skeleton.family, layer.ends)
    for stage in layer.stages:
        found = collect_hessian(layer.skeleton, stage, layer.hidden, layer.call, kept)
        expected = hessian_reference(input_of(model, stage.linears[0]))
        assert (found.double() - expected).norm() < 1e-5 * expected.norm()


def test_each_stage_sees_the_stages_before_it_quantized(layer):
    model = transformers_model(layer.checkpoint)
    found = {linear.name: linear for linear in layer.quantize()}
    assert list(found) == [name for stage in layer.stages for name in stage.linears]
    for stage in layer.stages:
        gathered = HessianSum(stage.in_features)
        gathered.add(input_of(model, stage.linears[0]))
        weight = torch.cat([model.get_submodule(name).weight.detach() for name in stage.linears])
        hessian = gathered.finish()
        expected = gptq.quantize(weight, hessian.clone(), GRID, SETTINGS)
        first = 0
        for name, size in zip(stage.linears, stage.out_features, strict=True):
            rows = slice(first, first + size)
            linear = found[name]
            assert torch.equal(linear.weight.codes, expected.weight.codes[rows])
            assert torch.equal(linear.weight.scale, expected.weight.scale[:, rows])
            assert torch.equal(linear.weight.group_index, expected.weight.group_index)
            error = weight[rows] - linear.weight.dequantize()
            loss, energy = (
                loss_reference(error, damped(hessian, 0.05)).sum(),
                loss_reference(weight[rows], hessian).sum(),
            )
            assert linear.record["loss"] == pytest.approx(loss.item(), rel=1e-3)
            assert linear.record["relative_error"] == pytest.approx((loss / energy).item(), rel=0.02)
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(linear.weight.dequantize())
            first += size


def test_the_layer_then_holds_and_hands_on_what_a_runtime_computes(layer):
    found = layer.quantize()
    model = transformers_model(layer.checkpoint)
    for linear in found:
        restored = linear.weight.dequantize()
        assert torch.equal(layer.skeleton.model.get_submodule(linear.name).weight, restored)
        with torch.no_grad():
            model.get_submodule(linear.name).weight.copy_(restored)
    with torch.no_grad():
        expected = model.model(IDS, output_hidden_states=True).hidden_states[1]
    assert torch.equal(layer.hidden, expected)


def test_weights_are_given_up_as_they_are_used(make_layer):
    layer = make_layer()
    names = set(layer.tensors)
    taken = {f"{name}.weight" for stage in layer.stages for name in stage.linears}
    layer.quantize()
    assert set(layer.tensors) == names - taken


@pytest.mark.parametrize(("name", "tokens"), [("llama", 1), ("llama", 100_000), *((name, 64) for name in VARIANTS)])
def test_what_is_remembered_changes_no_bit(make_layer, monkeypatch, name, tokens):
    monkeypatch.setattr(layerwise, "BATCH_TOKENS", tokens)
    plain = make_layer(name)
    expected = plain.quantize()
    for remembered in (plain.ends[:1], plain.ends[1:], plain.ends):
        layer = make_layer(name)
        for one, two in zip(expected, layer.quantize(remembered), strict=True):
            assert one.name == two.name
            assert torch.equal(one.weight.codes, two.weight.codes)
            assert one.record["loss"] == two.record["loss"]
        assert torch.equal(plain.hidden, layer.hidden)


@pytest.mark.parametrize(
    ("remembered", "passes"), [((), (4, 2)), (("self_attn",), (1, 2)), (("mlp",), (4, 1)), (BOTH, (1, 1))]
)
def test_what_is_remembered_is_not_computed_again(make_layer, remembered, passes):
    """Query: on the way to o_proj, gate_proj, down_proj and the next layer; gate: to the last two."""
    layer = make_layer()
    calls = []
    for name in ("self_attn.q_proj", "mlp.gate_proj"):
        module = layer.skeleton.layers[0].get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    layer.quantize(remembered)
    assert (calls.count("self_attn.q_proj"), calls.count("mlp.gate_proj")) == passes
    for name in BOTH:
        assert "forward" not in vars(layer.skeleton.layers[0].get_submodule(name))


def test_with_everything_remembered_each_linear_is_computed_once(layer):
    """Once for calibration; those that end a module then answer from what was kept, not by a forward."""
    family, calls = layer.skeleton.family, []

    def hook_of(name):
        def hook(module, _inputs, _output):
            if "forward" not in vars(module):  # else the memo answers
                calls.append(name)

        return hook

    for name in family.linears:
        layer.skeleton.layers[0].get_submodule(name).register_forward_hook(hook_of(name))
    layer.quantize(layer.ends)
    ends = {end.linear for end in family.ends}
    assert sorted(calls) == sorted(set(family.linears) - ends)


def test_a_memo_serves_one_layer_after_another(make_layer):
    plain, remembering = make_layer(), make_layer()
    family = plain.skeleton.family
    for one, kept in ((plain, Memo(family, ())), (remembering, Memo(family, BOTH))):
        for index in range(2):
            names = one.skeleton.layer_names(index)
            tensors = read_layer(one.source, names)
            one.skeleton.fill(tensors)
            stages = tuple(
                Stage(
                    index,
                    tuple(name.replace(".0.", f".{index}.") for name in stage.linears),
                    GRID,
                    stage.in_features,
                    stage.out_features,
                )
                for stage in one.stages
            )
            list(quantize_with_data(one.skeleton, stages, tensors, one.hidden, one.call, SETTINGS, kept))
            advance(one.skeleton, index, one.hidden, one.call, kept)
    assert torch.equal(plain.hidden, remembering.hidden)


@pytest.mark.parametrize("remembered", [(), BOTH], ids=str)
@pytest.mark.parametrize("skipped", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_a_stage_without_a_grid_keeps_its_weights(make_layer, skipped, remembered):
    layer = make_layer(skipped=(skipped,))
    found = {linear.name for linear in layer.quantize(remembered)}
    assert found == {name for stage in layer.stages if stage.grid for name in stage.linears}
    for stage in layer.stages:
        for name in stage.linears:
            same = torch.equal(layer.skeleton.model.get_submodule(name).weight, layer.source.read(name + ".weight"))
            assert same == (stage.grid is None)


def test_records_say_what_was_done(make_layer):
    layer = make_layer(grid=Grid(3, -1, False))
    for linear in layer.quantize():
        record = linear.record
        assert record["name"] == linear.name
        assert (record["bits"], record["group_size"], record["method"]) == (3, -1, "gptq")
        assert (record["damp_percent"], record["damping_raised"]) == (0.05, 0)
        assert 0 < record["relative_error"] < 1
        assert record["seconds"] >= 0


def test_inputs_of_zeros_mean_rounding_to_nearest_and_the_record_says_so(make_layer):
    layer = make_layer()
    layer.hidden.zero_()
    for linear in layer.quantize():
        assert linear.record["method"] == "rtn"
        expected = rtn.quantize(layer.source.read(linear.name + ".weight"), GRID)
        assert torch.equal(linear.weight.codes, expected.codes)
        assert 0 < linear.record["relative_error"] < 0.1


def test_one_broken_sample_means_rounding_to_nearest_and_never_nan(make_layer):
    layer = make_layer()
    layer.hidden[2, 3] = torch.nan
    for linear in layer.quantize():
        assert linear.record["method"] == "rtn"
        assert torch.isfinite(linear.weight.dequantize()).all()


@pytest.mark.parametrize("scales", ["search", "minmax"])
@pytest.mark.parametrize("name", ["llama-biases", "phi3"])
def test_without_data_every_linear_is_rounded_to_nearest(make_layer, name, scales):
    layer = make_layer(name)
    names = set(layer.tensors)
    found = list(quantize_without_data(layer.stages, layer.tensors, scales, torch.device("cpu")))
    assert [linear.name for linear in found] == [name for stage in layer.stages for name in stage.linears]
    for linear in found:
        weight = layer.source.read(linear.name + ".weight")
        expected = rtn.quantize(weight, GRID, scales)
        assert torch.equal(linear.weight.codes, expected.codes)
        error = (weight - expected.dequantize()).double().square().sum() / weight.double().square().sum()
        assert linear.record["method"] == "rtn"
        assert linear.record["relative_error"] == pytest.approx(error.item(), rel=1e-4)
    assert set(layer.tensors) == names - {f"{linear.name}.weight" for linear in found}


def test_without_data_a_stage_without_a_grid_is_left_out(make_layer):
    layer = make_layer(skipped=("mlp.gate_proj",))
    found = [
        linear.name for linear in quantize_without_data(layer.stages, layer.tensors, "search", torch.device("cpu"))
    ]
    assert len(found) == 5
    assert not any("gate_proj" in name or "up_proj" in name for name in found)
    assert "model.layers.0.mlp.gate_proj.weight" in layer.tensors
