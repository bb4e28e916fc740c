"""quantization_config, read back with the rules of each loader."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.formats.gptq_config import quantization_config
from quantkit.tensors import Grid

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
INSIDE = [f"self_attn.{leaf}_proj" for leaf in "qkvo"] + [f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")]
DEFAULT = Grid(4, 128)
# The example of the specification, section D4, literally.
PLAIN = json.loads("""
{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
 "true_sequential": true, "damp_percent": 0.05, "lm_head": false, "checkpoint_format": "gptq",
 "format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["quantkit:0.1.0"]}}
""")
LAYERS = r"(.*\.)?layers\."


def llama(layers=14, **treatments):
    """All linears of a Llama; treatments by the name inside the layer, as a grid, None, or {layer: grid}."""
    linears = {}
    for layer in range(layers):
        for inside in INSIDE:
            chosen = treatments.get(inside.rpartition(".")[2], DEFAULT)
            grid = chosen.get(layer, DEFAULT) if isinstance(chosen, dict) else chosen
            linears[f"model.layers.{layer}.{inside}"] = grid
    return linears


def config_of(linears, **options):
    return quantization_config(DEFAULT, linears, FUSED, damp_percent=0.05, version="0.1.0", **options)


def optimum_treats(name, config):
    """optimum: bits and group of the file for every linear that ends with an entry."""
    lists = config.get("modules_in_block_to_quantize")
    return lists is None or any(name.endswith(entry) for entries in lists for entry in entries)


def dynamic_treats(name, config):
    """gptqmodel, SGLang: the first matching pattern; None if skipped, else (bits, group_size)."""
    for pattern, override in config.get("dynamic", {}).items():
        if pattern.startswith("-:"):
            if re.match(pattern[2:], name):
                return None
        elif re.match(pattern.removeprefix("+:"), name):
            return override["bits"], override["group_size"]
    return config["bits"], config["group_size"]


def vllm_treats(name, config):
    """vLLM: `dynamic` on its own name, then entries that occur in the names of all members."""
    found = dynamic_treats(name, config)
    lists = config.get("modules_in_block_to_quantize")
    if found is None or lists is None:
        return found
    parent, _, leaf = name.rpartition(".")
    members = {f"{parent}.{member}" for member in FUSED.get(leaf, (leaf,))}
    listed = {any(entry in member for entries in lists for entry in entries) for member in members}
    assert len(listed) == 1, f"the members of {name} are treated differently"
    return found if listed.pop() else None


def meant(grid):
    return None if grid is None else (grid.bits, grid.group_size)


def check_all_loaders(linears, config):
    for name, grid in linears.items():
        assert dynamic_treats(name, config) == meant(grid), name
        assert optimum_treats(name, config) == (grid is not None), name
        parent, _, leaf = name.rpartition(".")
        group = next((group for group, members in FUSED.items() if leaf in members), None)
        if group is None:
            assert vllm_treats(name, config) == meant(grid), name
        elif len({linears.get(f"{parent}.{member}", "absent") for member in FUSED[group]}) == 1:
            assert vllm_treats(f"{parent}.{group}", config) == meant(grid), name


def test_nothing_skipped():
    config = config_of(llama())
    assert config == PLAIN
    assert list(config) == list(PLAIN)


def test_options():
    grid = Grid(3, -1, symmetric=False)
    config = quantization_config(grid, {}, {}, desc_act=True, lm_head=True, version="1.2")
    expected = {
        **PLAIN,
        "bits": 3,
        "group_size": -1,
        "desc_act": True,
        "sym": False,
        "lm_head": True,
        "checkpoint_format": "gptq_v2",
        "format": "gptq_v2",
        "meta": {"quantizer": ["quantkit:1.2"]},
    }
    del expected["damp_percent"]
    assert config == expected


def test_one_kind_skipped_everywhere():
    linears = llama(down_proj=None)
    config = config_of(linears)
    assert config == {
        **PLAIN,
        "modules_in_block_to_quantize": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
        ],
        "dynamic": {rf"-:{LAYERS}[0-9]+\.mlp\.down_proj$": {}},
    }
    check_all_loaders(linears, config)


def test_a_fused_group_is_skipped_in_both_spellings():
    linears = llama(q_proj=None, k_proj=None, v_proj=None)
    config = config_of(linears)
    assert config["dynamic"] == {rf"-:{LAYERS}[0-9]+\.self_attn\.(q_proj|k_proj|v_proj|qkv_proj)$": {}}
    check_all_loaders(linears, config)


def test_some_layers_skipped_take_full_names():
    linears = llama(down_proj={3: None})
    config = config_of(linears)
    entries = [entry for entries in config["modules_in_block_to_quantize"] for entry in entries]
    assert entries == [name for name, grid in linears.items() if grid is not None]
    assert config["modules_in_block_to_quantize"][3] == ["model.layers.0.mlp.down_proj"]
    assert config["dynamic"] == {rf"-:{LAYERS}3\.mlp\.down_proj$": {}}
    check_all_loaders(linears, config)


def test_layer_3_is_not_layer_13():
    (pattern,) = config_of(llama(down_proj={3: None}))["dynamic"]
    for prefix in ("", "model.", "language_model.model."):
        assert re.match(pattern[2:], f"{prefix}layers.3.mlp.down_proj")
        assert not re.match(pattern[2:], f"{prefix}layers.13.mlp.down_proj")
        assert not re.match(pattern[2:], f"{prefix}layers.30.mlp.down_proj")
    for other in ("model.layers.3xmlp.down_proj", "model.layers.3.mlp.down_proj.lora"):
        assert not re.match(pattern[2:], other)


@pytest.mark.parametrize(("leaf", "fused"), [("v_proj", "qkv_proj"), ("up_proj", "gate_up_proj")])
def test_a_rule_for_one_member_does_not_reach_the_fused_name(leaf, fused):
    linears = llama(**{leaf: None})
    config = config_of(linears)
    (pattern,) = config["dynamic"]
    assert fused not in pattern
    parent = "self_attn" if leaf == "v_proj" else "mlp"
    assert re.match(pattern[2:], f"model.layers.0.{parent}.{leaf}")
    assert not re.match(pattern[2:], f"model.layers.0.{parent}.{fused}")
    check_all_loaders(linears, config)


def test_rules_per_linear():
    eight, fine = Grid(8, 128), Grid(4, 32)
    linears = llama(
        q_proj=eight, k_proj=eight, v_proj=eight, gate_proj={3: fine, 13: fine}, up_proj={3: fine, 13: fine}
    )
    config = config_of(linears)
    qkv = rf"+:{LAYERS}[0-9]+\.self_attn\.(q_proj|k_proj|v_proj|qkv_proj)$"
    gate_up = rf"+:{LAYERS}(3|13)\.mlp\.(gate_proj|up_proj|gate_up_proj)$"
    assert config == {
        **PLAIN,
        "dynamic": {qkv: {"bits": 8, "group_size": 128}, gate_up: {"bits": 4, "group_size": 32}},
    }
    check_all_loaders(linears, config)


def test_rules_and_skips_together():
    linears = llama(o_proj={0: Grid(8, 32), 1: None}, down_proj=Grid(8, 32))
    config = config_of(linears)
    assert config["dynamic"] == {
        rf"+:{LAYERS}0\.self_attn\.o_proj$": {"bits": 8, "group_size": 32},
        rf"-:{LAYERS}1\.self_attn\.o_proj$": {},
        rf"+:{LAYERS}[0-9]+\.mlp\.down_proj$": {"bits": 8, "group_size": 32},
    }
    check_all_loaders(linears, config)


def test_experts():
    linears = {
        f"model.layers.{layer}.mlp.experts.{expert}.{leaf}": DEFAULT
        for layer in range(4)
        for expert in range(16)
        for leaf in ("gate_proj", "up_proj", "down_proj")
    }
    linears |= {f"model.layers.{layer}.mlp.gate": None for layer in range(4)}
    linears |= dict.fromkeys([name for name in linears if ".2." in name and "down" in name], None)
    linears["model.layers.1.mlp.experts.5.down_proj"] = Grid(8, 128)
    config = config_of(linears)
    assert len(config["dynamic"]) < 10
    check_all_loaders(linears, config)


def test_a_short_entry_that_would_also_name_a_skipped_linear():
    linears = {f"model.layers.{i}.mlp.up_proj": DEFAULT for i in range(2)}
    linears |= {f"model.layers.{i}.shared_mlp.up_proj": None for i in range(2)}
    config = config_of(linears)
    assert config["modules_in_block_to_quantize"] == [[f"model.layers.{i}.mlp.up_proj"] for i in range(2)]
    check_all_loaders(linears, config)


def test_lm_head_is_listed_for_vllm():
    config = config_of(llama(down_proj=None), lm_head=True)
    assert config["modules_in_block_to_quantize"][-1] == ["lm_head"]
    assert "modules_in_block_to_quantize" not in config_of(llama(), lm_head=True)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_every_loader_reads_any_mixture(data):
    treatment = st.sampled_from([DEFAULT, DEFAULT, None, Grid(8, 64), Grid(4, -1)])
    chosen = {leaf: data.draw(treatment) for leaf in INSIDE}
    special = data.draw(st.dictionaries(st.tuples(st.integers(0, 13), st.sampled_from(INSIDE)), treatment))
    linears = {
        f"model.layers.{i}.{inside}": special.get((i, inside), chosen[inside]) for i in range(14) for inside in INSIDE
    }
    check_all_loaders(linears, config_of(linears))


@pytest.mark.parametrize(
    ("linears", "damp", "message"),
    [
        ({"model.layers.0.mlp.up_proj": Grid(4, symmetric=False)}, 0.1, "mixes symmetric and asymmetric"),
        ({}, 0.0, "damp_percent is 0.0"),
        ({}, 1.0, "damp_percent is 1.0"),
        ({"model.head": None}, 0.1, "model.head does not name a linear of a numbered decoder layer"),
        ({"layers.0.gate": DEFAULT, "layers.0.gate_proj": None}, 0.1, "gate_proj is skipped, but its name"),
    ],
)
def test_what_is_refused(linears, damp, message):
    with pytest.raises(UsageError, match=message):
        quantization_config(DEFAULT, linears, FUSED, damp_percent=damp, version="0")
