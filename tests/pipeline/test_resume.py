"""A run that died is continued where it stopped; other inputs and foreign folders are refused."""

import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from artifacts import CALIBRATION, SMALL, Recorder, digests, job_of, linears_of, log_of, quantize, read_json, stored

from quantkit.errors import BadInputError, QuantkitError
from quantkit.pipeline.gptq import run
from quantkit.rundir import RunFolder
from quantkit.skeleton import Skeleton
from quantkit.versions import versions
from quantkit.weights import local

LAYERS = 3
LINEARS = 7 * LAYERS
# Rows of a layer straddle these files: 5 of them for 3 layers.
SHARDED = {"max_shard_size": "150kB"}
FILES = ("*.safetensors", "config.json", "quantize_config.json", "*.index.json", "tokenizer*.json")


@pytest.fixture(scope="module")
def source(sources):
    return sources("qwen2", torch.bfloat16, "sharded", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Artifacts of runs that nothing interrupted, by method and sharding."""
    made = {}

    def artifact(method="gptq", **fields):
        key = (method, *sorted(fields.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "out"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
                quantize(source, made[key], method=method, **fields)
        return made[key]

    return artifact


def assert_same(folder, expected):
    for pattern in FILES:
        assert digests(folder, pattern) == digests(expected, pattern), pattern
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    assert linears_of(folder) == linears_of(expected)
    assert [row["finished"] for row in log_of(folder) if "finished" in row] == list(range(LAYERS))
    assert read_json(folder / "run.json")["status"] == "finished"


def interrupted(source, folder, progress, **fields):
    with pytest.raises(KeyboardInterrupt):
        quantize(source, folder, progress, **fields)
    return progress


@pytest.mark.parametrize("fields", [{}, SHARDED], ids=["one-file", "sharded"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_run_interrupted_after_a_layer_continues_with_the_next(source, whole, tmp_path, layer, method, fields):
    first = interrupted(source, tmp_path / "out", Recorder(layer=layer), method=method, **fields)
    assert first.stops == 1
    assert read_json(tmp_path / "out" / "run.json")["status"] == "running"
    assert not (tmp_path / "out" / "config.json").exists()
    second = Recorder()
    quantize(source, tmp_path / "out", second, method=method, **fields)
    assert second.started == (LAYERS, layer + 1)
    assert second.layers == list(range(layer + 1, LAYERS))
    assert first.linears + second.linears == linears_of(tmp_path / "out")
    assert f"continuing: {layer + 1} of {LAYERS} layers are finished" in second.said
    assert_same(tmp_path / "out", whole(method, **fields))


@pytest.mark.parametrize("linear", [0, 3, 6, 7, 12, LINEARS - 1])
def test_a_run_interrupted_inside_a_layer_does_that_layer_again(source, whole, tmp_path, linear):
    interrupted(source, tmp_path / "out", Recorder(linear=linear), **SHARDED)
    second = Recorder()
    quantize(source, tmp_path / "out", second, **SHARDED)
    assert second.started == (LAYERS, linear // 7)
    assert_same(tmp_path / "out", whole("gptq", **SHARDED))


def test_a_run_interrupted_again_and_again_gets_there(source, whole, tmp_path):
    for layer in range(LAYERS):
        interrupted(source, tmp_path / "out", Recorder(linear=4), **SHARDED)
        interrupted(source, tmp_path / "out", Recorder(layer=layer), **SHARDED)
    quantize(source, tmp_path / "out", **SHARDED)
    assert_same(tmp_path / "out", whole("gptq", **SHARDED))


def test_the_layers_that_are_finished_are_not_quantized_again(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", Recorder(layer=1), **SHARDED)
    seen = []
    original = local.LocalSource.read
    monkeypatch.setattr(local.LocalSource, "read", lambda self, name: (seen.append(name), original(self, name))[1])
    quantize(source, tmp_path / "out", **SHARDED)
    again = [name for name in seen if name.endswith("_proj.weight") and ".layers.2." not in name]
    assert again == []


def test_finished_shards_are_not_written_again(source, tmp_path):
    interrupted(source, tmp_path / "out", Recorder(layer=1), **SHARDED)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("model-*.safetensors")}
    assert before
    quantize(source, tmp_path / "out", **SHARDED)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def crash(monkeypatch, target, name, when=lambda *_: True):
    """Let a function raise KeyboardInterrupt before it does anything."""
    original = getattr(target, name)

    def broken(*args, **options):
        if when(*args):
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(target, name, broken)


@pytest.mark.parametrize(
    ("layer", "fields"),
    [
        pytest.param(0, {}, id="0-one-file"),
        pytest.param(1, {}, id="1-one-file"),
        pytest.param(2, {}, id="2-one-file"),
        *[pytest.param(layer, SHARDED, id=f"{layer}-sharded") for layer in range(LAYERS)],
    ],
)
def test_a_crash_between_a_layers_bytes_and_its_line_does_that_layer_again(
    source, whole, tmp_path, monkeypatch, layer, fields
):
    with monkeypatch.context() as patch:
        crash(patch, RunFolder, "record_finished", lambda _self, index, *_: index == layer)
        interrupted(source, tmp_path / "out", Recorder(), **fields)
    quantize(source, tmp_path / "out", **fields)
    assert_same(tmp_path / "out", whole("gptq", **fields))


@pytest.mark.parametrize(
    "step",
    [
        "copy_side_files",
        "quantization_config",
        "write_descriptions",
        "write_gptq_manifest",
    ],
)
def test_a_crash_among_the_small_files_writes_them_again(source, whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        crash(patch, __import__("quantkit.pipeline.gptq", fromlist=["x"]), step)
        interrupted(source, tmp_path / "out", Recorder())
    quantize(source, tmp_path / "out")
    assert_same(tmp_path / "out", whole())


def test_a_crash_before_the_first_layer_begins_anew(source, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash(patch, __import__("quantkit.skeleton", fromlist=["x"]).Skeleton, "embed")
        interrupted(source, tmp_path / "out", Recorder())
    quantize(source, tmp_path / "out")
    assert_same(tmp_path / "out", whole())


def test_where_only_small_files_are_left_no_layer_is_computed(source, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash(patch, __import__("quantkit.pipeline.gptq", fromlist=["x"]), "copy_side_files")
        interrupted(source, tmp_path / "out", Recorder())
    with monkeypatch.context() as patch:
        patch.setattr(Skeleton, "run_layer", lambda *_: pytest.fail("computes"))
        patch.setattr(Skeleton, "embed", lambda *_: pytest.fail("computes"))
        quantize(source, tmp_path / "out")
    assert_same(tmp_path / "out", whole())


def test_time_is_that_of_all_legs(source, tmp_path):
    for layer in range(LAYERS - 1):
        interrupted(source, tmp_path / "out", Recorder(layer=layer))
    measured = quantize(source, tmp_path / "out").record["measured"]
    rows = [row for row in log_of(tmp_path / "out") if "finished" in row]
    assert len(rows) == LAYERS
    for name in ("seconds", "cpu_seconds"):
        assert all(row[name] > 0 for row in rows)
        assert measured[name] >= round(sum(row[name] for row in rows), 1)
    assert measured["host_bytes"] >= max(row["host_bytes"] for row in rows) > 0


def test_a_finished_run_is_left_alone(source, tmp_path):
    first = quantize(source, tmp_path / "out")
    before = digests(tmp_path / "out", "*")
    progress = Recorder()
    second = quantize(source, tmp_path / "out", progress)
    assert digests(tmp_path / "out", "*") == before
    assert progress.said[-1] == f"{tmp_path / 'out'} is finished already; nothing to do"
    assert (progress.started, progress.linears) == (None, [])
    assert {key: second.record[key] for key in first.record} == first.record


def test_no_file_of_a_finished_run_is_written_again(source, tmp_path):
    quantize(source, tmp_path / "out", method="rtn")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    quantize(source, tmp_path / "out", method="rtn")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 8}, "recipe.bits 4, this one has 8"),
        ({"group_size": 64}, "recipe.group_size 32, this one has 64"),
        ({"symmetric": False}, "recipe.symmetric True, this one has False"),
        ({"act_order": "none"}, "recipe.act_order static, this one has none"),
        ({"damp_percent": 0.1}, "recipe.damp_percent 0.05, this one has 0.1"),
        ({"scales": "minmax"}, "recipe.scales search, this one has minmax"),
        ({"method": "rtn"}, "recipe.method gptq, this one has rtn"),
        ({"max_shard_size": "1MB"}, "recipe.max_shard_size 5GB, this one has 1MB"),
        ({"skip": ["lm_head", "model.layers.0"]}, "recipe.skip"),
        ({"calibration": {**SMALL["calibration"], "seed": 1}}, "calibration_sha256"),
        ({"calibration": {**SMALL["calibration"], "samples": 9}}, "calibration_sha256"),
        ({"calibration": {**SMALL["calibration"], "text": ["english"]}}, "calibration_sha256"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(source, tmp_path, changed, message):
    interrupted(source, tmp_path / "out", Recorder(layer=0))
    before = digests(tmp_path / "out", "*")
    with pytest.raises(BadInputError) as caught:
        quantize(source, tmp_path / "out", **changed)
    assert str(caught.value).startswith(f"{tmp_path / 'out'} holds a run with ")
    assert message in str(caught.value)
    assert caught.value.hint == "choose another --out, or --restart to begin anew"
    assert digests(tmp_path / "out", "*") == before


def test_another_version_of_a_library_is_refused_by_name(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", Recorder(layer=0))
    monkeypatch.setattr("quantkit.pipeline.gptq.versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(BadInputError, match=r"holds a run with version\.torch .*, this one has 1\.0$"):
        quantize(source, tmp_path / "out")


def test_another_dtype_of_computation_is_refused(source, tmp_path):
    job = job_of(source, tmp_path / "out")
    other = torch.float32 if job.device.dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(KeyboardInterrupt):
        run(job, Recorder(layer=0))
    with pytest.raises(BadInputError, match="holds a run with compute cpu "):
        run(replace(job, device=replace(job.device, dtype=other)))


def test_what_does_not_change_the_bytes_may_change(source, whole, tmp_path):
    interrupted(source, tmp_path / "out", Recorder(layer=0))
    quantize(source, tmp_path / "out", targets=["transformers", "vllm"])
    assert_same(tmp_path / "out", whole())


def test_other_weights_in_the_same_folder_are_refused(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "source")
    interrupted(copy, tmp_path / "out", Recorder(layer=0))
    weights = stored(copy)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    tiny.write_weights(copy, weights, "sharded")
    with pytest.raises(BadInputError, match=r"holds a run with source\.model-00003-of-00003\.safetensors "):
        quantize(copy, tmp_path / "out")


def test_a_source_that_moved_is_the_same(source, whole, tmp_path):
    copy = shutil.copytree(source, tmp_path / "first")
    interrupted(copy, tmp_path / "out", Recorder(layer=0))
    quantize(copy.rename(tmp_path / "second"), tmp_path / "out")
    assert_same(tmp_path / "out", whole())


def test_a_folder_with_other_files_is_refused_and_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInputError) as caught:
        quantize(source, tmp_path / "out")
    assert str(caught.value) == (f"{tmp_path / 'out'} holds thesis.txt and no run.json: it is not a folder of quantkit")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_folder_of_the_source_is_no_output(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "source")
    before = digests(copy, "*")
    with pytest.raises(BadInputError, match="it is not a folder of quantkit"):
        quantize(copy, copy)
    assert digests(copy, "*") == before


def test_an_output_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInputError, match="is a file, expected a folder"):
        quantize(source, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_missing_folders_above_the_output_are_made(source, tmp_path):
    quantize(source, tmp_path / "a" / "b" / "out", method="rtn")
    assert (tmp_path / "a" / "b" / "out" / "config.json").exists()


def test_a_disk_that_gives_back_something_else_is_noticed(source, whole, tmp_path, monkeypatch):
    from quantkit.weights.shards import ShardWriter

    original = ShardWriter.read_back

    def flipped(self, name):
        tensor = original(self, name)
        if name == "model.layers.1.self_attn.k_proj.qweight":
            tensor.view(-1)[7] ^= 1 << 9
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "read_back", flipped)
        with pytest.raises(QuantkitError) as caught:
            quantize(source, tmp_path / "out")
    assert str(caught.value).startswith("model.layers.1.self_attn.k_proj reads back differently: qweight")
    assert caught.value.hint == "check the disk"
    assert not (tmp_path / "out" / "config.json").exists()
    quantize(source, tmp_path / "out")  # nothing of it was kept
    assert_same(tmp_path / "out", whole())


@pytest.mark.parametrize("harm", ["truncated partial", "lost partial", "lost shard"])
def test_bytes_of_finished_layers_that_are_gone_are_made_again_or_reported_at_once(source, whole, tmp_path, harm):
    interrupted(source, tmp_path / "out", Recorder(layer=1), **SHARDED)
    if harm == "lost shard":
        (tmp_path / "out" / "model-00001-of-00004.safetensors").unlink()
    else:
        (partial,) = (tmp_path / "out").glob(".*.partial")
        with partial.open("r+b") as file:
            file.truncate(partial.stat().st_size // 2)
        if harm == "lost partial":
            partial.unlink()
    progress = Recorder()
    try:
        quantize(source, tmp_path / "out", progress, **SHARDED)
    except QuantkitError:
        assert not progress.linears
    else:
        assert_same(tmp_path / "out", whole("gptq", **SHARDED))


@pytest.mark.parametrize(
    "lost",
    [
        "config.json",
        pytest.param("model.safetensors"),
        pytest.param("quantize_config.json"),
        pytest.param("tokenizer.json"),
    ],
)
def test_a_file_of_a_finished_run_that_was_lost_is_made_again(source, whole, tmp_path, lost):
    quantize(source, tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    quantize(source, tmp_path / "out")
    assert_same(tmp_path / "out", whole())


def test_the_job_of_another_prepare_continues_too(source, whole, tmp_path):
    job = job_of(source, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, Recorder(layer=1))
    run(job)
    assert_same(tmp_path / "out", whole())
    assert CALIBRATION.samples == 8
