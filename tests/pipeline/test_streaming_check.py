"""A check whose baseline the disk does not hold: the same record, from two shards at a time."""

import json
import shutil
from types import SimpleNamespace

import pytest
import streams
from gguf_runs import asked_here, converted
from streams import REPO, Watched, sharded

from quantkit.cli import _run
from quantkit.errors import BadInputError, DiskError, NetworkError, UsageError
from quantkit.pipeline.check import run
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.pipeline.gptq import run as quantize
from quantkit.pipeline.job import prepare as prepare_gptq
from quantkit.recipe import make_recipe
from quantkit.runlock import LOCK_FILE, locked
from quantkit.weights.streamed import SHARD_FOLDER

published, each_fetch, fetched = streams.published, streams.each_fetch, streams.fetched
OPTIONS = CheckOptions(text=("spanish",), context=256)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("small"), 7, num_hidden_layers=6)


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """A GPTQ folder and a GGUF file of the checkpoint, made from its folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
        patch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
        quantize(
            prepare_gptq(
                str(small), make_recipe({"method": "rtn", "group_size": 32}), output=folder / "int4", device="cpu"
            )
        )
        converted(small, folder / "model.gguf", "Q8_0")
    return folder


@pytest.fixture
def artifacts(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "made")
    return [str(folder / "int4"), str(folder / "model.gguf")]


def timeless(record):
    return {key: value for key, value in record.items() if key not in ("predicted", "measured")}


def test_the_record_is_that_of_a_download(published, small, artifacts, each_fetch, fetched):
    files = published(small)
    job = prepare(artifacts, REPO, OPTIONS, stream=True)
    watched = Watched(job.beside)
    each_fetch.append(watched.look)
    streamed = run(job, watched, write=False)
    assert fetched == sorted(files)  # each once
    assert 0 < watched.shards <= sum(sorted(files.values())[-2:])
    assert not (job.beside / SHARD_FOLDER).exists()
    assert not (job.beside / LOCK_FILE).exists()
    plain = prepare(artifacts, REPO, OPTIONS, stream=False)
    assert plain.beside is None
    found = run(plain, write=False)
    for key in found["baseline"]:
        assert found["baseline"][key] == streamed["baseline"][key], key
    assert timeless(found) == timeless(streamed)
    assert prepare(artifacts, REPO, OPTIONS, stream=True).beside is None  # it is in the cache now


def test_tied_heads(published, fetched, tmp_path):
    folder = sharded(tmp_path / "tied", 4, num_hidden_layers=4, tie_word_embeddings=True)
    files = published(folder)
    plain = run(prepare([str(folder)], str(folder), OPTIONS), write=False)
    found = run(prepare([str(folder)], REPO, OPTIONS, stream=True), write=False)
    assert found["artifacts"] == plain["artifacts"]
    assert fetched == sorted(files)  # the embedding's, which is also the head, stays


def test_shards_stand_in_the_working_folder_where_no_artifact_can_have_them(
    published, small, made, tmp_path, monkeypatch
):
    published(small)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("quantkit.pipeline.check_job.os.access", lambda *_: False)
    job = prepare([str(made / "int4")], REPO, OPTIONS, stream=True)
    assert job.beside == tmp_path / "here"
    run(job, write=False)
    assert list(job.beside.iterdir()) == []


@pytest.mark.parametrize("free", ["all", "shards", "nothing"])
def test_the_disk_decides_where_the_user_does_not(published, small, artifacts, monkeypatch, free):
    files = published(small)
    held = sum(sorted(files.values())[-2:])
    everything = sum(path.stat().st_size for path in small.iterdir())
    room = {"all": everything, "shards": held, "nothing": held - 2}[free] + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room))
    if free == "nothing":
        with pytest.raises(DiskError, match=r"free.*missing"):
            prepare(artifacts, REPO, OPTIONS)
        with pytest.raises(DiskError, match=r"the run needs .* of disk"):
            prepare(artifacts, REPO, OPTIONS, stream=True)
    else:
        assert (prepare(artifacts, REPO, OPTIONS).beside is not None) == (free == "shards")


@pytest.mark.parametrize("more", [{"prompts": "default"}, {"measure": True}, {"tasks": ("arc_easy",)}])
def test_what_reads_the_baseline_several_times_is_not_streamed(published, small, artifacts, monkeypatch, more):
    published(small)
    options = CheckOptions(text=("spanish",), context=256, **more)
    with pytest.raises(UsageError, match="it cannot be streamed"):
        prepare(artifacts, REPO, options, stream=True)
    monkeypatch.setattr("quantkit.pipeline.check_job.open_tasks", lambda *_: None)
    monkeypatch.setattr(
        "quantkit.pipeline.weightset.is_streamed",
        lambda *asked: pytest.fail("streams") if asked[-1] is not False else False,
    )
    assert prepare(artifacts, REPO, options).beside is None


def test_a_failure_leaves_no_shards(published, loopback, small, artifacts):
    published(small)
    job = prepare(artifacts, REPO, OPTIONS, stream=True)

    class Cut(Watched):
        def layer(self, index, seconds):
            loopback.fail("/", 503, times=float("inf"))

    with pytest.raises(NetworkError):
        run(job, Cut(job.beside), write=False)
    assert not (job.beside / SHARD_FOLDER).exists()


def test_an_artifact_that_a_run_holds_is_left_alone(published, small, artifacts):
    published(small)
    job = prepare(artifacts, REPO, OPTIONS, stream=True)
    with locked(job.beside), pytest.raises(BadInputError, match="is held by process"):
        run(job, write=False)


def test_from_the_command_line(published, small, artifacts, capsys):
    published(small)
    command = ["check", artifacts[1], "--baseline", REPO, "--text", "spanish", "--context", "256", "--stream"]
    assert _run([*command, "--dry-run", "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["streamed"]
    assert _run([*command, "--dry-run"], False) == 0
    assert "streamed: two shards at a time" in capsys.readouterr().out
    assert _run([*command, "--json", "--recipe", "gguf-q8_0"], False) in (0, 8)
    assert json.loads(capsys.readouterr().out)["baseline"]["repo"] == REPO
    assert _run([*command, "--prompts", "default"], False) == 2
    assert _run(["check", artifacts[1], "--baseline", str(small), "--stream"], False) == 2
    assert "is a folder: only a repository can be streamed" in capsys.readouterr().err
