"""Ctrl-C and SIGTERM at any moment: the documented exit code soon, and a folder that the same command continues."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import processes
import pytest
from faults import Fault
from processes import FEW, HANG_SECONDS, Command, assert_nothing_broken, contents, gptq

from quantkit import signals
from quantkit.methods import lanes

server, source, whole = processes.server, processes.source, processes.whole
CODES = {"SIGINT": 130, "SIGTERM": 143}
SENTENCES = {name: signals.SENTENCES[getattr(signal, name)] for name in CODES}
FOREVER = 10**15


def assert_continues(folder, source, whole):
    again = Command(gptq, folder, source)
    assert again.wait() == 0, again.output
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("step", [3, 9, 13, 30, 45, 57, 65, 72, 95, 120])
def test_a_signal_between_two_steps_unwinds_the_run(source, whole, tmp_path, name, step):
    folder = tmp_path / "out"
    command = Command(gptq, folder, source, Fault(step, name))
    assert command.wait() == CODES[name]
    assert command.output.endswith(f"{SENTENCES[name]}\n")
    assert "Traceback" not in command.output
    assert not (folder / ".run.lock").exists()
    assert_nothing_broken(folder, whole)
    assert_continues(folder, source, whole)


def test_a_signal_at_a_random_moment_ends_the_run(source, whole, tmp_path):
    moments = random.Random(39)
    for number in range(10):
        folder = tmp_path / str(number)
        name = list(CODES)[number % 2]
        command = Command(gptq, folder, source)
        wait_for(command, "computing on")
        time.sleep(0.02 * (number + moments.random()))
        command.signal(getattr(signal, name))
        assert command.wait() in (CODES[name], 0), command.output  # 0: it was done before
        assert_nothing_broken(folder, whole)
        assert_continues(folder, source, whole)


def test_a_run_of_its_own_process_leaves_with_the_code_of_the_signal(source, tmp_path):
    """From the shell: nothing is imported yet when the handlers are put in place."""
    arguments = [sys.executable, "-m", "quantkit.cli", "gptq", str(source), "--out", str(tmp_path / "out"), *FEW]
    run = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    assert run.stderr is not None
    try:
        next(line for line in run.stderr if "computing on" in line)
        run.send_signal(signal.SIGTERM)
        _, rest = run.communicate(timeout=HANG_SECONDS)
    finally:
        run.kill()
    # What interrupts a __del__ is swallowed by Python, and the rest of this run takes less than the grace.
    assert (run.returncode, rest.splitlines()[-1]) == (143, SENTENCES["SIGTERM"]) or run.returncode == 0


# Where the run cannot unwind.


def stuck_in_native_code(folder, source):
    """A solver that does not come back, as the kernel of a very large matrix for some minutes."""
    from warm import spin

    def endless(*_):
        threading.Timer(0.2, print, ["in native code"]).start()  # this thread is not there to say so
        spin(FOREVER)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.methods.gptq.factorize", endless)
        gptq(folder, source)


def stuck_in_a_library(folder, source):
    """A library that swallows every exception, and with it those of signals."""

    def stubborn(*_):
        print("in native code")
        while True:
            try:
                time.sleep(FOREVER / 10**9)
            except BaseException:
                print("swallowed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.methods.gptq.factorize", stubborn)
        gptq(folder, source)


@pytest.mark.parametrize("stuck", [stuck_in_native_code, stuck_in_a_library])
@pytest.mark.parametrize("name", CODES)
def test_a_run_that_cannot_unwind_leaves_nevertheless(source, whole, tmp_path, name, stuck):
    folder = tmp_path / "out"
    command = Command(stuck, folder, source)
    wait_for(command, "in native code")
    command.signal(getattr(signal, name))
    assert command.wait() == CODES[name]
    assert command.output.endswith(f"{SENTENCES[name]}\n")
    assert_nothing_broken(folder, whole)
    assert_continues(folder, source, whole)


def patient(folder, source):
    signals.GRACE_SECONDS = FOREVER / 10**9
    stuck_in_native_code(folder, source)


def test_a_second_signal_is_obeyed_at_once(source, whole, tmp_path):
    folder = tmp_path / "out"
    command = Command(patient, folder, source)
    wait_for(command, "in native code")
    command.signal(signal.SIGINT)
    command.signal(signal.SIGTERM)
    assert command.wait() in CODES.values()  # the system may tell the second one first
    assert_continues(folder, source, whole)


def test_the_grace_leaves_room_below_five_seconds():
    assert signals.GRACE_SECONDS <= 3


@pytest.mark.parametrize("kernel", ["symmetric_scales", "asymmetric_scales", "round_columns"])
def test_compiled_loops_let_other_threads_run(kernel):
    """With the interpreter's lock held, the thread that ends the process could not."""
    assert getattr(lanes, kernel).targetoptions["nogil"]


# The context itself.


def deaf(folder, source):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gptq(folder, source, Fault(40, "SIGINT"))


def test_an_ignored_signal_stays_ignored(source, whole, tmp_path):
    command = Command(deaf, tmp_path / "out", source)
    assert command.wait() == 0, command.output
    assert contents(tmp_path / "out") == contents(whole)


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in signals.SENTENCES]
    with pytest.raises(signals.Terminated), signals.Leaving():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.SENTENCES] == before
    assert signal.set_wakeup_fd(-1) == -1


def hear_signals():
    """A test run in the background of a script ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(command, words):
    for _ in range(HANG_SECONDS * 100):
        if words in command.output or command.process.exitcode is not None:
            return
        time.sleep(0.01)
    command.wait(0)
