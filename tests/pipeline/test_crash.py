"""A run killed at any moment: nothing broken is left, and the same command ends in the same bytes."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace

import processes
import pytest
from faults import Fault, Steps
from processes import FEW, FIELDS, HANG_SECONDS, Command, assert_nothing_broken, contents, gptq

from quantkit.cli import _run
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import make_recipe

server, source, whole = processes.server, processes.source, processes.whole
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def steps(source, tmp_path_factory):
    """The steps of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("steps") / "out"
    with Steps(folder).watched() as taken:
        assert _run(["gptq", str(source), "--out", str(folder), *FEW], False) == 0
    return taken


def assert_continues(folder, source, whole):
    again = Command(gptq, folder, source)
    assert again.wait() == 0, again.output
    assert contents(folder) == contents(whole)


def test_every_byte_of_the_artifact_is_written_in_a_step_that_can_be_spoiled(steps, whole):
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    renamed = {name for call, name in steps.taken if call == "replace"}
    assert renamed == sizes.keys() - {"layers.jsonl"}
    for name in sizes.keys() - {"run.json", "layers.jsonl"}:  # their length varies with the figures in them
        assert steps.written[name] >= sizes[name], name
    synced = {name for call, name in steps.taken if call in ("fsync", "fdatasync")}
    assert synced >= {f".{name}.partial" for name in renamed} | {"layers.jsonl", "out"}


def test_nothing_is_final_before_it_is_on_the_disk(steps):
    """What a power cut would need, in the order of the calls."""
    assert steps.unsafe == []
    for number, (call, _) in enumerate(steps.taken):
        if call == "replace":
            assert steps.taken[number + 1] == ("fsync", "out")  # the folder, which holds the name


def kill_at_steps(root, source, numbers):
    """Runs killed at these steps, each in a folder of its own that is copied and then continued."""
    job = prepare(str(source), make_recipe(FIELDS), device="cpu")
    for number in numbers:
        here = replace(job, output=root / str(number))
        assert in_fork(here, Fault(number, "kill")) == KILLED, number
        if here.output.exists():
            shutil.copytree(here.output, root / f"{number}-killed")
        assert in_fork(here, None) == 0, number


def in_fork(job, fault):
    """The exit code of a run in a child; a second job would cost as much as the run."""
    child = os.fork()
    if child == 0:
        with Steps(job.output, fault).watched():
            run(job)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_run_killed_at_any_step_continues_to_the_same_bytes(source, whole, steps, tmp_path):
    count = len(steps.taken)
    halves = [(tmp_path / "odd", range(1, count + 1, 2)), (tmp_path / "even", range(2, count + 1, 2))]
    commands = [Command(kill_at_steps, root, source, numbers) for root, numbers in halves]
    for command, (root, numbers) in zip(commands, halves, strict=True):
        assert command.wait(10 * HANG_SECONDS) == 0, command.output
        for number in numbers:
            assert_nothing_broken(root / f"{number}-killed", whole)
            assert contents(root / str(number)) == contents(whole), steps.taken[number - 1]


def test_a_run_killed_again_and_again_continues_to_the_same_bytes(source, whole, tmp_path):
    """Each process gets a little further into its own steps than the one before it."""
    folder = tmp_path / "out"
    for number in range(5, 200, 9):
        if Command(gptq, folder, source, Fault(number, "kill")).wait() != KILLED:
            break
        assert_nothing_broken(folder, whole)
    assert_continues(folder, source, whole)


def test_a_run_killed_at_a_random_moment_continues_to_the_same_bytes(source, whole, tmp_path):
    moments = random.Random(67)
    started = time.perf_counter()
    assert_continues(tmp_path / "timed", source, whole)
    duration = time.perf_counter() - started
    for number in range(20):
        folder = tmp_path / str(number)
        command = Command(gptq, folder, source)
        time.sleep(duration * (number + moments.random()) / 20)
        command.process.kill()
        assert command.wait() in (KILLED, 0)
        assert_nothing_broken(folder, whole)
        assert_continues(folder, source, whole)
