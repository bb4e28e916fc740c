"""A good checkpoint to spoil, and the bar that every refusal has to pass."""

import os
import shutil
import signal

import numba
import pytest
import tiny
import torch
from spoil import SMALL, Case

from quantkit.cli import _run
from quantkit.pipeline import job
from quantkit.skeleton import Skeleton
from quantkit.weights.local import LocalSource

LONGEST = 400  # characters of a sentence, however long what the file holds
PATIENCE = 300  # seconds; only a read that would never end reaches it


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Good checkpoints by architecture and layout, each made once."""
    made = {}

    def checkpoint(architecture, layout):
        if (architecture, layout) not in made:
            folder = tmp_path_factory.mktemp("good") / layout
            made[architecture, layout] = tiny.make_model(folder, architecture, torch.bfloat16, layout)
        return made[architecture, layout]

    return checkpoint


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture(autouse=True)
def _no_waiting():
    """A pipe without a writer must fail a test, not stall the suite."""

    def give_up(_signal, _frame):
        raise AssertionError("it waits for something that never comes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def work(monkeypatch):
    """What was read or computed: a refusal leaves it empty."""
    done = []

    def noted(what):
        def refuse(*_args, **_options):
            done.append(what)
            raise AssertionError(f"{what} before the refusal")

        return refuse

    monkeypatch.setattr(LocalSource, "read", noted("a weight was read"))
    monkeypatch.setattr(Skeleton, "embed", noted("the model was run"))
    monkeypatch.setattr(Skeleton, "fill", noted("a layer was filled"))
    return done


@pytest.fixture
def refused(good, work, tmp_path, monkeypatch, capsys, request):
    """Spoil a checkpoint as a case says, run both commands, and check what every refusal must be."""
    monkeypatch.chdir(tmp_path)
    early = getattr(request.module, "BY_THE_FIRST_LOOK", False)
    torch_needed = []
    prepare = job.prepare
    monkeypatch.setattr(job, "prepare", lambda *args, **options: torch_needed.append(1) or prepare(*args, **options))

    def run(command, options):
        capsys.readouterr()
        code = _run([command, "model", "--out", "out", *SMALL, *options], debug=False)
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
        assert work == []
        sentences = [line for line in err.splitlines() if line.startswith("quantkit: ")]
        assert len(sentences) == 1, err
        assert len(sentences[0]) <= LONGEST
        after = err.splitlines()[err.splitlines().index(sentences[0]) + 1 :]
        assert [line.startswith("hint: ") for line in after] in ([], [True])
        hint = after[0].removeprefix("hint: ").replace(f"quantkit {command} --help", "--help") if after else None
        return code, sentences[0].removeprefix("quantkit: "), hint

    def refuse(case: Case):
        shutil.copytree(good(case.architecture, case.layout), tmp_path / "model")
        case.spoil(tmp_path / "model")
        before = sorted(path.name for path in tmp_path.rglob("*"))
        commands = ("plan", "gptq") if case.planned else ("gptq",)
        answers = {command: run(command, case.options) for command in commands}
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
        if early:
            assert bool(torch_needed) == case.late
        assert len(set(answers.values())) == 1, f"plan and gptq differ: {answers}"
        code, sentence, hint = answers["gptq"]
        assert code == case.code, sentence
        for fragment in case.says:
            assert fragment in sentence
        if case.hint is not None:
            assert hint is not None
            assert case.hint in hint

    return refuse
