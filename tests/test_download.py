"""Downloads into the client's cache and into folders: the client finds what is there, and nothing comes twice."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock
from loopback.faults import ALWAYS

from quantkit.errors import BadInputError, DiskError, NetworkError, UsageError
from quantkit.hub import download as download_module
from quantkit.hub.download import Places, download, missing_bytes
from quantkit.hub.repository import needed_files, resolve
from quantkit.pipeline.download import prepare, run
from quantkit.progress import Silent
from quantkit.weights import remote, transfer

REPO = "some/model"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
WEIGHTS = {name: random.Random(name).randbytes(400_000) for name in SHARDS}
SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}" + b" " * 50_000,
    "README.md": b"---\nlicense: mit\n---\n",
    "LICENSE": b"as is",
    "LICENSE.txt": b"as is",
    INDEX: json.dumps({"weight_map": {str(number): name for number, name in enumerate(SHARDS)}}).encode(),
}
NEEDED = SMALL | WEIGHTS
FILES = NEEDED | {"pytorch_model.bin": b"another framework's", "modeling_x.py": b"raise SystemExit", "x/y.json": b"{}"}
SIZE = sum(map(len, NEEDED.values()))


class Told(Silent):
    def __init__(self):
        self.said, self.parts = [], []

    def say(self, line):
        self.said.append(line)

    def transfer(self, done, total):
        self.parts.append((done, total))


@pytest.fixture
def hub(loopback, hub_client, monkeypatch, tmp_path):
    loopback.add_repo(REPO, FILES)
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.chdir(tmp_path)
    return loopback


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.endswith((".partial", ".incomplete", ".tmp"))]


def test_the_cache_is_laid_out_as_the_client_does_it(hub, tmp_path):
    snapshot = resolve(REPO, "main")
    folder = download(snapshot, needed_files(snapshot.files))
    patterns = list(NEEDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "genuine"))
        theirs = HfApi(endpoint=hub.url, token=hub.token).snapshot_download(REPO, allow_patterns=patterns)
    ours, theirs = tmp_path / "cache", tmp_path / "genuine"

    def layout(root):
        paths = [path for path in root.rglob("*") if path.is_file() and "trees" not in path.parts]
        return {
            str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in paths
            if path.name != "CACHEDIR.TAG"
        }

    assert layout(ours) == layout(theirs)
    tags = [(root / "CACHEDIR.TAG").read_text().splitlines()[0] for root in (ours, theirs)]
    assert tags[0] == tags[1]
    assert contents(folder) == NEEDED


def test_the_client_finds_the_files_without_the_hub(hub):
    snapshot = resolve(REPO)
    folder = download(snapshot, needed_files(snapshot.files))
    hub.log.clear()
    assert snapshot_download(REPO, local_files_only=True) == str(folder)
    for name in NEEDED:
        assert try_to_load_from_cache(REPO, name) == str(folder / name)
        assert try_to_load_from_cache(REPO, name, revision=snapshot.commit) == str(folder / name)
    [cached] = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert cached.size_on_disk == SIZE - len(SMALL["LICENSE"])  # the two licences are one blob
    assert hub.requests == []


def test_nothing_comes_twice(hub):
    snapshot, told = resolve(REPO), Told()
    files = needed_files(snapshot.files)
    assert missing_bytes(snapshot, files) == SIZE
    download(snapshot, files, told)
    assert told.parts[-1] == (SIZE, SIZE)
    assert missing_bytes(snapshot, files) == 0
    hub.log.clear()
    download(snapshot, files, told)
    assert hub.requests == []
    hub.commit(REPO, {"config.json": b'{"model_type": "qwen2"}'})
    later = resolve(REPO)
    folder = download(later, needed_files(later.files))
    assert [request.path.rpartition("/")[2] for request in hub.find("resolve")] == ["config.json"]
    assert contents(folder) == NEEDED | {"config.json": b'{"model_type": "qwen2"}'}


def test_what_the_genuine_client_has_fetched_is_taken(hub):
    snapshot_download(REPO, allow_patterns=[SHARDS[0], "config.json"], endpoint=hub.url)
    hub.log.clear()
    snapshot = resolve(REPO)
    download(snapshot, needed_files(snapshot.files))
    assert not hub.find(SHARDS[0])
    assert hub.find(SHARDS[1])


@pytest.mark.parametrize(
    "kind", ["reset", "close", "stall", "short", "flip", "ignore_range", "drop", 503, 429, "expired"]
)
def test_one_fault_on_every_file_is_ridden_out(hub, kind):
    snapshot = resolve(REPO)
    files = needed_files(snapshot.files)
    for name in files:
        if name == "LICENSE":  # its faults would strike LICENSE.txt, too
            continue
        if kind == "ignore_range":
            hub.fail(name, "close", after=1)
        hub.fail(name, kind, after=1)
    assert contents(download(snapshot, files)) == NEEDED
    assert [fault for fault in hub.faults.left if fault.where in WEIGHTS] == []
    assert leftovers(Places(snapshot).root) == []


def test_one_file_that_does_not_come_stops_the_others(hub):
    snapshot = resolve(REPO)
    hub.fail(SHARDS[1], 503, times=ALWAYS)
    with pytest.raises(NetworkError, match="HTTP 503"):
        download(snapshot, needed_files(snapshot.files))
    hub.faults.clear()
    hub.log.clear()
    assert contents(download(snapshot, needed_files(snapshot.files))) == NEEDED


def test_wrong_bytes_never_get_a_name(hub):
    snapshot = resolve(REPO)
    hub.fail(SHARDS[1], "flip", times=ALWAYS, after=1000)
    with pytest.raises(BadInputError, match=f"{SHARDS[1]} with the sha256 .* expected {snapshot.oids[SHARDS[1]]}"):
        download(snapshot, needed_files(snapshot.files))
    places = Places(snapshot)
    assert not places.link(SHARDS[1]).exists()
    assert not places.blob(SHARDS[1]).exists()


def test_all_files_are_of_one_commit(hub):
    snapshot = resolve(REPO)
    hub.fail("config.json", "drop")
    pushed = []

    class Pushing(Told):
        def transfer(self, done, total):
            if done and not pushed:
                pushed.append(hub.commit(REPO, dict.fromkeys(SHARDS, b"newer") | {"config.json": b"{}"}))

    folder = download(snapshot, needed_files(snapshot.files), Pushing())
    assert len(pushed) == 1
    assert pushed[0] != snapshot.commit == folder.name
    assert contents(folder) == NEEDED


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(hub, monkeypatch, tmp_path):
    snapshot = resolve(REPO)
    files = needed_files(snapshot.files)
    free = shutil.disk_usage(tmp_path)._replace(free=SIZE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    hub.log.clear()
    with pytest.raises(DiskError, match=r"1\.25 MB free, expected 1\.25 MB for the download \(1 B missing\)"):
        download(snapshot, files)
    with pytest.raises(DiskError, match="out has"):
        run(prepare(REPO, tmp_path / "out"), Silent())
    assert not hub.find("resolve/")
    free = free._replace(free=SIZE)
    download(snapshot, files)


def test_a_second_process_waits_for_the_first(hub, monkeypatch):
    monkeypatch.setattr(download_module, "LOCK_SECONDS", 0.02)
    snapshot, told = resolve(REPO), Told()
    places = Places(snapshot)
    places.locks.mkdir(parents=True)
    lock = WeakFileLock(places.locks / f"{snapshot.oids[SHARDS[0]]}.lock")
    held = contextlib.ExitStack()
    held.enter_context(lock)

    class Other(Told):
        def say(self, line):
            super().say(line)
            places.blob(SHARDS[0]).write_bytes(WEIGHTS[SHARDS[0]])
            held.close()

    other = Other()
    assert contents(download(snapshot, needed_files(snapshot.files), other)) == NEEDED
    assert other.said == [f"another process downloads {SHARDS[0]}; waiting for it"]
    assert not hub.find(SHARDS[0])
    assert told.said == []


def command(hub, tmp_path, *arguments):
    environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "quantkit.cli", "download", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_each_file_once(hub, tmp_path):
    both = [command(hub, tmp_path, REPO, "--json") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert contents(type(tmp_path)(json.loads(out)["folder"])) == NEEDED
    assert sum(hub.sent(name, "cdn") for name in WEIGHTS) == sum(map(len, WEIGHTS.values()))


@pytest.mark.parametrize("into_cache", [True, False])
def test_killed_again_and_again(loopback, tmp_path, into_cache):
    """However often it is killed, what has come is not sent again, and nothing is left beside the files."""
    weights = random.Random(2).randbytes(12_000_000)
    loopback.add_repo(REPO, {"config.json": SMALL["config.json"], "model.safetensors": weights})
    arguments = [REPO, "--json"] if into_cache else [REPO, "--out", str(tmp_path / "out"), "--json"]
    for _ in range(4):
        before = loopback.sent("model.safetensors", "cdn")
        loopback.fail("model.safetensors", "stall", after=2_000_000, origin="cdn")
        process = command(loopback, tmp_path, *arguments)
        grown = wait_for(lambda: loopback.sent("model.safetensors", "cdn") - before >= 2_000_000)  # noqa: B023
        assert grown, process.communicate()
        wait_for(lambda: sum(path.stat().st_size for path in leftovers(tmp_path)) >= before + 1_900_000)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = command(loopback, tmp_path, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    folder = type(tmp_path)(json.loads(out)["folder"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert loopback.sent("model.safetensors", "cdn") <= 1.2 * len(weights)
    assert leftovers(tmp_path) == []
    assert loopback.token not in out + err


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_folder_of_the_users(hub, tmp_path):
    out = tmp_path / "deep" / "out"
    record = run(prepare(f"{REPO}@main", out), Silent())
    assert contents(out) == NEEDED
    assert not any(path.is_symlink() for path in out.iterdir())
    assert not (tmp_path / "cache").exists()
    assert (record["repo"], record["revision"], record["commit"]) == (REPO, "main", hub.head(REPO))
    assert (record["bytes"], record["fetched"]) == (SIZE, sorted(NEEDED))
    assert record["schema_version"] == 1
    hub.log.clear()
    assert run(prepare(REPO, out), Silent())["fetched"] == []
    assert not hub.find("/resolve/")
    (out / "tokenizer.json").write_bytes(b"[]" + b" " * 50_000)  # of the right size
    (out / SHARDS[2]).write_bytes(b"short")
    assert run(prepare(REPO, out), Silent())["fetched"] == sorted(["tokenizer.json", SHARDS[2]])
    assert contents(out) == NEEDED


def test_a_folder_takes_what_the_cache_has(hub, tmp_path):
    snapshot = resolve(REPO)
    folder = download(snapshot, needed_files(snapshot.files))
    (folder / SHARDS[0]).resolve().write_bytes(bytes(len(WEIGHTS[SHARDS[0]])))  # of the right size
    told = Told()
    record = run(prepare(REPO, tmp_path / "out"), told)
    assert record["fetched"] == [SHARDS[0]]
    assert contents(tmp_path / "out") == NEEDED
    assert told.parts[-1] == (SIZE, SIZE)


def test_a_folder_with_another_checkpoint_is_refused(hub, tmp_path):
    out = tmp_path / "out"
    for name in ("tokenizer.model", "pytorch_model-1.bin", "model-00004-of-00004.safetensors"):
        out.mkdir()
        (out / "pytorch_model.bin").write_bytes(FILES["pytorch_model.bin"])  # of the repository, though not needed
        (out / name).write_bytes(b"another's")
        (out / "notes.txt").write_bytes(b"the user's")
        with pytest.raises(BadInputError, match=f"holds {name}, which is no file of {REPO}"):
            prepare(REPO, out)
        shutil.rmtree(out)
    out.write_bytes(b"")
    with pytest.raises(BadInputError, match="is a file"):
        prepare(REPO, out)


def test_offline_a_folder_comes_from_the_cache(hub, tmp_path, monkeypatch):
    snapshot = resolve(REPO)
    download(snapshot, needed_files(snapshot.files))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run(prepare(REPO, tmp_path / "out"), Silent())
    assert contents(tmp_path / "out") == NEEDED


def test_a_renamed_repository_is_followed(hub):
    hub.rename(REPO, "new/name")
    told = Told()
    record = run(prepare(REPO), told)
    assert record["repo"] == "new/name"
    assert told.said == [f"{REPO} is called new/name now"]
    assert "models--new--name" in record["folder"]


def test_the_plan_says_what_is_missing(hub, tmp_path):
    snapshot = resolve(REPO)
    download(snapshot, ["config.json", SHARDS[0]])
    blob = Places(snapshot).blob(SHARDS[1])
    transfer.partial_path(blob, snapshot.oids[SHARDS[1]]).write_bytes(WEIGHTS[SHARDS[1]][:100_000])
    hub.log.clear()
    plan = prepare(REPO).as_dict()
    missing = {row["name"]: row["missing"] for row in plan["files"]}
    assert (missing["config.json"], missing[SHARDS[0]], missing[SHARDS[1]]) == (0, 0, 300_000)
    assert (plan["bytes"], plan["missing_bytes"]) == (SIZE, sum(missing.values()))
    assert plan["free_bytes"] > 0
    assert len(hub.requests) == 1
    assert prepare(REPO, tmp_path / "absent").as_dict()["missing_bytes"] == SIZE
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("reference", ["", "name", "./some/model", "some/model@", "https://huggingface.co/some/model"])
def test_references_of_another_form(reference):
    with pytest.raises(UsageError, match="no repository"):
        prepare(reference)


def test_a_mirror_without_hashes_is_refused(hub, monkeypatch):
    snapshot = resolve(REPO)
    bare = remote.RepoSnapshot(REPO, None, snapshot.commit, snapshot.files)
    with pytest.raises(BadInputError, match="found no hash of"):
        download(bare, ["config.json"])
