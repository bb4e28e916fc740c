"""A repository larger than the disk: what crosses the network, what stands on the disk, and what a crash costs."""

import shutil
from types import SimpleNamespace

import pytest
import streams
import torch
from processes import contents
from streams import LAYERS, REPO, SHARDS, Watched, downloaded, sharded

from quantkit.errors import DiskError, NetworkError
from quantkit.pipeline.check_job import CheckOptions
from quantkit.pipeline.gptq import run, run_together
from quantkit.pipeline.job import prepare
from quantkit.pipeline.look import look
from quantkit.pipeline.same_pass import SamePassCheck
from quantkit.plan.budget import SMALL_FILES
from quantkit.recipe import make_recipe
from quantkit.weights.streamed import SHARD_FOLDER

published, each_fetch = streams.published, streams.each_fetch
RECIPE = {"bits": 4, "group_size": 32, "calibration": {"text": ["english"], "samples": 2, "sequence_length": 16}}


@pytest.fixture(scope="module")
def seventy(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("seventy"), SHARDS, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("small"), 7, num_hidden_layers=6)


@pytest.fixture(scope="module")
def local(small, tmp_path_factory):
    """The artifact of the small checkpoint as a folder, without any network."""
    patch = pytest.MonkeyPatch()
    patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    output = tmp_path_factory.mktemp("local") / "out"
    run(prepare(str(small), make_recipe(RECIPE), output=output, device="cpu"))
    patch.undo()
    return output


def job_of(output, stream=True, **changes):
    return prepare(look(REPO), make_recipe(RECIPE | changes), output=output, device="cpu", stream=stream)


def test_a_70b_shaped_repository_takes_the_disk_of_two_shards(published, loopback, seventy, tmp_path, each_fetch):
    files = published(seventy)
    output = tmp_path / "out"
    watched = Watched(output)
    each_fetch.append(watched.look)
    job = job_of(output)
    assert job.streamed
    loopback.log.clear()  # headers were read for the plan
    run(job, watched)
    largest = sum(sorted(files.values())[-2:])
    artifact = sum(path.stat().st_size for path in output.iterdir())
    assert watched.shards <= largest
    assert watched.most <= artifact + largest
    assert watched.most <= job.budget.disk_bytes < artifact + sum(files.values()) + 20 * 2**20
    assert all(share < 1.01 for share in downloaded(loopback, files).values())  # each crossed the network once
    assert not (output / SHARD_FOLDER).exists()
    # The same bytes as from a folder.
    run(prepare(str(seventy), make_recipe(RECIPE), output=tmp_path / "local", device="cpu"))
    assert weights(output) == weights(tmp_path / "local")


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_after_a_crash_only_the_shards_of_unfinished_layers_are_fetched(
    published, loopback, small, local, tmp_path, layer
):
    files = published(small)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(job_of(output), Watched(output, layer))
    job = job_of(output)
    kept = {path.name for path in (output / SHARD_FOLDER).rglob("*.safetensors")}
    needed = {
        row.source.file
        for row in job.plan.rows
        if (row.layer is None and row.name != "model.embed_tokens.weight") or (row.layer or 0) > layer
    }
    loopback.log.clear()
    run(job)
    fetched = {name for name, share in downloaded(loopback, files).items() if share}
    assert fetched <= needed - kept
    assert weights(output) == weights(local)


def test_the_check_of_the_same_pass_fetches_nothing_twice_even_after_a_crash(published, loopback, small, tmp_path):
    files = published(small)
    options = CheckOptions(text=("spanish",), context=256)
    records = {}
    for name, last in (("whole", None), ("broken", 2)):
        output = tmp_path / name
        jobs = [job_of(output / bits, bits=int(bits)) for bits in ("4", "8")]
        loopback.log.clear()
        before = dict.fromkeys(files, 0.0)
        if last is not None:
            with pytest.raises(KeyboardInterrupt):
                run_together(jobs, Watched(output / "4", last), check=SamePassCheck(jobs, options))
            before = downloaded(loopback, files)
            jobs = [job_of(output / bits, bits=int(bits)) for bits in ("4", "8")]
            loopback.log.clear()  # headers, read again for the plan
        results = run_together(jobs, check=SamePassCheck(jobs, options))
        records[name] = [result.check["artifacts"] for result in results]
        shares = {file: before[file] + share for file, share in downloaded(loopback, files).items()}
        assert all(share < 1.01 for share in shares.values()), shares
        assert not list(output.rglob("*.partial"))
    assert records["whole"] == records["broken"]


def test_a_streamed_artifact_is_the_one_that_a_download_makes(published, small, local, tmp_path):
    published(small)
    run(job_of(tmp_path / "streamed"))
    run(job_of(tmp_path / "downloaded", stream=False))
    streamed, plain = contents(tmp_path / "streamed"), contents(tmp_path / "downloaded")
    assert streamed == plain
    assert weights(tmp_path / "streamed") == weights(local)


@pytest.mark.parametrize("free", ["all", "shards", "nothing"])
def test_the_disk_decides_where_the_user_does_not(published, small, tmp_path, monkeypatch, free):
    files = published(small)
    plain = job_of(tmp_path / "out", stream=None)
    assert not plain.streamed
    artifact, largest = plain.plan.artifact_bytes + SMALL_FILES, sum(sorted(files.values())[-2:])
    room = {"all": artifact + plain.checkpoint.download_bytes, "shards": artifact + largest, "nothing": artifact}[
        free
    ] + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room))
    assert job_of(tmp_path / "out", stream=None).streamed == (free == "shards")
    if free == "nothing":
        with pytest.raises(DiskError, match=r"of disk, .* free: .* missing") as caught:
            run(job_of(tmp_path / "out", stream=None))
        assert "give --stream" in caught.value.hint
        assert not (tmp_path / "out").exists()


def test_a_network_that_goes_away_keeps_what_is_finished(published, loopback, small, local, tmp_path, monkeypatch):
    published(small)
    output = tmp_path / "out"

    class Cut(Watched):
        def layer(self, index, seconds):
            if index == 1:
                loopback.fail("/", 503, times=float("inf"))

    job = job_of(output)
    with pytest.raises(NetworkError):
        run(job, Cut(output))
    assert not (output / "config.json").exists()
    loopback.faults.clear()
    run(job_of(output))
    assert weights(output) == weights(local)


def test_bin_shards_are_streamed_as_well(loopback, hub_client, sources, tmp_path):
    source = sources("llama", dtype=torch.bfloat16, layout="bin-sharded")
    loopback.add_repo(REPO, {path.name: path for path in source.iterdir()})
    job = job_of(tmp_path / "out")
    assert job.streamed
    loopback.log.clear()
    run(job)
    for path in source.glob("*.bin"):
        assert sum(request.sent for request in loopback.find(path.name, method="GET")) < 1.01 * path.stat().st_size
    run(prepare(str(source), make_recipe(RECIPE), output=tmp_path / "local", device="cpu"))
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
