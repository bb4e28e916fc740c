"""Every family, layout and dtype from end to end: the artifact is the source, quantized, and nothing else."""

import fnmatch
import getpass
import json
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

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
from safetensors import safe_open

from quantkit.pipeline.gptq import Result
from quantkit.recipe import make_recipe
from quantkit.versions import version, versions
from quantkit.weights.source import open_folder

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES = [
    ("llama", F32, "safetensors"),
    ("llama", BF16, "sharded"),
    ("llama", F16, "bin"),
    ("llama", BF16, "bin-sharded"),
    ("llama-tied", BF16, "safetensors"),
    ("llama-tied", F32, "bin"),
    ("llama3-rope", F32, "bin-sharded"),
    ("llama-biases", BF16, "sharded"),
    ("mistral", BF16, "safetensors"),
    ("mistral", F16, "bin-sharded"),
    ("qwen2", BF16, "sharded"),
    ("qwen2", F16, "bin"),
    ("qwen2-half-sliding", F32, "safetensors"),
    ("qwen3", F16, "safetensors"),
    ("qwen3", BF16, "bin"),
    ("phi3", F32, "sharded"),
    ("phi3", BF16, "bin-sharded"),
    ("phi3-longrope", BF16, "safetensors"),
    ("gemma", BF16, "safetensors"),
    ("gemma2", F32, "safetensors"),
    ("gemma3", BF16, "sharded"),
    ("glm", BF16, "safetensors"),
    ("glm4", BF16, "sharded"),
    ("olmo", F32, "safetensors"),
    ("olmo2", BF16, "safetensors"),
    ("granite", BF16, "safetensors"),
    ("smollm3", BF16, "safetensors"),
    ("cohere", F16, "sharded"),
    ("cohere2", BF16, "safetensors"),
    ("starcoder2", BF16, "safetensors"),
    ("xglm", F16, "bin"),
]
PARTS = {".qweight": torch.int32, ".qzeros": torch.int32, ".scales": torch.float16, ".g_idx": torch.int32}
# The example of the specification of GPTQ checkpoints, for the grid of these tests.
QUANTIZATION = {
    "quant_method": "gptq",
    "bits": 8,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "true_sequential": True,
    "damp_percent": 0.05,
    "lm_head": False,
    "checkpoint_format": "gptq",
    "format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": [f"quantkit:{version()}"]},
}
# The oldest transformers that knows the architecture, where that is newer than the first that reads GPTQ.
FIRST_TRANSFORMERS = {"qwen3": "4.51", "gemma3": "4.50", "glm4": "4.51.3", "smollm3": "4.53"}


@dataclass
class Made:
    source: Path
    output: Path
    result: Result
    said: list[str]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{str(case[1])[6:]}-{case[2]}")
def made(request, sources, tmp_path_factory):
    """An 8-bit artifact of one case."""
    source = sources(*request.param)
    output = tmp_path_factory.mktemp("artifact") / "out"
    progress = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
        result = quantize(source, output, progress, bits=8)
    return Made(source, output, result, progress.said)


def quantized_names(folder):
    return {name.removesuffix(".qweight") for name in stored(folder) if name.endswith(".qweight")}


# The weights.


def test_eight_bits_give_the_logits_of_the_source(made):
    ids = tiny.token_ids(4, 48, seed=3)
    baseline, ours = logits(made.source, ids), logits(made.output, ids)
    assert torch.isfinite(ours).all()
    assert divergence(baseline, ours) < 5e-3
    assert divergence(baseline, ours.roll(1, 1)) > 0.5  # a broken artifact would be noticed


def test_every_linear_of_the_layers_is_quantized_and_nothing_else_is(made):
    job = job_of(made.source, made.output, bits=8)
    assert quantized_names(made.output) == set(job.plan.grids())
    outputs = {name.rpartition(".")[0] for name in stored(made.output) if name.endswith(tuple(PARTS))}
    assert outputs == set(job.plan.grids())


def test_every_weight_is_within_half_a_step_of_where_the_feedback_put_it(made):
    source, ours = open_folder(made.source).source, dequantized(made.output)
    for name in quantized_names(made.output):
        weight, found = source.read(name + ".weight").float(), ours.read(name + ".weight").float()
        assert float((weight - found).norm() / weight.norm()) < 0.02, name


def test_kept_tensors_are_the_sources_in_16_bits(made):
    source, ours = open_folder(made.source).source, stored(made.output)
    quantized = quantized_names(made.output)
    first = next(info for name, info in source.infos.items() if "layers.0" in name)
    kept_dtype = {"BF16": BF16}.get(first.dtype, F16)
    expected = {}
    tied = read_json(made.source / "config.json")["tie_word_embeddings"]
    for name in sorted(source.infos.keys() - ({"lm_head.weight"} if tied else set())):
        module, _, leaf = name.rpartition(".")
        if module in quantized and leaf == "weight":
            expected |= {module + part: dtype for part, dtype in PARTS.items()}
            continue
        dtype = F16 if module in quantized else kept_dtype
        expected[name] = dtype
        assert torch.equal(ours[name], source.read(name).to(dtype)), name
    assert {name: tensor.dtype for name, tensor in ours.items()} == expected


def test_the_plan_knew_every_byte(made):
    plan = job_of(made.source, made.output, bits=8).plan
    files = {name: (made.output / name).stat().st_size for name in plan.shards}
    assert set(files) == {path.name for path in made.output.glob("*.safetensors")}
    tensors = stored(made.output)
    assert {info.name: info.nbytes for row in plan.rows for info in row.outputs} == {
        name: tensor.nbytes for name, tensor in tensors.items()
    }
    assert sum(tensor.nbytes for tensor in tensors.values()) == plan.artifact_bytes
    headers = sum(8 + int.from_bytes((made.output / name).read_bytes()[:8], "little") for name in files)
    assert sum(files.values()) == plan.artifact_bytes + headers


def test_other_libraries_read_the_files(made):
    tensors = stored(made.output)
    for path in made.output.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                assert torch.equal(file.get_tensor(name), tensors[name])


# The configuration.


def test_the_quantization_config_is_that_of_the_specification(made):
    config = read_json(made.output / "config.json")
    oldest = FIRST_TRANSFORMERS.get(made.source.name, "4.49")
    expected = QUANTIZATION | {"meta": QUANTIZATION["meta"] | {"transformers": f">={oldest}"}}
    assert config["quantization_config"] == expected
    assert read_json(made.output / "quantize_config.json") == expected
    assert read_json(made.output / "run.json")["first_transformers"] == oldest


def test_the_configuration_keeps_the_keys_of_the_source(made):
    config, before = read_json(made.output / "config.json"), read_json(made.source / "config.json")
    # float32 tensors become float16, and the configuration says what is stored.
    stored = {"torch_dtype": before["torch_dtype"].replace("float32", "float16")}
    assert {key: config[key] for key in before} == before | stored
    assert set(config) - set(before) == {"quantization_config"}


def test_side_files_are_the_sources(made):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (made.output / name).read_bytes() == (made.source / name).read_bytes()


def test_nothing_else_is_in_the_folder(made):
    assert {path.name for path in made.output.iterdir()} == {
        "config.json", "generation_config.json", "layers.jsonl", "model.safetensors", "quantize_config.json",
        "quantkit.json", "run.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


# The record.


def test_the_log_has_a_line_for_every_linear(made):
    rows = log_of(made.output)
    job = job_of(made.source, made.output, bits=8)
    layers = len(job.plan.layers)
    assert [row["finished"] for row in rows if "finished" in row] == list(range(layers))
    assert linears_of(made.output) == list(job.plan.grids())
    for row in rows:
        if "name" in row:
            assert set(row) == {
                "name", "bits", "group_size", "method", "loss", "relative_error", "seconds", "damp_percent",
                "damping_raised",
            }  # fmt: skip
            assert (row["bits"], row["group_size"], row["method"]) == (8, 32, "gptq")
            assert 0 <= row["relative_error"] < 1e-3
            assert row["loss"] >= 0
            assert (row["damp_percent"], row["damping_raised"]) == (0.05, 0)


def test_the_record_says_from_what_and_how_it_was_made(made):
    record = read_json(made.output / "run.json")
    assert record["schema_version"] == 1
    assert record["status"] == "finished"
    assert record["recipe"] == json.loads(make_recipe(SMALL | {"bits": 8}).model_dump_json())
    assert record["source"] == {"repo": None, "commit": None, "files": record["fingerprint"]["source"]}
    weights = {path.name for path in made.source.iterdir() if path.suffix in (".safetensors", ".bin")}
    patterns = ("config.json", *weights)
    expected = {name: digest for pattern in patterns for name, digest in digests(made.source, pattern).items()}
    assert record["fingerprint"]["source"] == expected
    assert record["versions"] == versions()
    assert record["calibration"]["samples"] == 8
    assert record["calibration"]["sequence_length"] == 64
    assert re.fullmatch("[0-9a-f]{64}", record["calibration"]["sha256"])
    assert record["fingerprint"]["calibration_sha256"] == record["calibration"]["sha256"]
    assert record["artifact_bytes"] == sum(tensor.nbytes for tensor in stored(made.output).values())
    assert {"host_bytes", "device_bytes", "disk_bytes", "seconds"} <= set(record["predicted"]) & set(record["measured"])
    assert record["rounded_to_nearest"] == []
    assert record["runtimes"]["transformers"] == "loads"


def test_the_measured_disk_is_within_the_prediction(made):
    record = read_json(made.output / "run.json")
    written = sum(path.stat().st_size for path in made.output.iterdir())
    assert record["measured"]["disk_bytes"] <= written <= record["predicted"]["disk_bytes"]


def test_progress_said_what_was_read(made):
    assert made.said[0].startswith("calibration: 8 x 64 tokens from english, ")
    assert made.result.output == made.output


# One case is enough for what follows.


@pytest.fixture
def local_names(monkeypatch):
    """Names of a person and a machine that would be noticed in a file."""
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME"):
        monkeypatch.setenv(name, "canaryname")
    monkeypatch.setattr(platform, "node", lambda: "canaryhost")
    monkeypatch.setattr("socket.gethostname", lambda: "canaryhost")
    assert getpass.getuser() == "canaryname"


def local_words(tmp_path):
    return (str(tmp_path), "canaryname", "canaryhost", str(Path.home()), str(Path.cwd()), "pytest-of")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_nothing_local_is_in_any_file(sources, tmp_path, local_names, method):
    source = shutil.copytree(sources(), tmp_path / "my-model")
    quantize(source, tmp_path / "out", method=method)
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert not [word for word in local_words(tmp_path) if word.encode() in content], path.name
        assert (b"my-model" in content) == (path.name == "quantkit.json")  # its name, for the card


def test_the_path_of_a_calibration_file_is_not_in_any_file(sources, tmp_path, local_names):
    text = tmp_path / "own.txt"
    text.write_text(tiny.TEXT * 20, "utf-8")
    quantize(sources(), tmp_path / "out", calibration={**SMALL["calibration"], "text": [f"{text}:2", "english"]})
    for path in (tmp_path / "out").iterdir():
        assert not [word for word in local_words(tmp_path) if word.encode() in path.read_bytes()], path.name
    assert "own.txt" in read_json(tmp_path / "out" / "run.json")["calibration"]["tokens_by_set"]


SIDE_FILES = {
    "tokenizer.model": b"\x00\x01binary",
    "LICENSE": b"as is\r\n",
    "MODEL_LICENSE.pdf": b"%PDF-1.4\n",
    "USE_POLICY.md": "é".encode("latin-1"),
    "chat_template.jinja": b"{{ messages }}",
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{ }",
}
OTHER_FILES = {
    "modeling_own.py": b"raise SystemExit",
    "configuration_own.py": b"",
    "tf_model.h5": b"weights",
    "flax_model.msgpack": b"weights",
    "rust_model.ot": b"weights",
    "model.onnx": b"weights",
    "model-q4.gguf": b"weights",
    "consolidated.00.pth": b"weights",
    "training_args.bin": b"weights",
    "optimizer.pt": b"weights",
    "pytorch_model.bin": b"weights",
    "pytorch_model.bin.index.json": b'{"weight_map": {}}',
    "README.md": b"# The card of the source",
    ".gitattributes": b"*.bin lfs",
    "quantize_config.json": b'{"bits": 3}',
    "run.json": b"{}",
    "layers.jsonl": b"{}",
}


def test_side_files_are_copied_byte_for_byte_and_weights_and_code_are_not(sources, tmp_path):
    source = shutil.copytree(sources(), tmp_path / "source")
    for name, content in (SIDE_FILES | OTHER_FILES).items():
        (source / name).write_bytes(content)
    (source / "original").mkdir()
    (source / "original" / "params.json").write_bytes(b"{}")
    (source / "onnx").mkdir()
    output = tmp_path / "out"
    quantize(source, output, method="rtn")
    for name, content in SIDE_FILES.items():
        assert (output / name).read_bytes() == content, name
    present = {path.name for path in output.iterdir()}
    own = {"config.json", "quantize_config.json", "quantkit.json", "run.json", "layers.jsonl"}
    assert not present & (OTHER_FILES.keys() - own)
    assert not present & {"original", "onnx"}
    assert read_json(output / "quantize_config.json")["bits"] == 4
    assert read_json(output / "run.json")["status"] == "finished"


def test_code_named_by_the_source_is_neither_run_nor_named_by_the_artifact(sources, tmp_path):
    source = shutil.copytree(sources(), tmp_path / "source")
    marker = tmp_path / "ran"
    (source / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = read_json(source / "config.json")
    config["auto_map"] = {
        "AutoConfig": "modeling_own.Config",
        "AutoModelForCausalLM": "modeling_own.Model",
    }
    config["architectures"] = ["LLaMAForCausalLM"]  # an early spelling
    config["own_key"] = {"nested": [1, 2.5, None, "é"]}
    tiny.write_json(source / "config.json", config)
    quantize(source, tmp_path / "out", method="rtn")
    written = read_json(tmp_path / "out" / "config.json")
    assert not marker.exists()
    assert "auto_map" not in written
    assert (written["architectures"], written["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert written["own_key"] == config["own_key"]


def test_the_source_is_left_as_it_was(sources, tmp_path):
    source = shutil.copytree(sources("llama", BF16, "bin-sharded"), tmp_path / "source")
    before = digests(source, "*")
    quantize(source, tmp_path / "out")
    assert digests(source, "*") == before


def test_several_shards_have_an_index(sources, tmp_path):
    quantize(sources(), tmp_path / "out", max_shard_size="150kB")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 2
    assert names == [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    tensors = stored(tmp_path / "out")
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    assert set(index["weight_map"]) == set(tensors)
    for file in names:
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert set(opened.keys()) == {name for name, where in index["weight_map"].items() if where == file}
            assert sum(opened.get_tensor(name).nbytes for name in opened.keys()) <= 150_000  # noqa: SIM118


def test_shards_hold_what_a_single_file_holds(sources, tmp_path):
    quantize(sources(), tmp_path / "one")
    quantize(sources(), tmp_path / "many", max_shard_size="100kB")
    one, many = stored(tmp_path / "one"), stored(tmp_path / "many")
    assert set(one) == set(many)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_layout_of_the_source_does_not_change_the_artifact(sources, tmp_path):
    found = []
    for layout in ("safetensors", "sharded", "bin", "bin-sharded"):
        quantize(sources("llama", BF16, layout), tmp_path / layout)
        found.append(digests(tmp_path / layout))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_two_runs_give_the_same_bytes(sources, tmp_path, method):
    for name in "ab":
        quantize(sources("qwen2", BF16, "sharded"), tmp_path / name, method=method, max_shard_size="200kB")
    assert len(digests(tmp_path / "a")) > 1
    for pattern in ("*.safetensors", "config.json", "quantize_config.json", "*.index.json"):
        assert digests(tmp_path / "a", pattern) == digests(tmp_path / "b", pattern)


def test_a_dtype_for_what_is_kept_can_be_asked_for(sources, tmp_path):
    quantize(sources("llama", F32, "safetensors"), tmp_path / "out", dtype="bfloat16", method="rtn")
    kept = [tensor.dtype for name, tensor in stored(tmp_path / "out").items() if not name.endswith(tuple(PARTS))]
    assert set(kept) == {BF16}


def test_rotary_tables_of_old_checkpoints_are_left_out(sources, tmp_path):
    source = shutil.copytree(sources("llama", F16, "bin"), tmp_path / "source")
    weights = stored(source)
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    tiny.write_weights(source, weights, "bin")
    quantize(source, tmp_path / "out", method="rtn")
    assert not [name for name in stored(tmp_path / "out") if fnmatch.fnmatch(name, "*rotary*")]


def test_the_head_of_a_tied_checkpoint_is_not_written_beside_the_embedding(sources, tmp_path):
    source = sources("llama-tied", F32, "bin")
    assert "lm_head.weight" in open_folder(source).source.infos
    quantize(source, tmp_path / "out", method="rtn")
    assert "lm_head.weight" not in stored(tmp_path / "out")
