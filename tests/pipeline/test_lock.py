"""One run per output folder: one wins, the others say who holds it and touch nothing."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from artifacts import Recorder, digests, job_of, quantize
from faults import Fault
from processes import HANG_SECONDS, Command, contents, gptq

from quantkit.errors import BadInputError, DiskError, OutOfMemoryError
from quantkit.pipeline.gptq import run
from quantkit.runlock import LOCK_FILE, locked

server, source, whole = processes.server, processes.source, processes.whole
HELD = r"is held by process (\d+) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
HINT = "wait for that run to end, or choose another --out"


@pytest.fixture(scope="module")
def model(sources):
    return sources("llama", torch.bfloat16)


# Two runs.


def one_of_eight(_log, folder, source, go):
    """A run that, once it holds its folder, waits until it may go on."""
    from quantkit.pipeline import gptq as pipeline

    before = pipeline.preflight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "preflight", lambda *given: (go.wait(), before(*given)))
        gptq(folder, source)


def test_of_eight_runs_at_once_one_makes_the_artifact(source, whole, tmp_path):
    folder = tmp_path / "out"
    go = multiprocessing.get_context("forkserver").Event()
    runs = [Command(one_of_eight, tmp_path / str(number), folder, source, go) for number in range(8)]
    holders = set()
    while len(runs) > 1:
        assert wait([run.process.sentinel for run in runs], HANG_SECONDS), "nobody was refused"
        refused = next(run for run in runs if run.process.exitcode is not None)
        runs.remove(refused)
        assert refused.wait() == 3, refused.output
        holders.add(int(re.search(f"{folder} {HELD}", refused.output)[1]))
        assert refused.output.endswith(f"hint: {HINT}\n")
    (winner,) = runs
    assert holders == {winner.process.pid}
    go.set()
    assert winner.wait() == 0, winner.output
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("state", ["new", "interrupted", "finished"])
def test_a_folder_that_is_held_is_refused_and_left_alone(model, tmp_path, state, restart):
    folder = tmp_path / "out"
    if state == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            quantize(model, folder, Recorder(layer=0))
    elif state == "finished":
        quantize(model, folder, method="gptq")
    job = job_of(model, folder)
    with locked(folder):
        before = digests(folder, "*")
        with pytest.raises(BadInputError) as caught:
            run(job, restart=restart)
        assert digests(folder, "*") == before
    assert re.fullmatch(f"{folder} {HELD}", str(caught.value))[1] == str(os.getpid())
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 3)
    run(job, restart=restart)
    assert (folder / "config.json").exists()


def test_a_run_that_is_refused_downloads_nothing(model, tmp_path, monkeypatch):
    job = job_of(model, tmp_path / "out")
    monkeypatch.setattr("quantkit.pipeline.gptq.open_checkpoint", lambda _reference: pytest.fail("downloads"))
    monkeypatch.setattr("quantkit.pipeline.gptq.preflight", lambda _job: pytest.fail("goes on"))
    with locked(tmp_path / "out"), pytest.raises(BadInputError):
        run(job)


# What is left behind.


def test_nothing_is_left_of_the_lock(model, tmp_path):
    quantize(model, tmp_path / "done", method="rtn")
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "half", Recorder(layer=0))
    assert not list(tmp_path.rglob(LOCK_FILE))


def test_a_run_that_is_refused_in_advance_leaves_no_folder(model, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    monkeypatch.setattr("quantkit.pipeline.machine.resident_bytes", lambda: 1)
    with pytest.raises(OutOfMemoryError):
        quantize(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutOfMemoryError):
        quantize(model, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_lock_of_a_run_that_was_killed_is_taken_over(source, whole, tmp_path):
    folder = tmp_path / "out"
    assert Command(gptq, folder, source, Fault(20, "kill")).wait() == -signal.SIGKILL
    assert (folder / LOCK_FILE).read_text().startswith("process ")
    again = Command(gptq, folder, source)
    assert again.wait() == 0, again.output
    assert contents(folder) == contents(whole)


# Between two system calls.


def test_of_many_who_come_and_go_one_at_a_time_holds_the_folder(tmp_path):
    folder = tmp_path / "out"
    inside, most, entered, failed = [], [], [], []

    def come_and_go():
        while len(entered) < 100:
            try:
                with locked(folder):
                    inside.append(1)
                    time.sleep(0.0005)  # lets another one in, if anything does
                    most.append(len(inside))
                    entered.append(1)
                    inside.pop()
            except BadInputError:
                continue
            except DiskError as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert failed == []
    assert max(most) == 1
    assert len(entered) >= 100
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """mkdir finds it, and then looks whether it is a folder: another run has removed it meanwhile."""
    before, calls = Path.mkdir, []

    def mkdir(folder, **given):
        calls.append(folder)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, "File exists")
        before(folder, **given)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked(tmp_path / "out") as protected:
        assert protected
    assert calls == [tmp_path / "out"] * 2


def test_a_file_in_the_place_of_the_folder_is_said_at_once(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DiskError, match="File exists"), locked(tmp_path / "out"):
        pass


def test_a_lock_file_that_lost_its_name_is_not_taken(tmp_path, monkeypatch):
    """Its holder removed it, and with it the folder, after we had opened it and before we got the lock."""
    before, calls = fcntl.flock, []

    def flock(descriptor, operation):
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / "out" / LOCK_FILE).unlink()
            (tmp_path / "out").rmdir()
        before(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "out") as protected:
        assert protected
        assert (tmp_path / "out" / LOCK_FILE).exists()
        with pytest.raises(BadInputError), locked(tmp_path / "out"):
            pass
    assert len(calls) == 3


def test_a_folder_that_vanishes_is_made_again(tmp_path, monkeypatch):
    before, calls = os.open, []

    def vanished(path, *more, **options):
        calls.append(path)
        if len(calls) == 1:
            (tmp_path / "out").rmdir()
        return before(path, *more, **options)

    monkeypatch.setattr(os, "open", vanished)
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK_FILE).exists()


def test_a_lock_file_that_always_vanishes_is_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / LOCK_FILE).unlink())
    with pytest.raises(DiskError, match="vanishes again and again"), locked(tmp_path):
        pass


# Disks.


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_and_used(model, tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    progress = Recorder()
    quantize(model, tmp_path / "out", progress, method="rtn")
    assert progress.said[0] == f"note: the file system of {tmp_path / 'out'} has no locks; start no second run there"
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_a_lock_that_the_disk_refuses_is_a_failure_of_the_disk(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DiskError, match=r"cannot write .*/\.run\.lock: Input/output error"), locked(tmp_path):
        pass


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_lock_holds_on_a_full_disk_too(tmp_path, monkeypatch, call):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with locked(tmp_path), pytest.raises(BadInputError, match=r"is held by another process$"), locked(tmp_path):
        pass
