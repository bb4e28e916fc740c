"""A checkpoint in, GGUF files out: slabs of rows read, ordered, encoded and written by all cores at once."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.formats.ggml.encode import warm
from quantkit.memory import reset_peak
from quantkit.pipeline.costs import Meter
from quantkit.pipeline.gguf_files import Target, fingerprint, finished_record, open_targets, present, write_record
from quantkit.pipeline.gguf_job import GgufJob, Output, preflight
from quantkit.pipeline.gguf_slabs import Worker, slabs
from quantkit.pipeline.provenance import gguf_base, write_gguf_manifest
from quantkit.plan.gguf_rows import GgufRow
from quantkit.progress import Progress, Silent
from quantkit.runlock import locked
from quantkit.weights.imatrix import Imatrix

ROWS_AHEAD = 16  # tensors whose slabs wait for a thread


@dataclass(frozen=True)
class Result:
    """What a run made."""

    folder: Path
    records: tuple[dict[str, Any], ...]  # of every output, as written beside it


def run(
    job: GgufJob,
    progress: Progress | None = None,
    *,
    imatrix: Imatrix | None = None,
    about_imatrix: dict[str, Any] | None = None,
    restart: bool = False,
) -> Result:
    """Execute a prepared job, or continue it at its first unfinished tensor.

    Args:
        job: from `prepare`; its checkpoint's files are all there.
        progress: told what happens; silent by default.
        imatrix: the importance that the job was planned with.
        about_imatrix: what the record says about it.
        restart: make files again that were made from something else.

    Returns:
        The folder and the record of every output.

    Raises:
        QuantkitError: another run holds the folder; disk or input fail. What is finished is kept and the
            same call goes on from there; nothing stands at a final name that is not whole.
    """
    progress = progress or Silent()
    with locked(job.folder) as protected:
        if not protected:
            progress.say(f"note: the file system of {job.folder} has no locks; start no second run there")
        return _run(job, progress, imatrix, about_imatrix, restart)


def _run(
    job: GgufJob, progress: Progress, imatrix: Imatrix | None, about_imatrix: dict[str, Any] | None, restart: bool
) -> Result:
    meter = Meter()
    inputs = fingerprint(job, about_imatrix)
    records = {output.ftype: None if restart else finished_record(job, output, inputs) for output in job.outputs}
    for output in job.outputs:
        if records[output.ftype]:
            progress.say(f"{job.folder / output.files[0]} is finished already; nothing to do")
    open_outputs = tuple(output for output in job.outputs if not records[output.ftype])
    if open_outputs:
        if job.model.told.verification:
            progress.say(job.model.told.verification)
        reset_peak()
        with ExitStack() as stack:
            preflight(job, present(job))
            targets = open_targets(job, open_outputs, inputs, stack, restart)
            _convert(job, open_outputs, targets, imatrix, progress)
            for target in targets:
                target.commit()
        spent = meter.read()
        for output in open_outputs:
            records[output.ftype] = write_record(job, output, inputs, about_imatrix, spent)
    write_gguf_manifest(job.folder, gguf_base(job.model.checkpoint))
    return Result(job.folder, tuple(records[output.ftype] or {} for output in job.outputs))


def _convert(
    job: GgufJob, outputs: tuple[Output, ...], targets: list[Target], imatrix: Imatrix | None, progress: Progress
) -> None:
    """Every tensor that is not finished, in the order of the files."""
    rows = job.model.rows
    warm({chosen for output in outputs for chosen in output.types}, imatrix is not None)
    layers = _Layers(rows, progress)
    waiting: deque[tuple[int, list[Target], list[Future[None]]]] = deque()
    with Worker(job.model, imatrix) as worker, ThreadPoolExecutor(job.threads) as pool:

        def settle() -> None:
            number, wanted, futures = waiting.popleft()
            for future in futures:
                future.result()
            for target in wanted:
                target.finish(rows[number].name)
            worker.forget(number)
            layers.finished(number)

        try:
            for number, row in enumerate(rows):
                wanted = [target for target in targets if target.lacks(row.name)]
                todo = slabs(row) if wanted else ()
                waiting.append((number, wanted, [pool.submit(worker.work, number, slab, wanted) for slab in todo]))
                if len(waiting) > ROWS_AHEAD:
                    settle()
            while waiting:
                settle()
        finally:
            pool.shutdown(cancel_futures=True)
            progress.stop()


class _Layers:
    """Tells the progress of each decoder layer once its last tensor is finished."""

    def __init__(self, rows: tuple[GgufRow, ...], progress: Progress) -> None:
        self._layer = [int(row.name.split(".")[1]) if row.name.startswith("blk.") else -1 for row in rows]
        self._progress, self._begun = progress, time.perf_counter()
        progress.start(max(self._layer) + 1, 0)

    def finished(self, number: int) -> None:
        """A tensor is finished, and all those before it."""
        layer = self._layer[number]
        is_last = number + 1 == len(self._layer) or self._layer[number + 1] != layer
        if layer >= 0 and is_last:
            now = time.perf_counter()
            self._progress.layer(layer, now - self._begun)
            self._begun = now
