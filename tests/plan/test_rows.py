"""Rows, stages and shards: every tensor once, rules followed, contradictions refused."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import TINY, XWIN_13B, Shape

from quantkit.errors import BadInputError, UsageError
from quantkit.families.llama import LLAMA
from quantkit.families.phi3 import PHI3
from quantkit.families.qwen2 import QWEN2
from quantkit.plan.rows import kept_dtype, layer_count, layer_of, make_plan
from quantkit.recipe import Recipe
from quantkit.tensors import Grid, TensorInfo
from quantkit.units import parse_bytes

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def plan_of(infos=None, family=LLAMA, strict=False, **fields):
    return make_plan(family, Recipe(**fields), TINY.infos() if infos is None else infos, strict=strict)


def with_tensor(infos, name, shape=(4,), dtype="BF16"):
    return {**infos, name: TensorInfo(name, dtype, shape, "model.safetensors")}


def test_every_tensor_of_the_source_has_one_row():
    infos = TINY.infos()
    plan = plan_of(infos)
    assert sorted(row.name for row in plan.rows) == sorted(infos)
    assert all(row.source == infos[row.name] for row in plan.rows)


def test_every_output_lies_in_one_shard():
    plan = plan_of(max_shard_size="100kB")
    outputs = [info for row in plan.rows for info in row.outputs]
    assert len({info.name for info in outputs}) == len(outputs)
    placed = [info for infos in plan.shards.values() for info in infos]
    assert sorted(placed, key=lambda info: info.name) == sorted(outputs, key=lambda info: info.name)
    assert all(info.file == file for file, infos in plan.shards.items() for info in infos)


def test_linears_are_quantized_and_everything_else_is_kept():
    plan = plan_of()
    for row in plan.rows:
        is_linear = row.name.removesuffix(".weight").endswith(LLAMA.linears)
        assert row.action == ("quantize" if is_linear else "keep")
        assert row.grid == (Grid(4, 128) if is_linear else None)
        if is_linear:
            prefix = row.name.removesuffix(".weight")
            assert [info.name for info in row.outputs] == [f"{prefix}.{part}" for part in PARTS]
        else:
            assert [(info.name, info.dtype, info.shape) for info in row.outputs] == [
                (row.name, "BF16", row.source.shape)
            ]


def test_rows_follow_the_order_of_the_run():
    layers = [row.layer for row in plan_of().rows]
    assert layers == [None, *[0] * 9, *[1] * 9, None, None]


def test_layers_are_in_the_order_of_their_numbers():
    plan = plan_of(replace(TINY, layers=12).infos())
    assert [stages[0].layer for stages in plan.layers] == list(range(12))
    numbers = [row.layer for row in plan.rows if row.layer is not None]
    assert numbers == sorted(numbers)


def test_stages_are_those_of_the_family():
    plan = plan_of()
    assert len(plan.layers) == 2
    for layer, stages in enumerate(plan.layers):
        assert [stage.linears for stage in stages] == [
            tuple(f"model.layers.{layer}.{name}" for name in names) for names in LLAMA.stages
        ]
        assert [(stage.in_features, stage.out_features) for stage in stages] == [
            (128, (128, 64, 64)),
            (128, (128,)),
            (128, (256, 256)),
            (256, (128,)),
        ]


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([-1, 32, 64, 128]),
    st.integers(1, 3),
    st.sampled_from(["1kB", "40kB", "200kB", "5GB"]),
)
@settings(max_examples=40, deadline=None)
def test_bytes_of_rows_shards_and_artifact_agree(bits, group_size, layers, limit):
    plan = plan_of(replace(TINY, layers=layers).infos(), bits=bits, group_size=group_size, max_shard_size=limit)
    by_rows = sum(info.nbytes for row in plan.rows for info in row.outputs)
    assert by_rows == plan.artifact_bytes == sum(info.nbytes for infos in plan.shards.values() for info in infos)
    largest = max(sum(info.nbytes for info in row.outputs) for row in plan.rows)
    for infos in plan.shards.values():
        assert infos
        assert sum(info.nbytes for info in infos) <= max(parse_bytes(limit), largest)


# Shards.


def test_a_single_file_has_the_plain_name():
    assert list(plan_of().shards) == ["model.safetensors"]


def test_shards_are_numbered_and_as_full_as_the_limit_allows():
    plan = make_plan(LLAMA, Recipe(max_shard_size="5GB"), replace(XWIN_13B, layers=40).infos())
    assert list(plan.shards) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    sizes = [sum(info.nbytes for info in infos) for infos in plan.shards.values()]
    assert max(sizes) <= 5 * 10**9
    assert sizes[0] > 4.9 * 10**9


def test_the_tensors_of_a_linear_stay_together():
    plan = plan_of(max_shard_size="20kB")
    assert len(plan.shards) > 5
    for row in plan.rows:
        assert len({info.file for info in row.outputs}) == 1


def test_a_bias_stays_with_its_linear():
    for limit in range(10, 60):
        plan = plan_of(TINY.infos(bias=True), family=QWEN2, max_shard_size=f"{limit}kB")
        shard_of = {info.name: info.file for row in plan.rows for info in row.outputs}
        for name, file in shard_of.items():
            if name.endswith("_proj.bias"):
                assert shard_of[name.removesuffix("bias") + "qweight"] == file


def test_a_layer_follows_the_one_before_it_in_the_shards():
    plan = plan_of(replace(TINY, layers=8).infos(), max_shard_size="200kB")
    order = list(plan.shards)
    shards = [order.index(row.outputs[0].file) for row in plan.rows]
    assert shards == sorted(shards)


# What stays in 16 bits.


@pytest.mark.parametrize(
    ("dtype", "option", "kept"),
    [
        ("BF16", "auto", "BF16"),
        ("F16", "auto", "F16"),
        ("F32", "auto", "F16"),
        ("F64", "auto", "F16"),
        ("BF16", "float16", "F16"),
        ("F32", "bfloat16", "BF16"),
    ],
)
def test_what_is_kept_has_16_bits_in_the_dtype_of_the_source(dtype, option, kept):
    infos = replace(TINY, dtype=dtype).infos()
    assert kept_dtype(LLAMA, Recipe(dtype=option), infos) == kept
    plan = plan_of(infos, dtype=option)
    assert plan.kept_dtype == kept
    assert {info.dtype for row in plan.rows if row.action == "keep" for info in row.outputs} == {kept}


def test_the_bias_of_a_quantized_linear_is_float16():
    plan = plan_of(TINY.infos(bias=True), family=QWEN2, rules=("model.layers.1.self_attn=skip",))
    biases = {row.name: row.outputs[0].dtype for row in plan.rows if row.name.endswith(".bias")}
    assert biases["model.layers.0.self_attn.q_proj.bias"] == "F16"
    assert biases["model.layers.1.self_attn.q_proj.bias"] == "BF16"


def test_rotary_tables_of_old_checkpoints_are_dropped():
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    infos = with_tensor(TINY.infos(), name, (16,), "F32")
    plan = plan_of(infos)
    row = next(row for row in plan.rows if row.name == name)
    assert (row.action, row.outputs) == ("drop", ())
    assert plan.artifact_bytes == plan_of().artifact_bytes
    assert plan.source_bytes == plan_of().source_bytes


def test_a_dropped_tensor_at_the_end_opens_no_shard():
    infos = with_tensor(TINY.infos(), "model.rotary_emb.inv_freq", (16,), "F32")
    for limit in ("100B", "1kB", "140kB", "5GB"):
        assert all(plan_of(infos, max_shard_size=limit).shards.values())


def test_a_tied_head_needs_no_tensor():
    plan = plan_of(replace(TINY, tied=True).infos())
    assert "lm_head.weight" not in {row.name for row in plan.rows}


def test_a_tied_head_that_is_stored_is_dropped():
    plan = make_plan(LLAMA, Recipe(), TINY.infos(), tied=True)
    assert plan.row("lm_head.weight").action == "drop"
    assert not [info for infos in plan.shards.values() for info in infos if info.name.startswith("lm_head")]


def test_a_linear_that_cannot_be_packed_stays_in_16_bits_with_a_note():
    infos = Shape(2, 64, 4, 2, 172, 512).infos()
    plan = plan_of(infos, group_size=32)
    grids = plan.grids()
    assert grids["model.layers.0.mlp.down_proj"] is None
    assert grids["model.layers.0.self_attn.o_proj"] == Grid(4, 32)
    # gate and up have 172 outputs, which cannot be packed either
    assert grids["model.layers.1.mlp.gate_proj"] is grids["model.layers.1.mlp.up_proj"] is None
    assert plan.notes == (
        "mlp.gate_proj and its like stay in 16 bits: out_features 172 is not divisible by 32",
        "mlp.down_proj and its like stay in 16 bits: in_features 172 is not divisible by 32",
    )


def test_a_group_that_does_not_divide_the_columns_is_named_in_the_note():
    plan = plan_of(Shape(1, 64, 4, 2, 256, 512).infos(), group_size=128)
    assert plan.notes[0] == (
        "self_attn.q_proj and its like stay in 16 bits: in_features 64 is not divisible by the group size 128"
    )
    assert plan.grids()["model.layers.0.mlp.down_proj"] == Grid(4, 128)


def test_strict_refuses_what_cannot_be_packed():
    with pytest.raises(BadInputError) as caught:
        plan_of(Shape(2, 64, 4, 2, 172, 512).infos(), group_size=32, strict=True)
    assert str(caught.value) == "model.layers.0.mlp.gate_proj: out_features 172 is not divisible by 32"
    assert caught.value.hint == "leave out --strict to keep such linears in 16 bits"


def test_one_group_per_row_needs_no_divisor():
    plan = plan_of(Shape(1, 96, 3, 3, 160, 512).infos(), group_size=-1)
    assert set(plan.grids().values()) == {Grid(4, -1)}


def test_nothing_left_to_quantize_is_refused_with_the_reasons():
    with pytest.raises(UsageError) as caught:
        plan_of(Shape(1, 48, 4, 2, 80, 512).infos())
    assert str(caught.value) == "nothing is left to quantize: every linear stays in 16 bits"
    assert "in_features 48 is not divisible by 32" in caught.value.hint
    with pytest.raises(UsageError, match="nothing is left to quantize"):
        plan_of(skip=("lm_head", "model.layers"))


# Rules.


def test_a_rule_for_one_layer_holds_there_and_nowhere_else():
    grids = plan_of(rules=("model.layers.1.*=8bit",)).grids()
    assert {name: grid.bits for name, grid in grids.items()} == {
        name: 8 if name.startswith("model.layers.1.") else 4 for name in grids
    }


def test_skipped_linears_are_rows_that_are_kept():
    plan = plan_of(skip=("lm_head", "*.down_proj"), rules=("model.layers.0.self_attn.o_proj=skip",))
    actions = {row.name: row.action for row in plan.rows}
    assert actions["model.layers.0.mlp.down_proj.weight"] == actions["model.layers.1.mlp.down_proj.weight"] == "keep"
    assert actions["model.layers.0.self_attn.o_proj.weight"] == "keep"
    assert actions["model.layers.1.self_attn.o_proj.weight"] == "quantize"
    assert plan.grids()["model.layers.0.mlp.down_proj"] is None


@pytest.mark.parametrize(
    ("rule", "group", "note"),
    [
        ("*.q_proj=8bit", ("q", "k", "v"), "what is set for one of q_proj, k_proj, v_proj holds for all of them"),
        ("*.v_proj=skip", ("q", "k", "v"), "what is set for one of q_proj, k_proj, v_proj holds for all of them"),
        ("*.up_proj=g32", ("gate", "up"), "what is set for one of gate_proj, up_proj holds for all of them"),
    ],
)
def test_a_rule_for_a_part_of_a_fused_group_holds_for_the_whole_with_a_note(rule, group, note):
    plan = plan_of(rules=(rule,))
    expected = {"8bit": Grid(8, 128), "skip": None, "g32": Grid(4, 32)}[rule.partition("=")[2]]
    for name, grid in plan.grids().items():
        inside = name.rpartition(".")[2].removesuffix("_proj") in group
        assert grid == (expected if inside else Grid(4, 128)), name
    assert plan.notes == (f"{note}: runtimes fuse them",)


def test_a_skip_of_a_part_of_a_fused_group_holds_for_the_whole_with_a_note():
    plan = plan_of(skip=("lm_head", "*.k_proj"))
    assert plan.grids()["model.layers.0.self_attn.q_proj"] is None
    assert len(plan.notes) == 1


def test_a_rule_for_a_whole_fused_group_needs_no_note():
    assert plan_of(rules=("*.[qkv]_proj=8bit",)).notes == ()
    assert plan_of(rules=("model.layers.0=8bit",)).notes == ()


def test_contradicting_rules_inside_a_fused_group_are_refused():
    with pytest.raises(UsageError) as caught:
        plan_of(rules=("*.q_proj=8bit", "*.k_proj=skip"))
    assert str(caught.value) == (
        "rules give linears of one fused group different settings: model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj"
    )
    assert caught.value.hint == "runtimes merge q, k, v and gate, up into one matrix: give them one setting"


def test_linears_that_are_fused_in_the_checkpoint_are_one():
    infos = with_tensor({}, "model.embed_tokens.weight", (512, 128))
    for name, shape in {
        "self_attn.qkv_proj": (256, 128),
        "self_attn.o_proj": (128, 128),
        "mlp.gate_up_proj": (512, 128),
        "mlp.down_proj": (128, 256),
    }.items():
        infos = with_tensor(infos, f"model.layers.0.{name}.weight", shape)
    plan = plan_of(infos, family=PHI3, rules=("*.qkv_proj=8bit",))
    assert plan.grids()["model.layers.0.self_attn.qkv_proj"] == Grid(8, 128)
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"rules": ("model.layers.7.*=8bit",)}, "model.layers.7.*"),
        ({"rules": ("down_proj=8bit",)}, "down_proj"),
        ({"skip": ("lm_head", "*.experts.*")}, "*.experts.*"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(fields, pattern):
    with pytest.raises(UsageError) as caught:
        plan_of(**fields)
    assert str(caught.value) == f"the pattern {pattern!r} names no linear of this checkpoint"
    assert caught.value.hint == "names look like model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("pattern", ["model.norm", "model.embed_tokens", "*layernorm"])
def test_a_pattern_that_names_only_what_is_no_linear_is_refused(pattern):
    with pytest.raises(UsageError, match="names no linear"):
        plan_of(rules=(f"{pattern}=8bit",))


def test_the_head_is_not_quantized():
    with pytest.raises(UsageError) as caught:
        plan_of(skip=())
    assert str(caught.value) == ("lm_head cannot be quantized: transformers would load a random head without an error")
    assert caught.value.hint == "leave lm_head in --skip"


def test_a_rule_for_the_head_is_refused_and_not_ignored():
    with pytest.raises(UsageError, match="lm_head cannot be quantized"):
        plan_of(rules=("lm_head=8bit",))


def test_a_rule_for_everything_leaves_the_head_alone():
    plan = plan_of(rules=("*=8bit",))
    assert next(row for row in plan.rows if row.name == "lm_head.weight").action == "keep"
    assert set(plan.grids().values()) == {Grid(8, 128)}


# The table of the source.


def test_layers_are_counted_by_their_names():
    assert layer_count(LLAMA, TINY.infos()) == 2
    assert layer_of(LLAMA, "model.layers.17.mlp.up_proj.weight") == 17
    assert layer_of(LLAMA, "model.layers.x.weight") is None
    assert layer_of(LLAMA, "model.layersnorm.0.weight") is None
    assert layer_of(LLAMA, "model.norm.weight") is None


def test_a_checkpoint_of_another_shape_is_refused():
    with pytest.raises(BadInputError) as caught:
        plan_of(with_tensor({}, "transformer.h.0.attn.weight"))
    assert str(caught.value) == "no tensor is named model.layers.0.*: this is not a llama checkpoint"


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"])
def test_a_missing_linear_is_named(name):
    infos = TINY.infos()
    del infos[f"{name}.weight"]
    with pytest.raises(BadInputError) as caught:
        plan_of(infos)
    assert str(caught.value) == f"tensor {name}.weight is missing from the checkpoint"
