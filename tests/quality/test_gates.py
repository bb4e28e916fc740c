"""Limits, and what is said when one is missed."""

import itertools

import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.quality.gates import DEFAULTS, Limits, apply_gates, limits_for, limits_from, overridden, parse_limits
from quantkit.recipe import make_recipe


def entry(**changes):
    base = {"perplexity_ratio": 1.01, "kl_mean": 0.02, "top1_agreement": 0.95}
    linear = {"name": "l.q_proj", "worst_row": 3, "worst_row_error": 0.05, "slope": 0.99, "bias": 0.4}
    found = {
        "metrics": {"all": base | {key: value for key, value in changes.items() if key in base}},
        "memory": {"predicted_bytes": changes.get("memory", 10_000_000_000)},
        "linears": [linear | {key: value for key, value in changes.items() if key in linear}],
        "intact": changes.get("intact"),
    }
    return found


def failed(limits, **changes):
    return [gate.sentence for gate in apply_gates(limits, entry(**changes)) if not gate.passed]


def test_a_healthy_artifact_passes_its_defaults():
    gates = apply_gates(limits_for(4), entry(intact={"changed": []}))
    assert len(gates) == 7
    assert all(gate.passed for gate in gates)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"perplexity_ratio": 1.071}, "perplexity +7.10%, allowed +3.00%"),
        ({"kl_mean": 0.2}, "mean KL divergence 0.2000, allowed 0.1000"),
        ({"top1_agreement": 0.7}, "top-1 agreement 0.700, allowed 0.880 or more"),
        ({"worst_row_error": 1.9}, "error of row 3 of l.q_proj 1.900, allowed 0.500"),
        ({"slope": 0.952}, "scale of l.q_proj off by 0.048, allowed 0.030"),
        ({"slope": 1.05}, "scale of l.q_proj off by 0.050, allowed 0.030"),
        ({"bias": 0.95}, "lasting offset in l.q_proj 0.950, allowed 0.800"),
        (
            {"intact": {"changed": ["model.safetensors"]}},
            "files changed since they were written: model.safetensors, allowed none",
        ),
    ],
)
def test_each_gate_says_by_how_much(changes, sentence):
    assert failed(limits_for(4), **changes) == [sentence]


def test_memory_is_asked_only_when_the_user_does():
    assert not failed(limits_for(4), memory=10**12)
    assert failed(overridden(limits_for(4), Limits(memory=9 * 10**9))) == ["memory 10.00 GB, allowed 9.00 GB"]


def test_a_value_that_is_no_number_passes_no_gate():
    assert len(failed(limits_for(4), kl_mean=float("nan"), perplexity_ratio=float("nan"))) == 2


@pytest.mark.parametrize(
    ("bits", "row"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 8), (8, 8), (None, 16), (16, 16), (1, 2)]
)
def test_defaults_go_by_bits(bits, row):
    assert limits_for(bits) == DEFAULTS[row]


def test_fewer_bits_never_have_the_stricter_limit():
    rows = [DEFAULTS[bits] for bits in sorted(DEFAULTS)]
    for fewer, more in itertools.pairwise(rows):
        assert fewer.ppl_increase >= more.ppl_increase
        assert fewer.kl >= more.kl
        assert fewer.top1 <= more.top1
        assert fewer.row_error >= more.row_error


def test_own_limits_replace_only_what_they_name():
    found = overridden(limits_for(4), Limits(kl=0.01))
    assert found.kl == 0.01
    assert found.ppl_increase == limits_for(4).ppl_increase


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.02", 0.02), (" 2.5 % ", 0.025), ("0", 0.0)])
def test_percentages(text, value):
    assert parse_limits(text, None, None, None).ppl_increase == pytest.approx(value)


@pytest.mark.parametrize("text", ["two", "-1%", "", "2%%", "nan"])
def test_no_percentage_is_refused(text):
    with pytest.raises(UsageError, match="is not a percentage"):
        parse_limits(text, None, None, None)


def test_a_share_above_one_is_refused():
    with pytest.raises(UsageError, match=r"--min-top1 95.0 is not a share"):
        parse_limits(None, None, 95.0, None)


def test_gates_of_a_recipe_stand_between_defaults_and_options():
    gates = make_recipe({"gates": {"max_kl": 0.05, "max_ppl_increase": "2%"}}).gates.model_dump()
    found = overridden(limits_for(4), limits_from(gates), Limits(kl=0.04))
    assert (found.kl, found.ppl_increase, found.top1) == (0.04, 0.02, limits_for(4).top1)
    assert overridden(limits_for(4), limits_from(None)) == limits_for(4)


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        ({"max_ppl_increase": "much"}, "recipe gates.max_ppl_increase"),
        ({"min_top1": 95}, "recipe gates.min_top1"),
        ({"max_kl": -1}, "recipe gates.max_kl"),
        ({"max_kll": 1}, "unknown recipe key 'gates.max_kll'"),
    ],
)
def test_wrong_gates_of_a_recipe_are_refused(gates, sentence):
    with pytest.raises(BadInputError, match=sentence):
        make_recipe({"gates": gates})


def test_sizes_are_read():
    assert parse_limits(None, 0.1, None, "10.9GB") == Limits(kl=0.1, memory=10_900_000_000)
