"""Recipes: strict fields, rules over names, a fingerprint that notices everything."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import BadInputError, QuantkitError
from quantkit.recipe import Calibration, Recipe, Rule, data_folder, load_recipe, make_recipe, matches
from quantkit.tensors import Grid

LINEAR = "model.layers.3.mlp.down_proj"
SHIPPED = sorted(path.stem for path in data_folder("recipes").glob("*.yaml"))


def test_defaults_are_those_of_the_manual():
    recipe = Recipe()
    assert recipe.grid == Grid(4, 128, True)
    assert (recipe.method, recipe.act_order, recipe.damp_percent, recipe.scales) == ("gptq", "static", 0.05, "search")
    assert (recipe.skip, recipe.rules, recipe.targets) == (("lm_head",), (), ("transformers",))
    assert (recipe.dtype, recipe.max_shard_size) == ("auto", "5GB")
    assert recipe.calibration == Calibration(text=("default",), samples=128, sequence_length=2048, seed=0)


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"bit": 4}, "unknown recipe key 'bit'", "did you mean bits?"),
        ({"groupsize": 4}, "unknown recipe key 'groupsize'", "did you mean group_size?"),
        ({"symetric": True}, "unknown recipe key 'symetric'", "did you mean symmetric?"),
        (
            {"calibration": {"sample": 8}},
            "unknown recipe key 'calibration.sample'",
            "did you mean samples?",
        ),
        (
            {"calibration": {"xyz": 8}},
            "unknown recipe key 'calibration.xyz'",
            "known: text, samples, sequence_length, seed",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(fields, message, hint):
    with pytest.raises(BadInputError) as caught:
        make_recipe(fields)
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_an_unknown_key_that_is_like_none_lists_all():
    with pytest.raises(BadInputError) as caught:
        make_recipe({"xyz": 1})
    assert caught.value.hint == "known: " + ", ".join(Recipe.model_fields)


@pytest.mark.parametrize(
    ("fields", "where", "found"),
    [
        ({"bits": 5}, "bits", "5"),
        ({"bits": "four"}, "bits", "'four'"),
        ({"group_size": 48}, "group_size", "48"),
        ({"method": "awq"}, "method", "'awq'"),
        ({"act_order": "always"}, "act_order", "'always'"),
        ({"damp_percent": 0}, "damp_percent", "0"),
        ({"damp_percent": 1.0}, "damp_percent", "1.0"),
        ({"damp_percent": float("nan")}, "damp_percent", "nan"),
        ({"scales": "best"}, "scales", "'best'"),
        ({"targets": ["ollama"]}, "targets.0", "'ollama'"),
        ({"dtype": "float32"}, "dtype", "'float32'"),
        ({"skip": "lm_head"}, "skip", "'lm_head'"),
        ({"calibration": {"samples": 0}}, "calibration.samples", "0"),
        ({"calibration": {"sequence_length": -1}}, "calibration.sequence_length", "-1"),
        ({"calibration": "default"}, "calibration", "'default'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_place(fields, where, found):
    with pytest.raises(BadInputError) as caught:
        make_recipe(fields)
    assert str(caught.value).startswith(f"recipe {where}: ")
    assert str(caught.value).endswith(f", found {found}")


def test_a_size_in_a_recipe_is_checked():
    assert make_recipe({"max_shard_size": "4.5 GiB"}).max_shard_size == "4.5 GiB"
    with pytest.raises(QuantkitError, match="not a size: 'huge'"):
        make_recipe({"max_shard_size": "huge"})


@pytest.mark.parametrize(
    ("text", "pattern", "grid"),
    [
        ("model.layers.0.*=8bit", "model.layers.0.*", Grid(8, 128)),
        ("*.down_proj=g32", "*.down_proj", Grid(4, 32)),
        ("*.down_proj=8bit,g32", "*.down_proj", Grid(8, 32)),
        ("*.down_proj=g-1,2bit", "*.down_proj", Grid(2, -1)),
        ("*.o_proj=skip", "*.o_proj", None),
    ],
)
def test_rules_are_a_pattern_and_a_setting(text, pattern, grid):
    rule = Rule.parse(text, Grid(4, 128))
    assert (rule.pattern, rule.grid) == (pattern, grid)


def test_a_rule_keeps_the_symmetry_of_the_recipe():
    assert Rule.parse("*=8bit", Grid(4, 64, False)).grid == Grid(8, 64, False)


@pytest.mark.parametrize("text", ["", "8bit", "*.down_proj", "=8bit", "*.down_proj="])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(QuantkitError) as caught:
        make_recipe({"rules": [text]})
    assert str(caught.value) == f"not a rule: {text!r}"
    assert "PATTERN=SETTING" in caught.value.hint


@pytest.mark.parametrize("setting", ["5bit", "4", "bit", "g48", "g", "8bit,", "8bit,skip", "8 bit", "keep"])
def test_what_is_no_setting_is_refused(setting):
    with pytest.raises(QuantkitError) as caught:
        make_recipe({"rules": [f"*.down_proj={setting}"]})
    assert str(caught.value).startswith("not a setting: ")
    assert str(caught.value).endswith(f" in the rule '*.down_proj={setting}'")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (LINEAR, True),
        ("model.layers.3", True),  # a parent
        ("model.layers.3.*", True),
        ("*.down_proj", True),
        ("model.layers.[0-3].*", True),
        ("model.layers.?.mlp", True),
        ("*", True),
        ("model.layers.33", False),
        ("model.layers.1", False),
        ("down_proj", False),
        ("*.DOWN_PROJ", False),
        ("model.layers.3.mlp.down", False),
    ],
)
def test_patterns_are_globs_over_full_names_and_their_parents(pattern, expected):
    assert matches(LINEAR, pattern) is expected


def test_a_pattern_of_one_layer_does_not_name_the_layers_that_begin_like_it():
    assert matches("model.layers.1.mlp.down_proj", "model.layers.1")
    assert not matches("model.layers.12.mlp.down_proj", "model.layers.1")


def test_the_last_rule_that_matches_wins():
    recipe = Recipe(rules=("*.mlp.*=8bit", "*.down_proj=2bit,g32", "model.layers.0.*=skip"))
    assert recipe.grid_for("model.layers.3.self_attn.o_proj") == Grid(4, 128)
    assert recipe.grid_for("model.layers.3.mlp.up_proj") == Grid(8, 128)
    assert recipe.grid_for(LINEAR) == Grid(2, 32)
    assert recipe.grid_for("model.layers.0.mlp.down_proj") is None
    reverse = Recipe(rules=tuple(reversed(recipe.rules)))
    assert reverse.grid_for("model.layers.0.mlp.down_proj") == Grid(8, 128)


def test_a_rule_takes_the_rest_from_the_recipe_and_not_from_an_earlier_rule():
    recipe = Recipe(group_size=64, rules=("*.down_proj=g32", "*.down_proj=8bit"))
    assert recipe.grid_for(LINEAR) == Grid(8, 64)


def test_what_is_skipped_stays_so_whatever_rules_say():
    recipe = Recipe(skip=("lm_head", "model.layers.3"), rules=("*=8bit",))
    assert recipe.grid_for(LINEAR) is None
    assert recipe.grid_for("model.layers.4.mlp.down_proj") == Grid(8, 128)
    assert recipe.grid_for("lm_head") is None
    assert recipe.patterns() == ("lm_head", "model.layers.3", "*")


OTHER = {
    "method": "rtn",
    "bits": 8,
    "group_size": 64,
    "symmetric": False,
    "act_order": "none",
    "damp_percent": 0.1,
    "scales": "minmax",
    "rules": ["*.down_proj=8bit"],
    "skip": ["lm_head", "model.layers.0"],
    "targets": ["vllm"],
    "dtype": "float16",
    "max_shard_size": "4GB",
    "calibration": {"samples": 8},
    "gates": {"max_kl": 0.1},
}
OTHER_CALIBRATION = {"text": ["english"], "samples": 8, "sequence_length": 64, "seed": 1}


def test_the_fingerprint_notices_every_field():
    assert set(OTHER) == set(Recipe.model_fields)
    assert set(OTHER_CALIBRATION) == set(Calibration.model_fields)
    changed = [{key: value} for key, value in OTHER.items()]
    changed += [{"calibration": {key: value}} for key, value in OTHER_CALIBRATION.items() if key != "samples"]
    prints = [make_recipe(fields).fingerprint() for fields in [{}, *changed]]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_does_not_depend_on_order_or_spelling():
    fields = {"bits": 8, "group_size": 64}
    assert make_recipe(fields).fingerprint() == make_recipe(dict(reversed(fields.items()))).fingerprint()
    assert make_recipe({"bits": 4}).fingerprint() == Recipe().fingerprint()


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from quantkit.recipe import Recipe; print(Recipe(rules=('*.down_proj=8bit',), bits=3).fingerprint())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == Recipe(rules=("*.down_proj=8bit",), bits=3).fingerprint()


@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from([-1, 32, 64, 128]), st.booleans())
def test_a_recipe_gives_its_grid_to_every_linear(bits, group_size, symmetric):
    recipe = Recipe(bits=bits, group_size=group_size, symmetric=symmetric)
    assert recipe.grid == recipe.grid_for(LINEAR) == Grid(bits, group_size, symmetric)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().bits = 8


def test_the_per_row_recipe_is_the_scheme_of_the_seed_systems():
    recipe = make_recipe(load_recipe("rtn-int4-per-row"))
    assert (recipe.method, recipe.grid, recipe.scales) == ("rtn", Grid(4, -1, True), "minmax")


def test_a_recipe_for_gguf_files_is_no_recipe_for_gptq():
    with pytest.raises(BadInputError, match=r"this recipe makes GGUF files \(method: gguf\)") as caught:
        make_recipe(load_recipe("gguf-q4_k_m"))
    assert caught.value.hint == "take it with quantkit gguf --recipe"


def test_a_recipe_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("bits: 8\nrules:\n- '*.down_proj=skip'\ncalibration:\n  samples: 4\n")
    recipe = make_recipe(load_recipe(str(path)))
    assert recipe == Recipe(bits=8, rules=("*.down_proj=skip",), calibration=Calibration(samples=4))


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(BadInputError) as caught:
        load_recipe("gptq-int5")
    assert str(caught.value) == "no recipe 'gptq-int5'"
    assert caught.value.hint.startswith("did you mean gptq-int")
    assert all(name in caught.value.hint for name in SHIPPED)


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("- bits")
    with pytest.raises(BadInputError, match=r"mine\.yaml: found list, expected keys such as bits: 4"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_key_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("4: bits\n")
    with pytest.raises(BadInputError):
        make_recipe(load_recipe(str(tmp_path / "mine.yaml")))
