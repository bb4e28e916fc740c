"""Planning: from headers alone, refused before a weight is read, the same for a folder and a repository."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from artifacts import SMALL, Recorder, digests, job_of, quantize, read_json, stored

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError, DiskError, NotFoundError, OutOfMemoryError, UsageError
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import default_name, prepare
from quantkit.recipe import Recipe, make_recipe
from quantkit.units import format_bytes
from quantkit.weights import local

REPO = "some/model"


@pytest.fixture(scope="module")
def source(sources):
    return sources("llama", torch.bfloat16, "sharded")


@pytest.fixture
def own(sources, tmp_path):
    """A copy of a checkpoint that a test may change."""
    return shutil.copytree(sources("llama", torch.bfloat16), tmp_path / "source")


def change_config(folder, **changes):
    config = read_json(folder / "config.json") | changes
    tiny.write_json(folder / "config.json", {key: value for key, value in config.items() if value is not ...})


def change_weights(folder, **changes):
    weights = stored(folder) | changes
    tiny.write_weights(folder, {name: tensor for name, tensor in weights.items() if tensor is not ...}, "safetensors")


# From headers alone.


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin", "bin-sharded"])
def test_planning_reads_no_weight_and_writes_nothing(sources, tmp_path, monkeypatch, layout):
    def refuse(*_):
        raise AssertionError("a weight was read")

    source = sources("llama", torch.float32, layout)
    before = digests(source, "*")
    monkeypatch.setattr(local.LocalSource, "read", refuse)
    monkeypatch.chdir(tmp_path)
    job = prepare(str(source), make_recipe(SMALL), device="cpu")
    assert job.plan.artifact_bytes > 0
    assert list(tmp_path.iterdir()) == []
    assert digests(source, "*") == before


def test_the_plan_for_machines_is_json_with_a_schema_version(source, tmp_path):
    plan = json.loads(json.dumps(job_of(source, tmp_path / "out", bits=8).as_dict(context=4096), allow_nan=False))
    assert plan["schema_version"] == 1
    assert plan["source"] == {"reference": str(source), "commit": None}
    assert (plan["architecture"], plan["family"]) == ("LlamaForCausalLM", "llama")
    assert plan["recipe"]["bits"] == 8
    assert plan["output"] == str(tmp_path / "out")
    assert plan["context"] == 4096
    assert sum(plan["shards"].values()) == plan["artifact_bytes"]
    assert sum(row["bytes"] for row in plan["rows"]) == plan["artifact_bytes"]
    assert sum(row["source_bytes"] for row in plan["rows"]) == plan["source_bytes"]
    assert {row["name"] for row in plan["rows"]} == set(stored(source))
    quantized = [row for row in plan["rows"] if row["action"] == "quantize"]
    assert len(quantized) == 14
    assert {(row["bits"], row["group_size"], row["dtype"]) for row in quantized} == {(8, 32, "BF16")}
    assert {row["runtime"]: row["loads"] for row in plan["runtimes"]}["transformers"] is True
    assert {row["machine"] for row in plan["machines"]} >= {"T4 16 GB", "L4 24 GB", "A100 40 GB"}
    assert plan["budget"]["host_bytes"] > 0
    assert plan["budget"]["download_bytes"] == 0


def test_the_plan_is_what_the_run_writes(source, tmp_path):
    job = job_of(source, tmp_path / "out", max_shard_size="150kB")
    run(job)
    for file, infos in job.plan.shards.items():
        found = local.LocalSource(tmp_path / "out").infos
        assert {name for name, info in found.items() if info.file == file} == {info.name for info in infos}
        assert all((found[info.name].dtype, found[info.name].shape) == (info.dtype, info.shape) for info in infos)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert written == pytest.approx(job.plan.artifact_bytes, rel=0.05)  # headers weigh much in files this small


def test_a_larger_artifact_is_predicted_to_half_a_percent(sources, tmp_path):
    source = sources("llama", torch.bfloat16, vocab_size=4096, hidden_size=256, intermediate_size=512)
    job = job_of(source, tmp_path / "out", method="rtn", bits=8)
    run(job)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert written == pytest.approx(job.plan.artifact_bytes, rel=0.005)


def test_an_output_is_named_after_source_method_and_bits(source, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(str(source))
    assert default_name(checkpoint, Recipe()) == f"{source.name}-GPTQ-Int4"
    assert default_name(checkpoint, Recipe(method="rtn", bits=8)) == f"{source.name}-RTN-Int8"
    monkeypatch.chdir(source)
    assert default_name(open_checkpoint("."), Recipe()) == f"{source.name}-GPTQ-Int4"
    assert default_name(open_checkpoint(f"../{source.name}/"), Recipe()) == f"{source.name}-GPTQ-Int4"


# Refused before anything is read or downloaded.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 3, "targets": ["vllm"]}, "vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits"),
        ({"symmetric": False, "targets": ["sglang"]}, "SGLang 0.5.23 loads symmetric 4 and 8 bits only"),
        ({"act_order": "full", "targets": ["vllm"]}, "vLLM 0.33 does not load permuted groups"),
        ({"bits": 8, "targets": ["exllamav2"]}, "ExLlamaV2 loads 4 bits only; this is 8 bits"),
        ({"bits": 3, "targets": ["llama.cpp"]}, "llama.cpp's converter loads 2, 4 and 8 bits only; this is 3 bits"),
    ],
)
def test_what_a_target_cannot_load_is_refused_before_the_source_is_looked_for(tmp_path, fields, message):
    with pytest.raises(UsageError) as caught:
        job_of(tmp_path / "nowhere", tmp_path / "out", **fields)
    assert message in str(caught.value)
    assert "can load it" in caught.value.hint


def test_rules_that_mix_bits_are_refused_for_a_target_that_reads_one_grid(source, tmp_path):
    with pytest.raises(UsageError, match=r"transformers 5\.23 reads one grid for all linears; this mixes several"):
        job_of(source, tmp_path / "out", rules=["model.layers.0.*=8bit"])


def test_an_unknown_calibration_text_is_refused_before_the_source_is_looked_for(tmp_path):
    with pytest.raises(UsageError, match="no calibration text 'englisch'"):
        job_of(tmp_path / "nowhere", tmp_path / "out", calibration={"text": ["englisch"]})


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        job_of(tmp_path / "nowhere", tmp_path / "out")
    assert str(caught.value) == f"no such folder: {tmp_path / 'nowhere'}"


def test_an_architecture_that_is_not_known_is_named(own, tmp_path):
    change_config(own, architectures=["MambaForCausalLM"])
    with pytest.raises(BadInputError, match="architecture MambaForCausalLM is not one quantkit knows"):
        job_of(own, tmp_path / "out")


def test_a_quantized_source_is_refused(source, tmp_path):
    quantize(source, tmp_path / "first", method="rtn")
    with pytest.raises(BadInputError) as caught:
        job_of(tmp_path / "first", tmp_path / "second")
    assert str(caught.value) == "this checkpoint is already quantized (gptq)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.layers.1.mlp.up_proj.weight": ...},
            r"tensor model\.layers\.1\.mlp\.up_proj\.weight \[256, 128\] is missing from the checkpoint",
        ),
        (
            {"model.layers.0.self_attn.k_proj.weight": torch.zeros(32, 128)},
            r"tensor model\.layers\.0\.self_attn\.k_proj\.weight in model\.safetensors is \[32, 128\], "
            r"config\.json asks for \[64, 128\]",
        ),
        (
            {"model.norm.weight": torch.zeros(128, dtype=torch.int8)},
            r"tensor model\.norm\.weight in model\.safetensors is I8, expected F32, F16 or BF16",
        ),
        (
            {"model.layers.2.mlp.up_proj.weight": torch.zeros(256, 128)},
            r"tensor model\.layers\.2\.mlp\.up_proj\.weight has no place in a llama model of 2: "
            r"surplus in model\.safetensors",
        ),
        (
            {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)},
            r"tensor model\.layers\.0\.self_attn\.q_proj\.bias has no place in a llama model of 2: "
            r"surplus in model\.safetensors",
        ),
        (
            {"score.weight": torch.zeros(2, 128)},
            r"tensor score\.weight has no place in a llama model: surplus in model\.safetensors",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_named(own, tmp_path, change, message):
    change_weights(own, **change)
    with pytest.raises(BadInputError, match=f"^{message}$"):
        job_of(own, tmp_path / "out")


def test_a_configuration_that_transformers_refuses_is_bad_input(own, tmp_path):
    change_config(own, attention_dropout="much")
    with pytest.raises(BadInputError, match=r"refuses this config\.json: .*field 'attention_dropout'"):
        job_of(own, tmp_path / "out")


def test_what_is_asked_for_by_name_only_is_found_in_the_configuration(own, tmp_path):
    """Keys with a default in transformers need not be in config.json."""
    change_config(own, num_key_value_heads=2, max_position_embeddings=..., rms_norm_eps=..., hidden_act=...)
    assert job_of(own, tmp_path / "out").plan.artifact_bytes > 0


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads"])
def test_a_configuration_without_its_sizes_is_bad_input(own, tmp_path, key):
    change_config(own, **{key: ...})
    with pytest.raises(BadInputError):
        job_of(own, tmp_path / "out")


def test_a_size_that_is_the_default_of_its_architecture_may_be_left_out(sources, tmp_path):
    own = shutil.copytree(sources("llama", torch.bfloat16, vocab_size=32000), tmp_path / "source")
    change_config(own, vocab_size=...)
    result = quantize(own, tmp_path / "out")
    assert result.record["status"] == "finished"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_value_that_is_not_finite_is_refused_with_its_tensor(own, tmp_path, value, method):
    name = "model.layers.1.mlp.up_proj.weight"
    weight = stored(own)[name]
    weight[3, 5] = weight[4, 6] = value
    change_weights(own, **{name: weight})
    with pytest.raises(BadInputError) as caught:
        quantize(own, tmp_path / "out", method=method)
    assert str(caught.value) == f"tensor {name} has 2 values that are NaN or infinite"
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_value_outside_the_layers_that_is_not_finite_is_refused(own, tmp_path, name):
    weight = stored(own)[name]
    weight.view(-1)[7] = float("nan")
    change_weights(own, **{name: weight})
    with pytest.raises(BadInputError, match="NaN or infinite"):
        quantize(own, tmp_path / "out")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_value_that_float16_cannot_hold_is_refused_with_what_helps(sources, tmp_path, method):
    own = shutil.copytree(sources("llama", torch.float32), tmp_path / "source")
    name = "model.layers.0.input_layernorm.weight"
    weight = stored(own)[name]
    weight[3] = 1e6
    change_weights(own, **{name: weight})
    with pytest.raises(BadInputError) as caught:
        quantize(own, tmp_path / "out", method=method)
    assert str(caught.value) == f"tensor {name} has values that are not finite in F16"
    assert caught.value.hint == "use --dtype bfloat16"


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_scale_that_float16_cannot_hold_is_refused_or_kept_apart(sources, tmp_path, method):
    """Scales are float16 in the format: a weight of 1e7 has none. The artifact must not hold infinities."""
    own = shutil.copytree(sources("llama", torch.float32), tmp_path / "source")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = stored(own)[name]
    weight[3, 5] = 1e7
    change_weights(own, **{name: weight})
    try:
        quantize(own, tmp_path / "out", method=method, dtype="bfloat16")
    except BadInputError as error:
        assert "mlp.up_proj" in str(error)  # noqa: PT017
    else:
        tensors = stored(tmp_path / "out")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


# Disk and memory.


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(source, tmp_path, monkeypatch):
    job = job_of(source, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_000_000))
    with pytest.raises(DiskError) as caught:
        run(job)
    needed, artifact = format_bytes(job.budget.disk_bytes), format_bytes(job.plan.artifact_bytes)
    lacking = format_bytes(job.budget.disk_bytes - 1_000_000)
    assert (
        str(caught.value) == f"the run needs {needed} of disk, {tmp_path / 'out'} has 1.00 MB free: {lacking} missing"
    )
    assert caught.value.hint.startswith(f"{artifact} is the artifact, 0 B the download; choose another --out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_already_is_not_asked_for_again(source, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", Recorder(layer=0))
    job = job_of(source, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=job.budget.disk_bytes - written))
    run(job)


def test_memory_that_is_too_small_is_refused_with_the_numbers(source, tmp_path, monkeypatch):
    job = job_of(source, tmp_path / "out")
    monkeypatch.setattr("quantkit.pipeline.machine.resident_bytes", lambda: 2**20)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**26))
    with pytest.raises(OutOfMemoryError) as caught:
        run(job)
    assert str(caught.value).startswith("the run needs ")
    assert str(caught.value).endswith(" of memory, 0.06 GiB is available")
    assert caught.value.hint.endswith("GiB of it holds calibration activations: lower --samples or --sequence-length")
    assert not (tmp_path / "out").exists()


# From the Hub.


@pytest.fixture
def serve(loopback, hub_client):
    """Puts a folder, and more, on the loopback Hub; the commit."""

    def add(folder, **more):
        return loopback.add_repo(REPO, {path.name: path for path in folder.iterdir()} | more)

    return add


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin", "bin-sharded"])
def test_a_repository_is_planned_without_its_weights_and_gives_the_artifact_of_its_folder(
    sources, loopback, serve, tmp_path, layout
):
    folder = sources("qwen2", torch.float16, layout)
    commit = serve(folder)
    job = job_of(REPO, tmp_path / "hub")
    assert not [request for request in loopback.find(".bin", origin="cdn") if request.range is None]
    assert not [name for name in job.checkpoint.folder.iterdir() if name.suffix in (".bin", ".safetensors")]
    assert job.budget.download_bytes > 0
    progress = Recorder()
    run(job, progress)
    assert any(line.startswith("downloading ") for line in progress.said)
    quantize(folder, tmp_path / "local")
    for pattern in ("*.safetensors", "config.json", "tokenizer*.json"):
        assert digests(tmp_path / "hub", pattern) == digests(tmp_path / "local", pattern)
    record = read_json(tmp_path / "hub" / "run.json")
    files = record["source"].pop("files")
    assert "config.json" in files
    assert all(len(digest) == 64 for digest in files.values())
    assert record["source"] == {"repo": REPO, "commit": commit}
    assert record["fingerprint"]["source"] == commit
    for path in (tmp_path / "hub").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert loopback.token.encode() not in path.read_bytes()


@pytest.mark.parametrize("stated", ["float32", ...])
def test_a_bin_repository_whose_configuration_says_another_dtype_gives_the_same_artifact(
    sources, serve, tmp_path, stated
):
    own = shutil.copytree(sources("llama", torch.bfloat16, "bin"), tmp_path / "source")
    change_config(own, torch_dtype=stated)
    serve(own)
    run(job_of(REPO, tmp_path / "hub", method="rtn"))
    quantize(own, tmp_path / "local", method="rtn")
    assert digests(tmp_path / "hub") == digests(tmp_path / "local")


def test_a_bin_repository_whose_tensors_do_not_fit_is_refused_before_the_run(sources, serve, tmp_path):
    own = shutil.copytree(sources("llama", torch.bfloat16, "bin"), tmp_path / "source")
    weights = stored(own)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(192, 128)
    tiny.write_weights(own, weights, "bin")
    serve(own)
    with pytest.raises(BadInputError, match=r"config\.json asks for \[256, 128\]"):
        run(job_of(REPO, tmp_path / "hub"))


def test_a_run_from_the_hub_continues_after_an_interruption(sources, serve, tmp_path):
    serve(sources("llama", torch.float16, "sharded"))
    with pytest.raises(KeyboardInterrupt):
        run(job_of(REPO, tmp_path / "out"), Recorder(layer=0))
    again = Recorder()
    run(job_of(f"{REPO}@main", tmp_path / "out"), again)
    assert again.started == (2, 1)
    assert not [line for line in again.said if line.startswith("downloading")]


def test_side_files_of_a_repository_are_carried_along(sources, serve, tmp_path):
    extra = {"LICENSE": b"as is", "MODEL_LICENSE.pdf": b"%PDF", "modeling_own.py": b"x", "README.md": b"# card"}
    serve(sources("llama", torch.float16), **extra)
    run(job_of(REPO, tmp_path / "out", method="rtn"))
    present = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert present["LICENSE"] == b"as is"
    assert present["MODEL_LICENSE.pdf"] == b"%PDF"
    assert "modeling_own.py" not in present
    assert "README.md" not in present
