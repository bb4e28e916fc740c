"""A conversion to GGUF that is killed, interrupted or out of disk: nothing half-made has a final name, and the same
command ends in the same bytes."""

import contextlib
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import test_disk
import tiny
import torch
from faults import Fault, Steps
from gguf_runs import WIDE, asked_here
from processes import HANG_SECONDS

from quantkit import signals
from quantkit.cli import _run, main
from quantkit.manifest import MANIFEST_FILE
from quantkit.pipeline import gguf_slabs
from quantkit.runlock import LOCK_FILE, locked
from quantkit.weights import gguf_write

disk, fill = test_disk.disk, test_disk.fill
KILLED = -signal.SIGKILL
CODES = {"SIGINT": 130, "SIGTERM": 143}
TYPES = ["--type", "Q4_K_M", "--type", "Q8_0"]
SPLIT = ["--split-max-size", "800KB"]
SLAB = 80_000  # weights
PARTIAL = (".partial", ".partial.jsonl")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Forked in milliseconds from this process, which has everything imported; every tensor in the journal at once."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
    monkeypatch.setattr("quantkit.vocab.proof.corpus", lambda special: [])
    monkeypatch.setattr(gguf_slabs, "SLAB_WEIGHTS", SLAB)
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("crash") / "model", dtype=torch.bfloat16, **WIDE)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The files of a run that nothing disturbed, by name, and the steps that it took."""
    folder = tmp_path_factory.mktemp("crash") / "out"
    with pytest.MonkeyPatch.context() as patch, Steps(folder).watched() as steps:
        patch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
        patch.setattr(gguf_slabs, "SLAB_WEIGHTS", SLAB)
        patch.setattr(gguf_write, "SYNC_BYTES", 1)
        assert _run(["gguf", str(source), "--out", str(folder), *TYPES, *SPLIT], False) == 0
    assert [step for step in steps.unsafe if step[0] == "replace"] == []  # nothing final before it is on the disk
    return contents(folder), len(steps.taken)


class Forked:
    """`quantkit gguf` in a process of its own."""

    def __init__(self, source, folder, fault=None, *, types=TYPES, more=SPLIT, delay=0.0, before=None):
        self.log = folder.with_name(f"{folder.name}.log")
        self.pid = os.fork()
        if self.pid:
            return
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
            slow(delay)
            with before or contextlib.nullcontext(), Steps(folder, fault).watched():
                main(["gguf", str(source), "--out", str(folder), *types, *more])
        except SystemExit as error:
            os._exit(int(error.code or 0))
        finally:
            os._exit(99)

    def wait(self):
        """The exit code; negative for a signal that killed it."""
        for _ in range(HANG_SECONDS * 1000):
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        pytest.fail(f"the command hung: {self.output}")

    @property
    def output(self):
        return self.log.read_text("utf-8")


def slow(seconds):
    """Every slab takes longer."""
    before = gguf_slabs.Worker.work

    def work(self, number, slab, wanted):
        before(self, number, slab, wanted)
        time.sleep(seconds)

    if seconds:
        gguf_slabs.Worker.work = work


def contents(folder):
    """What a folder holds, without what depends on time and machine."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in [name for name in found if name.endswith(".json")]:
        record = json.loads(found[name])
        found[name] = {key: value for key, value in record.items() if key not in ("measured", "predicted", "digest")}
        if name == MANIFEST_FILE:
            found[name]["files"] = {one: it for one, it in record["files"].items() if not one.endswith(".json")}
    return found


def assert_nothing_broken(folder, expected):
    """A file with a final name is whole, and a record that says so speaks of files that are there."""
    found = contents(folder) if folder.exists() else {}
    for name, data in found.items():
        if name.endswith(".gguf"):
            assert data == expected[name], name
        elif name.endswith(".quantkit.json") and not name.startswith("."):
            assert data["status"] in ("writing", "finished")
            if data["status"] == "finished":
                assert set(data["files"]) <= found.keys()
        elif name == MANIFEST_FILE:
            assert set(data["files"]) <= found.keys()
        else:
            assert name == LOCK_FILE or name.endswith(PARTIAL), name


def assert_continues(source, folder, expected, **options):
    run = Forked(source, folder, **options)
    assert run.wait() == 0, run.output
    assert contents(folder) == expected


# Killed.


def test_a_run_killed_at_any_step_continues_to_the_same_bytes(source, whole, tmp_path):
    expected, count = whole
    for number in sorted(
        {*range(1, count, 13), *range(count - 40, count, 3)}
    ):  # most at the end: files get their names
        folder = tmp_path / str(number)
        assert Forked(source, folder, Fault(number, "kill")).wait() in (KILLED, 0)  # threads differ in their steps
        assert_nothing_broken(folder, expected)
        assert_continues(source, folder, expected)


def test_a_run_killed_at_a_random_moment_continues_to_the_same_bytes(source, whole, tmp_path):
    expected, _ = whole
    moments, delay = random.Random(67), 0.003
    started = time.perf_counter()
    assert_continues(source, tmp_path / "timed", expected, delay=delay)
    duration = time.perf_counter() - started
    killed = 0
    for number in range(10):
        folder = tmp_path / str(number)
        run = Forked(source, folder, delay=delay)
        time.sleep(duration * (number + moments.random()) / 10)
        os.kill(run.pid, signal.SIGKILL)
        killed += run.wait() == KILLED
        assert_nothing_broken(folder, expected)
        assert_continues(source, folder, expected)
    assert killed  # the first one at least: nothing is done by then


def test_a_run_killed_again_and_again_gets_to_its_end(source, whole, tmp_path):
    expected, count = whole
    folder = tmp_path / "out"
    for number in range(20, count, 25):
        if Forked(source, folder, Fault(number, "kill")).wait() != KILLED:
            break
        assert_nothing_broken(folder, expected)
    assert_continues(source, folder, expected)


def test_what_is_finished_is_not_made_again(source, whole, tmp_path, monkeypatch):
    """The tensors in the journals of a killed run, and no others, are left alone by the next one."""
    expected, count = whole
    folder = tmp_path / "out"
    assert Forked(source, folder, Fault(count // 2, "kill")).wait() == KILLED
    kept = {}
    for path in folder.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        kept[path.name.removesuffix(".partial.jsonl")] = {name for line in lines for name in line["finished"]}
    assert sum(map(len, kept.values())) > 10
    made, lock, before = set(), threading.Lock(), gguf_write.GgufWriter.write

    def write(self, name, start, data):
        with lock:
            made.add((self.path.name.removesuffix(".partial"), name))
        before(self, name, start, data)

    monkeypatch.setattr(gguf_write.GgufWriter, "write", write)
    assert _run(["gguf", str(source), "--out", str(folder), *TYPES, *SPLIT], False) == 0
    assert contents(folder) == expected
    assert made
    assert not made & {(file, name) for file, names in kept.items() for name in names}


def test_a_folder_belongs_to_one_run(source, tmp_path, capsys):
    with locked(tmp_path / "out"):
        assert _run(["gguf", str(source), "--out", str(tmp_path / "out"), *TYPES], False) == 3
    assert f"quantkit: {tmp_path / 'out'} is held by process {os.getpid()} " in capsys.readouterr().err


# Interrupted.


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_signal_ends_the_run_with_its_code(source, whole, tmp_path, name, share):
    expected, count = whole
    folder = tmp_path / "out"
    run = Forked(source, folder, Fault(round(count * share), name), delay=0.001)
    assert run.wait() == CODES[name], run.output
    assert run.output.endswith(f"{signals.SENTENCES[getattr(signal, name)]}\n")
    assert "Traceback" not in run.output
    assert not (folder / LOCK_FILE).exists()
    assert_nothing_broken(folder, expected)
    assert_continues(source, folder, expected)


def test_ctrl_c_while_transformers_is_asked(tmp_path, monkeypatch):
    """The other process ends with this one, and says nothing."""
    monkeypatch.undo()
    folder = tmp_path / "out"
    asked = tmp_path / "pid"
    run = Forked(tiny.make_model(tmp_path / "model"), folder, before=Noted(asked))
    for _ in range(HANG_SECONDS * 100):
        if asked.exists() and asked.read_text():
            break
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert run.output == f"{signals.SENTENCES[signal.SIGINT]}\n"
    with contextlib.suppress(psutil.NoSuchProcess):
        other = psutil.Process(int(asked.read_text()))
        while other.status() != psutil.STATUS_ZOMBIE:
            assert time.time() - other.create_time() < HANG_SECONDS
            time.sleep(0.01)


class Noted(contextlib.AbstractContextManager):
    """Keeps the number of the process that is asked."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        path = self.path

        class Popen(subprocess.Popen):
            def __init__(self, *given, **options):
                super().__init__(*given, **options)
                path.write_text(str(self.pid))

        subprocess.Popen = Popen

    def __exit__(self, *_):
        pass


# Out of disk.


def test_a_disk_that_is_too_small_is_refused_in_advance(source, disk, capsys):
    disk.remount("size=500k")
    code = _run(["gguf", str(source), "--out", str(disk.out), *TYPES], False)
    err = capsys.readouterr().err
    assert code == 6
    found = re.search(r"quantkit: the run needs (.*) of disk, .* has (.*) free: (.*) missing\nhint: choose", err)
    assert found, err
    needed, free, missing = (megabytes(text) for text in found.groups())
    assert missing == pytest.approx(needed - free, abs=0.02)
    assert list(disk.path.iterdir()) == []


def megabytes(text):
    number, unit = text.split()
    return float(number) * {"B": 1e-6, "kB": 1e-3, "MB": 1.0}[unit]


@pytest.mark.parametrize("room", [0, 8, 300, 1000, 1500])
def test_a_disk_that_fills_up_leaves_nothing_half_made(source, whole, disk, monkeypatch, capsys, room):
    """Another program takes the room that was there when the run began; two models do not fit."""
    expected, _ = whole
    disk.remount("size=8m")
    ballast = fill(disk.path, room * 1024)
    for place in ("gguf", "gguf_convert"):
        monkeypatch.setattr(f"quantkit.pipeline.{place}.preflight", lambda *_: None)
    command = ["gguf", str(source), "--out", str(disk.out), *TYPES, *SPLIT]
    assert _run(command, False) == 6
    err = capsys.readouterr().err
    assert re.search(r"^quantkit: cannot (write|create) .*: No space left on device", err, re.MULTILINE), err
    if room > 8:
        assert re.search(r"\(needed .*, free .*, .* missing\)$", err, re.MULTILINE), err
    assert_nothing_broken(disk.out, expected)
    assert not list(disk.path.rglob("*.gguf"))
    ballast.unlink()
    assert _run(command, False) == 0
    assert contents(disk.out) == expected


def test_once_begun_a_run_has_its_room(source, whole, disk, monkeypatch):
    """What fills the disk later cannot take what was reserved."""
    expected, _ = whole
    disk.remount("size=8m")
    before, ballast = gguf_slabs.Worker.work, []

    def work(self, number, slab, wanted):
        if not ballast:
            ballast.append(fill(disk.path, 0))
        before(self, number, slab, wanted)

    monkeypatch.setattr(gguf_slabs.Worker, "work", work)
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", 10**9)
    assert _run(["gguf", str(source), "--out", str(disk.out), *TYPES, *SPLIT], False) == 0
    assert ballast
    assert contents(disk.out) == expected


def test_whichever_call_fails_the_run_says_so_and_continues(source, whole, tmp_path, capsys):
    expected, count = whole
    for number in sorted({*range(2, count, 23), *range(count - 40, count, 5)}):
        folder = tmp_path / str(number)
        command = ["gguf", str(source), "--out", str(folder), *TYPES, *SPLIT]
        for fault in (Fault(number, "ENOSPC", lasting=True), Fault(number, "EIO")):
            with Steps(folder, fault).watched() as steps:
                code = _run(command, False)
            err = capsys.readouterr().err
            reason = os.strerror(getattr(errno, fault.how))
            lock_only = steps.taken[number - 1 : number] and steps.taken[number - 1][1] in (LOCK_FILE, folder.name)
            assert code == 6 or (code == 0 and (lock_only or len(steps.taken) < number)), (code, steps.taken[-1])
            assert code == 0 or re.search(rf"^quantkit: cannot (write|create|remove) .*: {reason}", err, re.M), err
            assert_nothing_broken(folder, expected)
        assert _run(command, False) == 0
        assert contents(folder) == expected


def test_a_read_only_disk_is_refused(source, disk, capsys):
    disk.remount("ro,size=8m")
    assert _run(["gguf", str(source), "--out", str(disk.out), *TYPES], False) == 6
    assert "Read-only file system" in capsys.readouterr().err
    assert not Path(disk.out).exists()
