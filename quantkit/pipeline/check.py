"""What quantization cost: artifacts beside their baseline, in one pass over the layers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quantkit.checkfile import SCHEMA_VERSION, write_check
from quantkit.devices import reset_peak
from quantkit.errors import QuantkitError
from quantkit.lockstep import Pass, evaluate, reads
from quantkit.memory import peak_resident_bytes
from quantkit.pipeline.answers import answers
from quantkit.pipeline.check_job import CheckJob
from quantkit.pipeline.check_record import entry_of, evaluation_record
from quantkit.pipeline.measure import measure
from quantkit.pipeline.tasks import run_tasks
from quantkit.plan.runtime import runtime_bytes
from quantkit.progress import Progress, Silent
from quantkit.runlock import locked
from quantkit.versions import versions
from quantkit.weights.streamed import StreamedSource


def run(job: CheckJob, progress: Progress | None = None, write: bool = True) -> dict[str, Any]:
    """Execute a prepared check.

    Args:
        job: from `prepare`.
        progress: told what happens; silent by default.
        write: keep the check of every local artifact beside its files.

    Returns:
        The record, as `docs/check.md` describes it.

    Raises:
        QuantkitError: a weight set cannot be read or computed.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    reset_peak()
    for note in job.notes:
        progress.say(f"note: {note}")
    with _shards(job, progress):
        found = _pass(job, progress)
    entries = [entry_of(job, number, found) for number in range(len(job.sets))]
    record = {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "evaluation": evaluation_record(job),
        "predicted": {"host_bytes": job.budget.host_bytes, "seconds": round(job.budget.seconds, 1)},
        "measured": {"host_bytes": peak_resident_bytes(), "seconds": round(time.perf_counter() - started, 1)},
        "baseline": entries[0],
        "artifacts": entries[1:],
        "passed": all(entry["passed"] for entry in entries[1:]),
    }
    _beyond_the_pass(job, record, progress)
    if write:
        write_records(job, record, progress)
    return record


@contextmanager
def _shards(job: CheckJob, progress: Progress) -> Iterator[None]:
    """While the baseline is read: its shards come and go where it is streamed; none is left, however it ends."""
    source = job.baseline.source
    if not isinstance(source, StreamedSource) or job.beside is None:
        yield
        return
    with locked(job.beside) as protected:
        if not protected:
            progress.say(f"note: the file system of {job.beside} has no locks; start no second run there")
        progress.say(f"streaming {job.baseline.name}: shards come and go in {job.beside}")
        source.say = progress.say
        try:
            source.expect(reads(job.skeleton, source))
            yield
        finally:
            source.remove()


def _pass(job: CheckJob, progress: Progress) -> Pass:
    progress.start(len(job.skeleton.layers), 0)
    try:
        sources, names = [entry.source for entry in job.sets], [entry.name for entry in job.sets]
        return evaluate(job.skeleton, sources, job.windows, progress.layer, names)
    finally:
        progress.stop()


def _beyond_the_pass(job: CheckJob, record: dict[str, Any], progress: Progress) -> None:
    """What was asked for beside the lockstep pass: answers, tasks, measured memory and speed."""
    entries = [record["baseline"], *record["artifacts"]]
    if job.prompts:
        said = answers(job, job.prompts, baseline_answers=job.options.baseline_answers, progress=progress)
        record["prompts"], record["chat_template"] = said["prompts"], said["chat_template"]
        for entry, one in zip(entries, said["answers"], strict=True):
            entry["answers"] = one
    if job.tasks:
        found = run_tasks(job.tasks, job.skeleton, job.config, job.tokenizer, job.sets, progress)
        for entry, own in zip(entries, found, strict=True):
            entry["tasks"] = {name: {**row, "baseline": found[0][name]["value"]} for name, row in own.items()}
    if job.options.measure:
        for entry, weights in zip(entries, job.sets, strict=True):
            progress.say(f"measuring {weights.name}")
            measured = measure(weights.path, job.options.runtime_python, str(job.device.device))
            if isinstance(measured, str):
                progress.say(f"note: {weights.name} is not measured: {measured}")
                entry["memory"]["not_measured"] = measured
            else:
                needed = runtime_bytes(job.skeleton.sizes(), weights.weight_bytes, measured["context"])
                entry["memory"]["measured"] = measured | {"predicted_bytes": needed}


def write_records(job: CheckJob, record: dict[str, Any], progress: Progress) -> None:
    """The check of every local artifact beside its files, with its own entry alone."""
    for artifact, entry in zip(job.artifacts, record["artifacts"], strict=True):
        if artifact.repo_id is not None:
            progress.say(f"note: {artifact.name} is a repository; its check is not kept")
            continue
        try:
            write_check(artifact.path, {**record, "artifacts": [entry], "passed": entry["passed"]})
        except QuantkitError as error:
            progress.say(f"note: the check of {artifact.name} is not kept: {error}")
