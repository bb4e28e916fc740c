"""Every cell of the table of readers, and the sentences that refuse."""

import pytest

from quantkit.errors import UsageError
from quantkit.formats.runtimes import (
    RUNTIMES,
    Layout,
    check_targets,
    packing_refusals,
    refusals,
    runtime_table,
    shape_warnings,
)
from quantkit.tensors import Grid


def of(*grids, **flags):
    return Layout(frozenset(grids), **flags)


# The columns of the table in section D5 of the specification, in its order.
COLUMNS = {
    "2": of(Grid(2)),
    "3": of(Grid(3)),
    "4 sym": of(Grid(4)),
    "4 asym": of(Grid(4, symmetric=False)),
    "8 sym": of(Grid(8)),
    "desc_act": of(Grid(4), desc_act=True),
    "lm_head": of(Grid(4), lm_head=True),
}
TABLE = {
    "transformers": "Y Y Y Y Y Y N",
    "gptqmodel": "Y Y Y Y Y Y Y",
    "vllm": "N N Y N Y N Y",
    "sglang": "N N Y N Y Y Y",
    "exllamav2": "N N Y Y N Y N",
    "llama.cpp": "Y N Y Y Y Y N",
}
CELLS = [
    (name, column, answer == "Y")
    for name, row in TABLE.items()
    for column, answer in zip(COLUMNS, row.split(), strict=True)
]


@pytest.mark.parametrize(("name", "column", "loads"), CELLS)
def test_every_cell(name, column, loads):
    reasons = refusals(RUNTIMES[name], COLUMNS[column])
    assert (reasons == []) == loads
    row = {row.runtime.name: row for row in runtime_table(COLUMNS[column])}[name]
    assert row.loads == loads
    assert row.reason == "; ".join(reasons)


def test_the_table_has_every_runtime():
    assert list(TABLE) == list(RUNTIMES)
    assert [row.runtime.name for row in runtime_table(COLUMNS["4 sym"])] == list(TABLE)
    assert {name for name, runtime in RUNTIMES.items() if runtime.tried} == {"transformers", "gptqmodel"}


@pytest.mark.parametrize(
    ("name", "skips"),
    [
        ("transformers", "modules_in_block_to_quantize"),
        ("gptqmodel", "dynamic"),
        ("vllm", "modules_in_block_to_quantize or dynamic"),
        ("sglang", "dynamic"),
        ("exllamav2", "tensor presence"),
        ("llama.cpp", "tensor presence"),
    ],
)
def test_skipped_linears_refuse_nothing(name, skips):
    assert RUNTIMES[name].skips == skips
    assert refusals(RUNTIMES[name], of(Grid(4), skipped=True)) == []


@pytest.mark.parametrize("size", [-1, 16, 32, 64, 128, 256, 1024])
@pytest.mark.parametrize("name", TABLE)
def test_group_sizes(name, size):
    marlin = name in ("vllm", "sglang")
    assert (refusals(RUNTIMES[name], of(Grid(4, size))) == []) == (not marlin or size in (-1, 32, 64, 128))


def test_mixed_grids():
    mixed = of(Grid(4), Grid(8, 32))
    assert mixed.mixed
    assert {row.runtime.name for row in runtime_table(mixed) if row.loads} == {"gptqmodel", "vllm", "sglang"}


def test_split_fused_groups():
    split = of(Grid(4), skipped=True, splits_fused_groups=True)
    assert {row.runtime.name for row in runtime_table(split) if not row.loads} == {"vllm", "sglang"}


def test_vllm_loads_desc_act_with_one_group():
    assert refusals(RUNTIMES["vllm"], of(Grid(4, -1), desc_act=True)) == []


@pytest.mark.parametrize(
    ("name", "layout", "sentence"),
    [
        ("vllm", of(Grid(3)), "vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits"),
        (
            "vllm",
            of(Grid(4, symmetric=False)),
            "vLLM 0.33 loads symmetric 4 and 8 bits only; this is asymmetric 4 bits",
        ),
        ("sglang", of(Grid(4, 16)), "SGLang 0.5.23 loads group sizes -1, 32, 64 and 128 only; this is 16"),
        ("vllm", COLUMNS["desc_act"], "vLLM 0.33 does not load permuted groups (desc_act: true)"),
        ("transformers", COLUMNS["lm_head"], "transformers 5.23 does not load a quantized lm_head"),
        (
            "transformers",
            of(Grid(4), Grid(8)),
            "transformers 5.23 reads one grid for all linears; this mixes several",
        ),
        ("exllamav2", of(Grid(8)), "ExLlamaV2 loads 4 bits only; this is 8 bits"),
        ("llama.cpp", of(Grid(3)), "llama.cpp's converter loads 2, 4 and 8 bits only; this is 3 bits"),
    ],
)
def test_sentences(name, layout, sentence):
    assert refusals(RUNTIMES[name], layout) == [sentence]


def test_targets_that_load_pass():
    check_targets(TABLE, COLUMNS["4 sym"])
    check_targets([], COLUMNS["3"])


def test_targets_that_do_not():
    with pytest.raises(UsageError) as caught:
        check_targets(["transformers", "vllm", "exllamav2"], COLUMNS["3"])
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits; ExLlamaV2 loads 4 bits only; this is 3 bits"
    )
    assert caught.value.hint == (
        "use symmetric 4 or 8 bits; use 4 bits; or keep it for transformers, gptqmodel, which can load it"
    )


def test_an_unknown_target():
    with pytest.raises(UsageError, match="unknown target 'tgi'") as caught:
        check_targets(["vllm", "tgi"], COLUMNS["4 sym"])
    assert caught.value.hint == ("known targets: transformers, gptqmodel, vllm, sglang, exllamav2, llama.cpp")


def test_shapes():
    assert packing_refusals(4096, 11008, 128) == []
    assert packing_refusals(4096, 11008, -1) == []
    assert packing_refusals(48, 40, 32) == [
        "in_features 48 is not divisible by 32",
        "out_features 40 is not divisible by 32",
        "in_features 48 is not divisible by the group size 32",
    ]
    assert shape_warnings(4096, 11008) == []
    assert shape_warnings(4128, 32) == [
        "vLLM's kernels want out_features divisible by 64, or pad; this is 32",
        "vLLM's kernels want in_features divisible by 128, or pad; this is 4128",
    ]
