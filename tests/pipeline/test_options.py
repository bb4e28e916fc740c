"""Grids, order, rules and skips: what is asked for is in the tensors and in both keys of the configuration."""

import shutil

import pytest
import tiny
import torch
from artifacts import (
    SMALL,
    Recorder,
    dequantized,
    digests,
    divergence,
    job_of,
    linears_of,
    log_of,
    logits,
    quantize,
    read_json,
    stored,
)

from quantkit.calibration import build_tokens
from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline.memo import Memo
from quantkit.recipe import Calibration
from quantkit.tensors import Grid
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import open_folder

LINEARS = 14  # of two layers
EVERY = ["gptqmodel"]  # loads what mixes bits


@pytest.fixture(scope="module")
def source(sources):
    return sources("llama", torch.bfloat16)


def config_of(folder):
    written = read_json(folder / "config.json")["quantization_config"]
    assert read_json(folder / "quantize_config.json") == written
    return written


def bits_of(folder):
    """Bits of every linear by the shapes of its tensors; 16 for those that are not quantized."""
    tensors = stored(folder)
    found = {}
    for name, tensor in tensors.items():
        prefix, _, part = name.rpartition(".")
        if part == "g_idx":
            found[prefix] = tensors[f"{prefix}.qweight"].shape[0] * 32 // len(tensor)
        elif part == "weight" and name.endswith("_proj.weight"):
            found[prefix] = 16
    return found


# Grids.


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_every_grid_is_in_shapes_and_configuration(source, tmp_path, bits, group_size):
    quantize(source, tmp_path / "out", method="rtn", bits=bits, group_size=group_size)
    tensors = stored(tmp_path / "out")
    for name, weight in stored(source).items():
        if name.endswith("_proj.weight"):
            prefix = name.removesuffix(".weight")
            rows, columns = weight.shape
            groups = 1 if group_size == -1 else columns // group_size
            assert tensors[f"{prefix}.qweight"].shape == (columns * bits // 32, rows)
            assert tensors[f"{prefix}.qzeros"].shape == (groups, rows * bits // 32)
            assert tensors[f"{prefix}.scales"].shape == (groups, rows)
            assert tensors[f"{prefix}.g_idx"].tolist() == [column // (columns // groups) for column in range(columns)]
    config = config_of(tmp_path / "out")
    assert (config["bits"], config["group_size"], config["sym"]) == (bits, group_size, True)


def test_more_bits_are_closer_to_the_source(source, tmp_path):
    ids = tiny.token_ids(4, 48, seed=3)
    baseline = logits(source, ids)
    found = []
    for bits in (8, 4, 3, 2):
        quantize(source, tmp_path / str(bits), bits=bits)
        found.append(divergence(baseline, logits(tmp_path / str(bits), ids)))
    assert found == sorted(found)
    assert found[0] < 5e-3
    assert found[1] > 2 * found[0]


@pytest.mark.parametrize(
    ("bits", "word"), [(2, 0x55555555), (4, 0x77777777), (8, 0x7F7F7F7F)], ids=["2-bit", "4-bit", "8-bit"]
)
def test_a_symmetric_grid_is_written_in_the_first_format(source, tmp_path, bits, word):
    quantize(source, tmp_path / "out", method="rtn", bits=bits)
    config = config_of(tmp_path / "out")
    assert (config["sym"], config["checkpoint_format"], config["format"]) == (True, "gptq", "gptq")
    for name, tensor in stored(tmp_path / "out").items():
        if name.endswith(".qzeros"):
            assert {value & 0xFFFFFFFF for value in tensor.flatten().tolist()} == {word}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_an_asymmetric_grid_is_written_in_the_second_format(source, tmp_path, method):
    quantize(source, tmp_path / "out", method=method, symmetric=False)
    config = config_of(tmp_path / "out")
    assert (config["sym"], config["checkpoint_format"], config["format"]) == (False, "gptq_v2", "gptq_v2")
    zeros = [tensor for name, tensor in stored(tmp_path / "out").items() if name.endswith(".qzeros")]
    assert len({value for tensor in zeros for value in tensor.flatten().tolist()}) > 10
    ids = tiny.token_ids(4, 48, seed=3)
    assert divergence(logits(source, ids), logits(tmp_path / "out", ids)) < 0.6


# Order of columns.


def test_full_act_order_permutes_the_groups_and_says_so(source, tmp_path):
    quantize(source, tmp_path / "out", act_order="full")
    assert config_of(tmp_path / "out")["desc_act"] is True
    tensors = stored(tmp_path / "out")
    permuted = 0
    for name, tensor in tensors.items():
        if name.endswith(".g_idx"):
            natural = torch.arange(len(tensor), dtype=torch.int32) // 32
            assert torch.equal(tensor.sort().values, natural), name
            permuted += not torch.equal(tensor, natural)
    assert permuted == LINEARS
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        assert torch.equal(tensors[f"{prefix}.q_proj.g_idx"], tensors[f"{prefix}.k_proj.g_idx"])


@pytest.mark.parametrize("act_order", ["none", "static"])
def test_other_orders_leave_the_groups_in_place_and_say_so(source, tmp_path, act_order):
    quantize(source, tmp_path / "out", act_order=act_order)
    assert config_of(tmp_path / "out")["desc_act"] is False
    for name, tensor in stored(tmp_path / "out").items():
        if name.endswith(".g_idx"):
            assert torch.equal(tensor, torch.arange(len(tensor), dtype=torch.int32) // 32)


def test_orders_give_different_codes_of_like_quality(source, tmp_path):
    ids = tiny.token_ids(4, 48, seed=3)
    baseline = logits(source, ids)
    found = {}
    for act_order in ("none", "static", "full"):
        quantize(source, tmp_path / act_order, act_order=act_order)
        found[act_order] = divergence(baseline, logits(tmp_path / act_order, ids))
    assert len({digests(tmp_path / name)["model.safetensors"] for name in found}) == 3
    assert max(found.values()) < 2 * min(found.values())


# Rounding to nearest.


def test_rounding_to_nearest_needs_no_tokenizer(source, tmp_path):
    bare = shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("tokenizer*"))
    progress = Recorder()
    quantize(bare, tmp_path / "out", progress, method="rtn")
    record = read_json(tmp_path / "out" / "run.json")
    assert record["calibration"] is None
    assert record["fingerprint"]["calibration_sha256"] is None
    assert "damp_percent" not in config_of(tmp_path / "out")
    assert not [line for line in progress.said if line.startswith("calibration")]
    rows = [row for row in log_of(tmp_path / "out") if "name" in row]
    assert len(rows) == LINEARS
    assert {row["method"] for row in rows} == {"rtn"}
    assert set(rows[0]) == {"name", "bits", "group_size", "method", "loss", "relative_error", "seconds"}


def test_gptq_without_a_tokenizer_is_refused(source, tmp_path):
    bare = shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(BadInputError) as caught:
        quantize(bare, tmp_path / "out")
    assert str(caught.value).startswith("the tokenizer of source does not load: ")
    assert not (tmp_path / "out").exists()


def test_rounding_to_nearest_reads_no_calibration(source, tmp_path):
    calibration = {**SMALL["calibration"], "text": ["no such text"]}
    quantize(source, tmp_path / "out", method="rtn", calibration=calibration)
    with pytest.raises(UsageError, match="no calibration text 'no such text'"):
        quantize(source, tmp_path / "other", calibration=calibration)


def test_the_per_row_scheme_is_the_largest_magnitude_over_the_largest_code(source, tmp_path):
    quantize(source, tmp_path / "out", method="rtn", bits=4, group_size=-1, scales="minmax")
    ours, before = stored(tmp_path / "out"), stored(source)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        expected = before[f"{name}.weight"].float().abs().amax(1) / 7
        torch.testing.assert_close(ours[f"{name}.scales"][0].float(), expected, rtol=1e-3, atol=0)


# Quality.


def own_tokens(folder, seed):
    """Text like that of calibration, other documents of it."""
    calibration = Calibration(text=("english", "code"), samples=8, sequence_length=64, seed=seed)
    return build_tokens(calibration, load_tokenizer(folder), tiny.VOCABULARY).ids


def test_gptq_loses_less_of_the_output_than_rounding_to_nearest(sources, tmp_path):
    # A quarter of the channels carry most of the signal, so that inputs are correlated.
    source = shutil.copytree(sources("llama"), tmp_path / "source")
    weights = stored(source)
    mixing = torch.randn(24, 128, generator=torch.Generator().manual_seed(7)) / 24**0.5
    loud = weights["model.embed_tokens.weight"][:, :24] @ mixing
    weights["model.embed_tokens.weight"] = loud + 0.05 * weights["model.embed_tokens.weight"]
    tiny.write_weights(source, weights, "safetensors")
    ids = own_tokens(source, seed=5)
    baseline = logits(source, ids)
    lost = {}
    for method in ("gptq", "rtn"):
        quantize(source, tmp_path / method, method=method, calibration={**SMALL["calibration"], "samples": 16})
        ours = logits(tmp_path / method, ids)
        lost[method] = (float((ours - baseline).square().mean()), divergence(baseline, ours))
    assert lost["gptq"][0] < 0.7 * lost["rtn"][0]
    assert lost["gptq"][1] < 0.7 * lost["rtn"][1]


def test_later_stages_see_the_earlier_ones_quantized(source, tmp_path):
    """True-sequential order: a coarser first layer changes what the second layer is fitted to."""
    quantize(source, tmp_path / "fine", rules=["model.layers.0.*=8bit"], targets=EVERY)
    quantize(source, tmp_path / "coarse", rules=["model.layers.0.*=2bit"], targets=EVERY)
    name = "model.layers.1.self_attn.q_proj.qweight"
    assert not torch.equal(stored(tmp_path / "fine")[name], stored(tmp_path / "coarse")[name])


def test_what_is_remembered_of_a_layer_does_not_change_a_bit(sources, tmp_path, monkeypatch):
    for variant in ("llama-biases", "qwen3", "phi3"):
        folder = sources(variant, torch.bfloat16)
        quantize(folder, tmp_path / variant / "with")
        with monkeypatch.context() as patch:
            patch.setattr(Memo, "keep", lambda *_args, **_options: None)
            quantize(folder, tmp_path / variant / "without")
        assert digests(tmp_path / variant / "with") == digests(tmp_path / variant / "without"), variant


@pytest.mark.parametrize("skipped", ["*.[qkv]_proj", "*.o_proj", "*.gate_proj", "*.down_proj"])
def test_a_skipped_stage_does_not_disturb_the_others(source, tmp_path, monkeypatch, skipped):
    skip = ["lm_head", skipped]
    quantize(source, tmp_path / "with", skip=skip)
    with monkeypatch.context() as patch:
        patch.setattr(Memo, "keep", lambda *_args, **_options: None)
        quantize(source, tmp_path / "without", skip=skip)
    assert digests(tmp_path / "with") == digests(tmp_path / "without")
    ids = tiny.token_ids(4, 48, seed=3)
    quantize(source, tmp_path / "whole")
    baseline = logits(source, ids)
    assert divergence(baseline, logits(tmp_path / "with", ids)) < divergence(baseline, logits(tmp_path / "whole", ids))


# Rules and skips.


def test_a_skip_is_in_the_tensors_and_in_both_keys(source, tmp_path):
    quantize(source, tmp_path / "out", skip=["lm_head", "*.down_proj"])
    found = bits_of(tmp_path / "out")
    assert {name for name, bits in found.items() if bits == 16} == {
        f"model.layers.{layer}.mlp.down_proj" for layer in range(2)
    }
    before, after = stored(source), stored(tmp_path / "out")
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert torch.equal(after[name], before[name])
    config = config_of(tmp_path / "out")
    assert config["modules_in_block_to_quantize"] == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
    ]
    (pattern,) = config["dynamic"]
    assert pattern.startswith("-:")
    assert "down_proj" in pattern
    assert linears_of(tmp_path / "out") == [name for name, bits in found_in_order(tmp_path, source) if bits != 16]


def found_in_order(tmp_path, source):
    job = job_of(source, tmp_path / "unused", skip=["lm_head", "*.down_proj"])
    return [(name, grid.bits if grid else 16) for name, grid in job.plan.grids().items()]


def test_a_skip_of_one_layer_is_named_in_full(source, tmp_path):
    quantize(source, tmp_path / "out", rules=["model.layers.0.mlp.*=skip"])
    config = config_of(tmp_path / "out")
    listed = [name for group in config["modules_in_block_to_quantize"] for name in group]
    assert sorted(listed) == sorted(name for name, bits in bits_of(tmp_path / "out").items() if bits != 16)
    assert "model.layers.1.mlp.down_proj" in listed
    assert all(pattern.startswith("-:") for pattern in config["dynamic"])


def test_rules_are_in_the_tensors_and_in_the_configuration(source, tmp_path):
    rules = ["model.layers.0.*=8bit", "*.down_proj=3bit,g64", "model.layers.1.self_attn.o_proj=skip"]
    quantize(source, tmp_path / "out", rules=rules, targets=EVERY)
    found = bits_of(tmp_path / "out")
    job = job_of(source, tmp_path / "unused", rules=rules, targets=EVERY)
    assert found == {name: grid.bits if grid else 16 for name, grid in job.plan.grids().items()}
    assert sorted(set(found.values())) == [3, 4, 8, 16]
    assert job.plan.grids()["model.layers.0.mlp.down_proj"] == Grid(3, 64)
    rows = {row["name"]: row for row in log_of(tmp_path / "out") if "name" in row}
    assert {name: row["bits"] for name, row in rows.items()} == {k: v for k, v in found.items() if v != 16}
    assert rows["model.layers.1.mlp.down_proj"]["group_size"] == 64
    dynamic = config_of(tmp_path / "out")["dynamic"]
    assert {"bits": 3, "group_size": 64} in dynamic.values()
    assert {"bits": 8, "group_size": 32} in dynamic.values()
    assert {} in dynamic.values()
    assert config_of(tmp_path / "out")["bits"] == 4
    ids = tiny.token_ids(2, 32)
    assert torch.isfinite(logits(tmp_path / "out", ids)).all()


def test_a_rule_for_a_part_of_a_fused_group_is_noted_in_the_record(source, tmp_path):
    quantize(source, tmp_path / "out", rules=["*.q_proj=skip"])
    note = "what is set for one of q_proj, k_proj, v_proj holds for all of them: runtimes fuse them"
    assert read_json(tmp_path / "out" / "run.json")["notes"] == [note]
    found = bits_of(tmp_path / "out")
    assert found["model.layers.0.self_attn.k_proj"] == 16


def test_linears_that_cannot_be_packed_are_kept_and_noted(sources, tmp_path):
    source = sources("llama", torch.bfloat16, intermediate_size=172)
    quantize(source, tmp_path / "out")
    record = read_json(tmp_path / "out" / "run.json")
    assert record["notes"] == [
        "mlp.gate_proj and its like stay in 16 bits: out_features 172 is not divisible by 32",
        "mlp.down_proj and its like stay in 16 bits: in_features 172 is not divisible by 32",
    ]
    assert {name.rpartition(".")[2] for name, bits in bits_of(tmp_path / "out").items() if bits == 16} == {
        "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    config = config_of(tmp_path / "out")
    assert [entry for group in config["modules_in_block_to_quantize"] for entry in group] == [
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    ]  # fmt: skip
    ids = tiny.token_ids(4, 48, seed=3)
    assert divergence(logits(source, ids), logits(tmp_path / "out", ids)) < 0.3
    with pytest.raises(BadInputError, match="out_features 172 is not divisible by 32"):
        job_of(source, tmp_path / "strict", strict=True)


# Calibration.


def test_the_seed_and_the_text_change_the_codes(source, tmp_path):
    found = set()
    for number, changed in enumerate(({}, {"seed": 1}, {"text": ["chinese"]}, {"samples": 4})):
        quantize(source, tmp_path / str(number), calibration={**SMALL["calibration"], **changed})
        found.add(digests(tmp_path / str(number))["model.safetensors"])
    assert len(found) == 4


def test_samples_are_no_longer_than_the_context(sources, tmp_path):
    source = sources("llama", max_position_embeddings=48)
    quantize(source, tmp_path / "out", calibration={"samples": 4, "sequence_length": 2048})
    record = read_json(tmp_path / "out" / "run.json")
    assert (record["calibration"]["samples"], record["calibration"]["sequence_length"]) == (4, 48)


def test_too_few_samples_are_said(source, tmp_path):
    progress = Recorder()
    text = tmp_path / "short.txt"
    text.write_text(tiny.TEXT, "utf-8")
    quantize(source, tmp_path / "out", progress, calibration={**SMALL["calibration"], "text": [str(text)]})
    held = read_json(tmp_path / "out" / "run.json")["calibration"]["samples"]
    assert held < 8
    assert (
        f"calibration: the text holds {held} of the 8 samples asked for; "
        "for a large model give more, such as --calibration c4"
    ) in progress.said


def test_channels_that_are_never_used_do_no_harm(sources, tmp_path):
    source = shutil.copytree(sources("llama"), tmp_path / "source")
    weights = stored(source)
    weights["model.layers.0.input_layernorm.weight"][:40] = 0
    weights["model.layers.1.post_attention_layernorm.weight"][:] = 0
    tiny.write_weights(source, weights, "safetensors")
    quantize(source, tmp_path / "out")
    record = read_json(tmp_path / "out" / "run.json")
    rounded = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert set(record["rounded_to_nearest"]) == {f"model.layers.1.{name}" for name in rounded}
    rows = {row["name"]: row["method"] for row in log_of(tmp_path / "out") if "name" in row}
    assert {name for name, method in rows.items() if method == "rtn"} == set(record["rounded_to_nearest"])
    ids = tiny.token_ids(4, 48, seed=3)
    assert divergence(logits(source, ids), logits(tmp_path / "out", ids)) < 0.3
    for name in open_folder(source).source.infos:
        assert torch.isfinite(dequantized(tmp_path / "out").read(name)).all()
