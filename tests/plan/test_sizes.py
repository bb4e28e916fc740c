"""What the plan predicts for published checkpoints, against published and independently computed figures."""

import pytest
from shapes import XGEN_7B, XVERSE_7B, XVERSE_13B_2, XVERSE_13B_CHAT, XWIN_13B, XWIN_70B

from quantkit.families.llama import LLAMA
from quantkit.plan.rows import make_plan
from quantkit.plan.runtime import MACHINES, kv_cache_bytes, machine_table, runtime_bytes
from quantkit.recipe import Recipe
from quantkit.units import GIB

SYSTEMS = {"XVERSE-13B-2": XVERSE_13B_2, "Xwin-13B": XWIN_13B, "Xwin-70B": XWIN_70B, "XGen-7B": XGEN_7B}
# GB of the 16-bit checkpoint.
SIXTEEN_BITS = {"XVERSE-13B-2": 27.44, "Xwin-13B": 26.03, "Xwin-70B": 137.95, "XGen-7B": 13.79}
# GB of the GPTQ artifact by (bits, group size): XVERSE-13B-2, Xwin-13B, Xwin-70B, XGen-7B.
SIZES = {
    (8, 128): (15.05, 13.65, 71.13, 7.47),
    (4, -1): (8.42, 7.01, 35.32, 4.09),
    (4, 128): (8.66, 7.26, 36.64, 4.21),
    (4, 64): (8.91, 7.50, 37.98, 4.33),
    (4, 32): (9.40, 8.00, 40.65, 4.59),
    (3, 128): (7.06, 5.66, 28.02, 3.39),
    (2, 128): (5.46, 4.06, 19.39, 2.58),
}
CASES = [
    (name, bits, group, size) for (bits, group), row in SIZES.items() for name, size in zip(SYSTEMS, row, strict=True)
]
# GB of files that other people published for the same shapes, by (shape, bits, group size).
PUBLISHED = [
    (XWIN_13B, 4, 128, 7.26),
    (XWIN_13B, 4, 64, 7.51),
    (XWIN_13B, 4, 32, 8.00),
    (XWIN_13B, 8, -1, 13.36),
    (XWIN_13B, 8, 128, 13.65),
    (XWIN_70B, 4, -1, 35.33),
    (XWIN_70B, 4, 128, 36.65),
    (XWIN_70B, 4, 32, 40.66),
    (XWIN_70B, 3, -1, 26.77),
    (XWIN_70B, 3, 128, 28.03),
]


def plan_of(shape, bits=4, group_size=128, **fields):
    return make_plan(LLAMA, Recipe(bits=bits, group_size=group_size, **fields), shape.infos())


def machine(name, shape, context, bits=4, group_size=128):
    table = machine_table(shape.config, plan_of(shape, bits, group_size).artifact_bytes, context)
    return next(row for row in table if row["machine"].startswith(name))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_shapes_are_those_of_the_published_checkpoint(name):
    shape = SYSTEMS[name]
    per_value = 4 if shape.dtype == "F32" else 2
    assert plan_of(shape).source_bytes / per_value * 2 == pytest.approx(SIXTEEN_BITS[name] * 1e9, rel=0.001)


@pytest.mark.parametrize(("name", "bits", "group_size", "size"), CASES)
def test_the_size_of_an_artifact_is_predicted_to_half_a_percent(name, bits, group_size, size):
    predicted = plan_of(SYSTEMS[name], bits, group_size).artifact_bytes
    assert predicted == pytest.approx(size * 1e9, rel=0.005)


@pytest.mark.parametrize(("shape", "bits", "group_size", "size"), PUBLISHED)
def test_the_size_is_that_of_files_published_for_the_same_shape(shape, bits, group_size, size):
    assert plan_of(shape, bits, group_size).artifact_bytes == pytest.approx(size * 1e9, rel=0.005)


def test_a_float32_source_is_kept_in_16_bits():
    plan = plan_of(XGEN_7B)
    assert plan.kept_dtype == "F16"
    assert plan.source_bytes == pytest.approx(27.58e9, rel=0.001)


@pytest.mark.parametrize(
    ("bits", "group_size", "expected"),
    [(4, 128, 4.16), (4, 32, 4.63), (4, -1, 4.0), (8, 128, 8.19), (3, 128, 3.15), (2, 128, 2.14)],
)
def test_bits_per_weight_count_scales_and_zero_points(bits, group_size, expected):
    assert plan_of(XWIN_13B, bits, group_size).bits_per_weight == pytest.approx(expected, abs=0.02)


# XVERSE's README: GB (binary ones) with 2048 tokens of context, for BF16 and for its own per-row INT8 and INT4,
# which expand whole matrices before they multiply.


def test_the_memory_of_a_16_bit_model_is_the_published_one():
    weights = plan_of(XVERSE_13B_CHAT).source_bytes
    assert runtime_bytes(XVERSE_13B_CHAT.config, weights, 2048) == pytest.approx(28.2 * GIB, rel=0.05)


@pytest.mark.parametrize(("bits", "published"), [(8, 16.8), (4, 10.9)])
def test_the_memory_of_per_row_quantization_is_the_published_one(bits, published):
    weights = plan_of(XVERSE_13B_CHAT, bits, -1, method="rtn", scales="minmax").artifact_bytes
    needed = runtime_bytes(XVERSE_13B_CHAT.config, weights, 2048, expands_matrices=True)
    assert needed == pytest.approx(published * GIB, rel=0.05)


def test_expanded_matrices_are_one_mlp_in_16_bits():
    config = XVERSE_13B_CHAT.config
    work = runtime_bytes(config, 0, 0, expands_matrices=True) - runtime_bytes(config, 0, 0)
    assert work == 3 * 5120 * 13824 * 2


@pytest.mark.parametrize(
    ("shape", "per_token"),
    [(XVERSE_13B_2, 800), (XWIN_13B, 800), (XWIN_70B, 320), (XGEN_7B, 512), (XVERSE_7B, 512)],
)
def test_keys_and_values_take_what_the_heads_say(shape, per_token):
    assert kv_cache_bytes(shape.config, 1) == per_token * 1024
    assert kv_cache_bytes(shape.config, 4096) == 4096 * per_token * 1024


def test_keys_and_values_without_stated_kv_heads_take_all_heads():
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    assert kv_cache_bytes(config, 1) == 2 * 2 * 64 * 2
    assert kv_cache_bytes({**config, "num_key_value_heads": None, "head_dim": None}, 1) == 2 * 2 * 64 * 2
    assert kv_cache_bytes({**config, "head_dim": 32}, 1) == 2 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("where", "shape", "context", "bits", "group_size", "fits"),
    [
        ("T4", XGEN_7B, 4096, 4, 128, True),
        ("T4", XGEN_7B, 8192, 4, 128, True),
        ("T4", XVERSE_13B_2, 4096, 4, 128, True),
        ("T4", XVERSE_13B_2, 8192, 4, 128, False),
        ("T4", XVERSE_13B_2, 4096, 8, 128, False),
        ("L4", XVERSE_13B_2, 8192, 4, 128, True),
        ("L4", XVERSE_13B_2, 4096, 8, 128, True),
        ("T4", XWIN_13B, 4096, 4, 128, True),
        ("L4", XWIN_70B, 4096, 4, 128, False),
        ("L4", XWIN_70B, 4096, 3, 128, False),
        ("L4", XWIN_70B, 4096, 2, 128, True),
        ("T4", XWIN_70B, 4096, 2, 128, False),
        ("A100 40", XWIN_70B, 4096, 4, -1, True),
        ("A100 40", XWIN_70B, 4096, 4, 128, True),
        ("A100 40", XWIN_70B, 4096, 4, 64, True),
        ("A100 40", XWIN_70B, 4096, 4, 32, False),
        ("A100 40", XWIN_70B, 4096, 3, 128, True),
        ("A100 80", XWIN_70B, 4096, 8, 128, True),
        ("CPU, 12.7", XGEN_7B, 4096, 4, 128, True),
        ("CPU, 12.7", XWIN_70B, 4096, 2, 128, False),
    ],
)
def test_machines_hold_what_they_are_known_to_hold(where, shape, context, bits, group_size, fits):
    assert machine(where, shape, context, bits, group_size)["fits"] is fits


@pytest.mark.parametrize(
    ("shape", "bits", "group_size", "context", "gib"),
    [
        (XVERSE_13B_2, 4, 128, 4096, 12.0),
        (XVERSE_13B_2, 4, 128, 8192, 15.1),
        (XVERSE_13B_2, 8, 128, 4096, 17.9),
        (XWIN_13B, 4, 128, 4096, 10.7),
        (XWIN_70B, 4, -1, 4096, 34.9),
        (XWIN_70B, 4, 128, 4096, 36.2),
        (XWIN_70B, 4, 64, 4096, 37.4),
        (XWIN_70B, 4, 32, 4096, 39.9),
        (XWIN_70B, 2, 128, 4096, 20.1),
        (XGEN_7B, 4, 128, 8192, 8.7),
    ],
)
def test_what_a_machine_needs_is_weights_cache_and_overhead(shape, bits, group_size, context, gib):
    assert machine("T4", shape, context, bits, group_size)["needed_bytes"] == pytest.approx(gib * GIB, rel=0.005)


def test_the_table_has_every_machine_and_its_verdict_follows_from_its_numbers():
    table = machine_table(XWIN_13B.config, plan_of(XWIN_13B).artifact_bytes, 4096)
    assert [row["machine"] for row in table] == [machine.name for machine in MACHINES]
    assert all(row["fits"] == (row["needed_bytes"] <= row["usable_bytes"]) for row in table)
