"""GGUF files of a repository that the disk does not hold: what crosses the network, and what stands on the disk."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import streams
import tiny
import torch
from artifacts import SMALL
from gguf_runs import asked_here, content, files_of, give_tokenizer
from gguf_variants import make
from safetensors.torch import load_file
from streams import LAYERS, REPO, SHARDS, Watched, downloaded, sharded, split

from quantkit.cli import _run
from quantkit.errors import BadInputError, DiskError, NetworkError, UsageError
from quantkit.pipeline import gguf_slabs
from quantkit.pipeline.gguf_convert import ImatrixWish, convert, plan
from quantkit.pipeline.gguf_job import GgufOptions
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.pipeline.look import look_for_gguf
from quantkit.progress import Silent
from quantkit.recipe import Calibration, make_recipe
from quantkit.weights.streamed import SHARD_FOLDER, Stopped, StreamedSource

published, each_fetch, fetched = streams.published, streams.each_fetch, streams.fetched
TEXT = Calibration(samples=2, sequence_length=32)
SOME_BYTES = 100_000  # of a shard
WIDE = {"hidden_size": 64, "num_hidden_layers": 6}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
    monkeypatch.setattr(gguf_slabs, "SLAB_WEIGHTS", 5000)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("small"), 7, **WIDE)


def made(out, *types, stream=True, wish=None, progress=None, checkpoint=None):
    """`quantkit gguf some/seventy --out OUT --type ... --stream`."""
    asked = GgufOptions(types, out=out, threads=2)
    checkpoint = checkpoint or look_for_gguf(REPO)
    return convert(checkpoint, asked, wish or ImatrixWish(), progress or Silent(), stream=stream)


def planned(out, *types, stream=True, wish=None):
    return plan(look_for_gguf(REPO), GgufOptions(types, out=out), wish or ImatrixWish(), stream=stream)


def same_bytes(streamed, tmp_path, *types, **options):
    """Whether files are those that a download makes."""
    other = made(tmp_path / "downloaded", *types, stream=False, **options)
    return [path.read_bytes() for path in files_of(streamed)] == [path.read_bytes() for path in files_of(other)]


def open_but_deleted():
    """Shards that take room on the disk without a name."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if SHARD_FOLDER in link.parts and link.name.endswith("(deleted)")]


def test_a_70b_shaped_repository_takes_the_disk_of_two_shards(
    published, loopback, tmp_path, tmp_path_factory, each_fetch
):
    files = published(sharded(tmp_path_factory.mktemp("seventy"), SHARDS, num_hidden_layers=LAYERS))
    out = tmp_path / "out"
    watched, unnamed = Watched(out), []
    each_fetch += [watched.look, lambda: unnamed.extend(open_but_deleted())]
    job = planned(out, "Q8_0", "Q4_0")
    assert job.streamed
    loopback.log.clear()
    result = made(out, "Q8_0", "Q4_0", progress=watched, checkpoint=job.model.checkpoint)
    shares = downloaded(loopback, files)
    largest = sum(sorted(files.values())[-2:])
    artifact = sum(path.stat().st_size for path in out.iterdir())
    assert 0 < watched.shards <= largest
    assert watched.most <= artifact + largest
    assert unnamed == []
    assert job.budget.disk_bytes == sum(record["bytes"] for record in result.records) + largest
    assert not (out / SHARD_FOLDER).exists()
    assert all(1 <= share < 1.01 for share in shares.values()), shares  # each crossed the network once
    assert same_bytes(result, tmp_path, "Q8_0", "Q4_0")


@pytest.mark.parametrize("seed", [1, 2])
def test_wherever_tensors_lie_each_shard_comes_once(published, each_fetch, fetched, tmp_path, seed):
    folder = tiny.make_model(tmp_path / "model", dtype=torch.bfloat16, **WIDE)
    names = sorted(load_file(folder / "model.safetensors"))
    files = published(split(folder, 9, random.Random(seed).sample(names, len(names))))
    watched = Watched(tmp_path / "out")
    each_fetch.append(watched.look)
    result = made(tmp_path / "out", "Q8_0")
    assert fetched == sorted(files)
    assert watched.shards <= sum(sorted(files.values())[-2:])
    assert same_bytes(result, tmp_path, "Q8_0")


def test_experts_that_are_stacked_from_many_shards(published, each_fetch, fetched, tmp_path):
    folder = give_tokenizer(make(tmp_path / "model", "MixtralForCausalLM-published"))
    names = sorted(load_file(folder / "model.safetensors"))  # as is usual: experts of a layer side by side, w1 to w3
    files = published(split(folder, 13, names))
    watched = Watched(tmp_path / "out")
    each_fetch.append(watched.look)
    result = made(tmp_path / "out", "Q8_0")
    assert fetched == sorted(files)
    assert watched.shards <= sum(sorted(files.values())[-2:])
    assert same_bytes(result, tmp_path, "Q8_0")


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_after_a_crash_only_the_shards_of_unfinished_tensors_are_fetched(published, fetched, small, tmp_path, layer):
    files = published(small)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        made(out, "Q8_0", "F16", progress=Watched(out, layer))
    kept = {path.name for path in (out / SHARD_FOLDER).rglob("*.safetensors")}
    finished = set()
    for number, journal in enumerate(sorted(out.glob("*.jsonl"))):
        lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        own = {name for line in lines for name in line["finished"]}
        finished = finished & own if number else own
    job = planned(out, "Q8_0", "F16")
    needed = {
        name for row in job.model.rows if row.name not in finished for name in job.model.shards(row.assembly.sources)
    }
    assert kept <= files.keys()
    assert len(kept) <= 2
    assert needed < files.keys()
    fetched.clear()
    result = made(out, "Q8_0", "F16")
    assert fetched == sorted(needed - kept)
    assert same_bytes(result, tmp_path, "Q8_0", "F16")


def test_a_run_continues_on_a_disk_that_it_has_filled_itself(published, small, tmp_path, monkeypatch):
    published(small)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        made(out, "Q8_0", progress=Watched(out, 2))
    taken = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    room = planned(out, "Q8_0").budget.disk_bytes - taken + 2**14  # journal and records
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room))
    made(out, "Q8_0")


@pytest.mark.parametrize("free", ["all", "shards", "nothing"])
def test_the_disk_decides_where_the_user_does_not(published, small, tmp_path, monkeypatch, free):
    files = published(small)
    job = planned(tmp_path / "out", "Q8_0", stream=None)
    assert not job.streamed
    artifact, largest = job.outputs[0].nbytes, sum(sorted(files.values())[-2:])
    rooms = {"all": artifact + job.model.checkpoint.download_bytes, "shards": artifact + largest, "nothing": artifact}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=rooms[free] + 1))
    assert planned(tmp_path / "out", "Q8_0", stream=None).streamed == (free == "shards")
    if free == "nothing":
        with pytest.raises(DiskError, match=r"of disk, .* free: .* missing") as caught:
            made(tmp_path / "out", "Q8_0", stream=None)
        assert caught.value.hint.startswith("give --stream, ")
        assert not (tmp_path / "out").exists()


# What it is made from.


@pytest.mark.parametrize("tied", [False, True])
def test_bin_shards_are_streamed_too(published, fetched, tmp_path, tied):
    folder = tmp_path / "model"
    files = published(tiny.make_model(folder, dtype=torch.bfloat16, layout="bin-sharded", tie_word_embeddings=tied))
    result = made(tmp_path / "out", "Q8_0")
    assert fetched == sorted(files)
    assert same_bytes(result, tmp_path, "Q8_0")


@pytest.mark.parametrize("shards", [1, 8])
def test_a_gptq_repository_is_streamed_too(published, sources, each_fetch, fetched, tmp_path, shards):
    """The tensors of a linear may lie in two shards."""
    folder = tmp_path / "quantized"
    recipe = make_recipe(SMALL | {"method": "rtn"})
    run(prepare(str(sources(dtype=torch.float16)), recipe, output=folder, device="cpu"))
    files = published(split(folder, shards, sorted(load_file(folder / "model.safetensors"))))
    watched = Watched(tmp_path / "out")
    each_fetch.append(watched.look)
    result = made(tmp_path / "out", "Q8_0", "Q4_0")
    assert fetched == sorted(files)
    assert watched.shards <= sum(sorted(files.values())[-2:])
    assert not (tmp_path / "out" / SHARD_FOLDER).exists()
    assert same_bytes(result, tmp_path, "Q8_0", "Q4_0")


def test_an_importance_matrix_of_its_own_takes_a_second_pass(published, small, each_fetch, fetched, tmp_path):
    files, wish = published(small), ImatrixWish("auto", TEXT, "cpu")
    job = planned(tmp_path / "out", "Q4_0", wish=wish)
    assert any("crosses the network twice" in note for note in job.notes)
    watched = Watched(tmp_path / "out")
    each_fetch.append(watched.look)
    result = made(tmp_path / "out", "Q4_0", wish=wish)
    first, second = fetched[: len(files)], fetched[len(files) :]
    assert first == sorted(files)
    assert second == sorted(files)[: len(second)]  # the last ones are still there
    assert len(second) >= len(files) - 2
    assert watched.shards <= sum(sorted(files.values())[-2:])
    fetched.clear()
    assert same_bytes(result, tmp_path, "Q4_0", wish=wish)
    (imatrix,) = (tmp_path / "out").glob("*imatrix.gguf")
    again = made(tmp_path / "again", "Q8_0", "Q4_0", wish=ImatrixWish(str(imatrix)))
    assert fetched == []  # it is in the cache now, and read from there
    assert content(files_of(again)[1]) == content(files_of(result)[0])


def test_bare_pickles_cannot_be_streamed(published, tmp_path):
    folder = tiny.make_model(tmp_path / "model", layout="bin")
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    published(folder)
    with pytest.raises(BadInputError, match="some/seventy cannot be streamed: the headers"):
        made(tmp_path / "out", "Q8_0")


# What goes wrong.


def test_a_network_that_goes_away_keeps_what_is_finished(published, loopback, small, tmp_path):
    published(small)
    out = tmp_path / "out"

    class Cut(Watched):
        def layer(self, index, seconds):
            if index == 1:
                loopback.fail("/", 503, times=float("inf"))

    with pytest.raises(NetworkError):
        made(out, "Q8_0", progress=Cut(out))
    assert not list(out.glob("*.gguf"))
    loopback.faults.clear()
    assert same_bytes(made(out, "Q8_0"), tmp_path, "Q8_0")


def test_what_had_come_of_a_shard_is_not_fetched_again(published, loopback, tmp_path, monkeypatch):
    """Ctrl-C does not wait for the shard that is on its way."""
    folder = sharded(tmp_path / "model", 2, hidden_size=256)
    files, out, before = published(folder), tmp_path / "out", StreamedSource.go_on

    def go_on(self, count):
        if sum(path.stat().st_size for path in out.rglob(".*.partial") if path.is_file()) > SOME_BYTES:
            self._closed = True  # as `close` does
        before(self, count)

    with monkeypatch.context() as patch:
        patch.setattr(StreamedSource, "go_on", go_on)
        with pytest.raises(Stopped):
            made(out, "Q8_0")
    first = min(files)
    (begun,) = (out / SHARD_FOLDER).rglob(f".{first}.*.partial")
    kept = begun.stat().st_size
    assert SOME_BYTES < kept < files[first]
    checkpoint = look_for_gguf(REPO)
    loopback.log.clear()
    result = made(out, "Q8_0", checkpoint=checkpoint)
    assert downloaded(loopback, files)[first] * files[first] < files[first] - kept + 2000  # and a redirect
    assert same_bytes(result, tmp_path, "Q8_0")


def test_a_folder_cannot_be_streamed(small, tmp_path):
    with pytest.raises(UsageError, match="is a folder: only a repository can be streamed"):
        convert(
            look_for_gguf(str(small)),
            GgufOptions(("Q8_0",), out=tmp_path / "out"),
            ImatrixWish(),
            Silent(),
            stream=True,
        )


def test_the_plan_says_so(published, small, tmp_path, capsys):
    published(small)
    command = ["gguf", REPO, "--type", "Q8_0", "--out", str(tmp_path / "out"), "--dry-run"]
    for option, said in (("--stream", True), ("--no-stream", False)):
        assert _run([*command, option], False) == 0
        assert (", streamed: two shards at a time" in capsys.readouterr().out) == said
        assert _run([*command, option, "--json"], False) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["streamed"] == said
        assert found["budget"]["disk_bytes"] < found["outputs"][0]["bytes"] + found["budget"]["download_bytes"] + (
            not said
        )
