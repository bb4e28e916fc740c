"""The command line in processes of its own, forked in milliseconds from one that has everything imported."""

import contextlib
import json
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
import tiny
import torch
from faults import Fault, Steps

from quantkit.cli import _run, main
from quantkit.manifest import MANIFEST_FILE
from quantkit.vocab.corpus import corpus

TIMED = ("run.json", "layers.jsonl")  # files that say how long it took
HANG_SECONDS = 120  # a process that lives longer has hung
# Two linears of a layer quantized, in a stage each; layers straddle the files.
FIELDS = {
    "group_size": 32,
    "skip": ["*.q_proj", "*.gate_proj", "lm_head"],
    "max_shard_size": "60kB",
    "calibration": {"text": ["english"], "samples": 2, "sequence_length": 16},
}
FEW = [
    "--group-size", "32", "--skip", "*.q_proj", "--skip", "*.gate_proj", "--max-shard-size", "60kB", "--device", "cpu",
    "--calibration", "english", "--samples", "2", "--sequence-length", "16",
]  # fmt: skip
# The server's environment: of numba's thread pools this one survives a fork.
ENVIRONMENT = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def tiny_source(folder: Path) -> Path:
    return tiny.make_model(
        folder, dtype=torch.bfloat16, hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1
    )


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Leave out what costs time and is not tried here: no power is cut, and it is the same tokenizer in every run."""
    patch.setattr(os, "fsync", lambda _descriptor: None)
    patch.setattr(os, "fdatasync", lambda _descriptor: None)
    patch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    patch.setattr("quantkit.vocab.proof.corpus", lambda special: corpus(special)[:8])


class Command:
    """A function in a process of its own, usually `gptq`.

    Args:
        function: of a module that can be imported.
        given: its arguments; the first is the folder beside which its output is logged.
    """

    def __init__(self, function, *given) -> None:
        self.log = given[0].with_name(f"{given[0].name}.log")
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_enter, args=(self.log, function, given), daemon=True)
        self.process.start()

    def wait(self, seconds: float = HANG_SECONDS) -> int:
        """The exit code; negative for a signal that killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            pytest.fail(f"the command hung: {self.output}")
        return self.process.exitcode

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8") if self.log.exists() else ""


def gptq(folder: Path, source: Path, fault: Fault | None = None, more=()) -> None:
    """`quantkit gptq SOURCE --out FOLDER` with a fault."""
    with Steps(folder, fault).watched():
        main(["gptq", str(source), "--out", str(folder), *FEW, *more])


def _enter(log, function, given) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    function(*given)


@pytest.fixture(scope="session")
def server():
    """The process that commands are forked from; it starts with the first one."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent, here.parent.parent))))
        forkserver.set_forkserver_preload(["warm"])
        forkserver.ensure_running()


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return tiny_source(tmp_path_factory.mktemp("durability") / "source")


@pytest.fixture(scope="session")
def whole(source, server, tmp_path_factory):
    """The artifact of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("durability") / "whole"
    command = Command(gptq, folder, source)
    assert command.wait() == 0, command.output
    return folder


@pytest.fixture
def quantkit(source, capsys):
    """The command in this process: exit code and stderr."""

    def call(folder, *more):
        capsys.readouterr()
        code = _run(["gptq", str(source), "--out", str(folder), *FEW, *more], False)
        return code, capsys.readouterr().err

    return call


def contents(folder: Path) -> dict[str, object]:
    """What a folder holds, without what depends on time and machine."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "run.json" in found:
        record = json.loads(found["run.json"])
        found["run.json"] = {key: value for key, value in record.items() if key not in ("measured", "predicted")}
    if "layers.jsonl" in found:
        varying = ("seconds", "cpu_seconds", "host_bytes", "device_bytes")
        rows = [json.loads(line) for line in found["layers.jsonl"].splitlines()]
        found["layers.jsonl"] = [{key: value for key, value in row.items() if key not in varying} for row in rows]
    if MANIFEST_FILE in found:
        record = json.loads(found[MANIFEST_FILE])
        files = {name: digest for name, digest in record["files"].items() if name not in TIMED}
        found[MANIFEST_FILE] = record | {"files": files, "digest": None}
    return found


def assert_nothing_broken(folder: Path, whole: Path) -> None:
    """What has a final name has its final bytes; what has a config.json has all of them."""
    expected = contents(whole)
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    final = {name for name in names if not name.startswith(".")}
    assert final <= expected.keys()
    for name in final - {*TIMED, MANIFEST_FILE}:
        assert (folder / name).read_bytes() == expected[name], name
    if "run.json" in names:
        assert json.loads((folder / "run.json").read_text())["status"] in ("running", "finished")
    if "config.json" in names:
        assert final == expected.keys()


def one_sentence(err):
    """The error's line and its hint, after what the run told."""
    lines = err.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("quantkit: "))
    assert len(lines) - start == 2, err
    assert lines[-1].startswith("hint: ")
    return lines[start]
