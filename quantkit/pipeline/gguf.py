"""A checkpoint in, GGUF files out: slabs of rows read, ordered, encoded and written by all cores at once."""

import time
from collections import Counter, deque
from collections.abc import Iterable
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
from quantkit.pipeline.gguf_pieces import in_order_of_files, in_order_of_shards
from quantkit.pipeline.gguf_slabs import Piece, Worker
from quantkit.pipeline.provenance import gguf_base, write_gguf_manifest
from quantkit.plan.gguf_rows import GgufRow
from quantkit.progress import Progress, Silent
from quantkit.runlock import locked
from quantkit.weights.imatrix import Imatrix
from quantkit.weights.streamed import StreamedSource

ROWS_AHEAD = 16  # tensors, or pieces of them, whose slabs wait for a thread


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
        job: from `prepare`; its checkpoint's files are all there, or streamed.
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
    if isinstance(job.model.checkpoint.source, StreamedSource):
        job.model.checkpoint.source.remove()
    return Result(job.folder, tuple(records[output.ftype] or {} for output in job.outputs))


def _convert(
    job: GgufJob, outputs: tuple[Output, ...], targets: list[Target], imatrix: Imatrix | None, progress: Progress
) -> None:
    """Every tensor that is not finished, in the order of the files; of a streamed source in that of its shards."""
    rows = job.model.rows
    warm({chosen for output in outputs for chosen in output.types}, imatrix is not None)
    wanted = {number: [target for target in targets if target.lacks(row.name)] for number, row in enumerate(rows)}
    wanted = {number: lacking for number, lacking in wanted.items() if lacking}
    pieces = in_order_of_shards(rows, wanted, job.model.shards) if job.streamed else in_order_of_files(rows, wanted)
    left = Counter(piece.number for piece in pieces)  # of each tensor
    layers = _Layers(rows, wanted, progress)
    waiting: deque[tuple[Piece, list[Future[None]]]] = deque()
    with Worker(job.model, imatrix, pieces) as worker, ThreadPoolExecutor(job.threads) as pool:

        def settle() -> None:
            piece, futures = waiting.popleft()
            for future in futures:
                future.result()
            left[piece.number] -= 1
            is_whole = not left[piece.number]
            for target in wanted[piece.number] if is_whole else ():
                target.finish(rows[piece.number].name)
            worker.finish(piece)
            if is_whole:
                layers.finished(piece.number)

        try:
            for piece in pieces:
                while waiting and not worker.is_held(piece):  # until a shard goes that is in its way
                    settle()
                worker.begin(piece)
                work = [pool.submit(worker.work, piece.number, slab, wanted[piece.number]) for slab in piece.slabs]
                waiting.append((piece, work))
                while waiting and (len(waiting) > ROWS_AHEAD or all(future.done() for future in waiting[0][1])):
                    settle()
            while waiting:
                settle()
        finally:
            pool.shutdown(cancel_futures=True)
            progress.stop()


class _Layers:
    """Tells the progress of decoder layers: each counts once its last tensor is finished."""

    def __init__(self, rows: tuple[GgufRow, ...], wanted: Iterable[int], progress: Progress) -> None:
        self._layer = [int(row.name.split(".")[1]) if row.name.startswith("blk.") else -1 for row in rows]
        self._left = Counter(self._layer[number] for number in wanted)  # tensors of each
        count = max(self._layer) + 1
        self._done = sum(not self._left[layer] for layer in range(count))
        self._progress, self._begun = progress, time.perf_counter()
        progress.start(count, self._done)

    def finished(self, number: int) -> None:
        """A tensor is finished."""
        layer = self._layer[number]
        self._left[layer] -= 1
        if layer >= 0 and not self._left[layer]:
            now = time.perf_counter()
            self._progress.layer(self._done, now - self._begun)
            self._done, self._begun = self._done + 1, now
