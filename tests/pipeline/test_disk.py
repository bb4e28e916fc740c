"""A disk that is full, failing or read-only: a sentence, a code, finished work kept."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import processes
import pytest
from artifacts import digests
from faults import Fault, Steps
from processes import FIELDS, HANG_SECONDS, Command, assert_nothing_broken, contents, one_sentence

from quantkit.errors import DiskError
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.progress import Lines
from quantkit.recipe import make_recipe
from quantkit.runlock import LOCK_FILE

server, source, whole, quantkit = processes.server, processes.source, processes.whole, processes.quantkit
PLENTY = SimpleNamespace(free=10**12)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    processes.quicken(monkeypatch)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; `disk.resize` makes it larger, `disk.read_only` what it says."""
    point = tmp_path / "disk"
    point.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(point)], capture_output=True, text=True, check=False)

    made = mount("-t", "tmpfs", "-o", "size=1m", "quantkit-test")
    if made.returncode:
        pytest.skip(f"a disk of its own needs the right to mount: {made.stderr.strip()}")

    def remount(options):
        changed = mount("-o", f"remount,{options}")
        assert changed.returncode == 0, changed.stderr

    yield SimpleNamespace(path=point, remount=remount, out=point / "out")
    subprocess.run(["umount", str(point)], check=True)


def fill(folder, left):
    """Leave so many bytes of a disk; returns the file that holds the rest."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() // 4096 * 4096 - left))
    return ballast


# A call that fails.


def what_fails(job):
    """What a run says about the disk, or None where it has finished."""
    try:
        run(job)
    except DiskError as error:
        return str(error)
    return None


def fail_at_steps(root, source, whole, numbers):
    """Of a new run the n-th call and all after it find the disk full; of its continuation the n-th call fails."""
    job = prepare(str(source), make_recipe(FIELDS), device="cpu")
    for number in numbers:
        here = replace(job, output=root / str(number))
        for fault in (Fault(number, "ENOSPC", lasting=True), Fault(number, "EIO")):
            with Steps(here.output, fault).watched() as steps:
                said = what_fails(here)
            if said:
                reason = os.strerror(getattr(errno, fault.how))
                assert re.match(rf"cannot (write|create|remove) .*: {reason}", said), steps.taken[-1]
            else:
                # To make a folder that is there, to say who holds it, to remove the lock: no reason to fail.
                failed = steps.taken[number - 1 : number]
                own = [("mkdir", here.output.name), ("rmdir", here.output.name)]
                assert not failed or failed[0] in own or (failed[0][1] == LOCK_FILE and failed[0][0] != "open"), failed
            assert_nothing_broken(here.output, whole)
        run(here)


def test_whichever_call_fails_the_run_says_so_and_continues_to_the_same_bytes(source, whole, tmp_path):
    with Steps(tmp_path / "clean").watched() as clean:
        run(prepare(str(source), make_recipe(FIELDS), output=tmp_path / "clean", device="cpu"))
    count = len(clean.taken)
    halves = [(tmp_path / "odd", range(1, count + 1, 2)), (tmp_path / "even", range(2, count + 1, 2))]
    commands = [Command(fail_at_steps, root, source, whole, numbers) for root, numbers in halves]
    for command, (root, numbers) in zip(commands, halves, strict=True):
        assert command.wait(10 * HANG_SECONDS) == 0, command.output
        for number in numbers:
            assert contents(root / str(number)) == contents(whole), clean.taken[number - 1]


# A disk that is full.


def test_a_disk_that_is_too_small_is_refused_in_advance(quantkit, disk):
    code, err = quantkit(disk.out)
    assert code == 6
    assert re.search(r"^quantkit: the run needs .* of disk, .* has .* free: .* missing$", err, re.MULTILINE)
    assert list(disk.path.iterdir()) == []


@pytest.mark.parametrize("left", [0, 4096, 8192, 12288, 40960, 65536, 98304, 131072, 163840, 196608, 229376])
def test_a_disk_that_fills_up_keeps_what_is_finished(quantkit, whole, disk, monkeypatch, left):
    """Another program takes the room that was there when the run began."""
    ballast = fill(disk.path, left)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: PLENTY)
    code, err = quantkit(disk.out)
    assert code == 6, err
    assert "No space left on device" in one_sentence(err)
    assert "free some space" in err
    assert_nothing_broken(disk.out, whole)
    kept = {path: path.stat().st_mtime_ns for path in disk.out.glob("*.safetensors")}
    assert bool(kept) == (left >= 98304)
    ballast.unlink()
    code, err = quantkit(disk.out)
    assert code == 0, err
    assert contents(disk.out) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_disk_that_is_full_after_a_layer_keeps_the_layer(quantkit, whole, disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: PLENTY)
    before = Lines.layer

    def layer(self, index, seconds):
        before(self, index, seconds)
        fill(disk.path, 0)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "layer", layer)
        code, err = quantkit(disk.out)
    assert (code, "No space left on device" in one_sentence(err)) == (6, True)
    assert_nothing_broken(disk.out, whole)
    (disk.path / "ballast").unlink()
    code, err = quantkit(disk.out)
    assert code == 0
    assert "continuing: 1 of 2 layers are finished\n" in err
    assert contents(disk.out) == contents(whole)


def test_beginning_anew_makes_room_on_a_full_disk(quantkit, whole, disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: PLENTY)
    assert quantkit(disk.out)[0] == 0
    fill(disk.path, 0)
    assert quantkit(disk.out, "--restart")[0] == 0
    assert contents(disk.out) == contents(whole)


# A disk that is read-only, and folders that are no output.


def test_a_read_only_disk_is_refused(quantkit, disk):
    disk.out.mkdir()
    disk.remount("ro")
    for folder in (disk.out, disk.path / "new", disk.path / "new" / "deep"):
        code, err = quantkit(folder)
        assert code == 6
        assert one_sentence(err).endswith("is not writable")
    assert list(disk.path.iterdir()) == [disk.out]


def test_a_finished_artifact_on_a_read_only_disk_is_left_alone(quantkit, disk):
    disk.remount("size=64m")
    assert quantkit(disk.out)[0] == 0
    before = digests(disk.out, "*")
    disk.remount("ro")
    assert quantkit(disk.out)[0] == 6
    assert quantkit(disk.out, "--restart")[0] == 6
    assert digests(disk.out, "*") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_another_user_is_refused(quantkit, tmp_path):
    tmp_path.chmod(0o500)
    code, err = quantkit(tmp_path / "out")
    tmp_path.chmod(0o700)
    assert (code, one_sentence(err)) == (6, f"quantkit: {tmp_path} is not writable")


@pytest.mark.parametrize("more", [[], ["--restart"]])
def test_a_path_that_is_a_file_is_bad_input(quantkit, tmp_path, more):
    (tmp_path / "out").write_text("mine")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        code, err = quantkit(path, *more)
        assert (code, "out is a file, expected a folder" in one_sentence(err)) == (3, True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("more", [[], ["--restart"]])
def test_a_folder_that_holds_something_else_is_left_alone(quantkit, tmp_path, more):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".git").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("mine")
    code, err = quantkit(tmp_path / "out", *more)
    assert code == 3
    assert one_sentence(err).endswith("out holds .git and no run.json: it is not a folder of quantkit")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".git", "model.safetensors"]
