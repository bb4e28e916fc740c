"""From a checkpoint and wishes to finished GGUF files: plan, download, importance, conversion."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError, NotFoundError
from quantkit.formats.ggml.encode import can_encode, warm
from quantkit.formats.mixture_tables import FTYPES
from quantkit.formats.mixtures import ftype_named
from quantkit.memory import resident_bytes
from quantkit.pipeline.gguf import Result, run
from quantkit.pipeline.gguf_files import is_finished, present, source_identity
from quantkit.pipeline.gguf_job import GgufJob, GgufOptions, preflight, prepare
from quantkit.pipeline.gguf_model import GgufModel, open_model
from quantkit.progress import Progress
from quantkit.runlock import locked
from quantkit.units import format_bytes
from quantkit.weights.gguf_types import Value
from quantkit.weights.hashes import file_hash
from quantkit.weights.imatrix import Imatrix, read_imatrix
from quantkit.weights.source import Checkpoint
from quantkit.weights.streamed import SHARD_FOLDER, StreamedSource, streamed_bytes

if TYPE_CHECKING:
    from quantkit.plan.gguf_rows import GgufRow
    from quantkit.recipe import Calibration

AUTO, NONE = "auto", "none"
TWICE = "with --imatrix auto the repository crosses the network twice; the imatrix of a file spares one of them"


@dataclass(frozen=True)
class ImatrixWish:
    """Where the importance of columns comes from."""

    where: str = NONE  # auto, none, or a file
    calibration: "Calibration | None" = None  # for auto
    device: str = "auto"  # for auto


@dataclass(frozen=True)
class _Importance:
    """An importance matrix, or the promise of one."""

    names: Collection[str] | None = None  # tensors of whose columns it tells; None: there is none
    imatrix: Imatrix | None = None
    keys: Mapping[str, Value] | None = None
    record: dict[str, Any] | None = None


def plan(checkpoint: Checkpoint, options: GgufOptions, wish: ImatrixWish, *, stream: bool | None = None) -> GgufJob:
    """What `convert` would do, from headers alone.

    Args:
        checkpoint: from `look_for_gguf`.
        options: what to make.
        wish: where the importance comes from; `auto` collects nothing yet.
        stream: let the shards of a repository come and go; None: where the disk does not hold them all.

    Raises:
        QuantkitError: whatever makes it impossible, in one sentence.
    """
    model = open_model(checkpoint, options.pre)
    job = _prepared(model, options, _promised(model, wish), stream)
    if wish.where != AUTO:
        return job
    from quantkit.devices import choose_device
    from quantkit.pipeline.gguf_imatrix import imatrix_cost

    assert wish.calibration is not None
    cost = imatrix_cost(model, wish.calibration, choose_device(wish.device))
    host, seconds = max(job.budget.host_bytes, cost.host_bytes), job.budget.seconds + cost.seconds
    notes = (*job.notes, TWICE) if job.streamed else job.notes
    return replace(job, budget=replace(job.budget, host_bytes=host, seconds=seconds), notes=notes)


def convert(
    checkpoint: Checkpoint,
    options: GgufOptions,
    wish: ImatrixWish,
    progress: Progress,
    *,
    restart: bool = False,
    stream: bool | None = None,
) -> Result:
    """Make GGUF files, or continue where an earlier run stopped.

    Args:
        checkpoint: from `look_for_gguf`; a repository is downloaded, or streamed.
        options: what to make.
        wish: where the importance comes from.
        progress: told what happens.
        restart: make files again that are there already.
        stream: as for `plan`.

    Raises:
        QuantkitError: whatever makes it impossible; what is finished is kept.
    """
    model = open_model(checkpoint, options.pre, verified=True, meanwhile=lambda: _warm(options, wish))
    promised = _promised(model, wish)
    job = _prepared(model, options, promised, stream)
    for note in job.notes:
        progress.say(f"note: {note}")
    # Of files that are finished nothing is read; whether an imatrix has to be collected is known later.
    open_files = restart or wish.where == AUTO or not is_finished(job, promised.record)
    if open_files:
        preflight(job, present(job))
    if checkpoint.download_bytes and open_files:
        job = _with_weights(job, promised, progress)
    source = job.model.checkpoint.source
    with closing(source) if isinstance(source, StreamedSource) else nullcontext():
        importance = promised
        if wish.where == AUTO:
            importance = _collected(job, wish, progress)
            model = replace(job.model, base_bytes=resident_bytes())
            job = _prepared(model, options, importance, job.streamed)
        return run(job, progress, imatrix=importance.imatrix, about_imatrix=importance.record, restart=restart)


def _prepared(model: GgufModel, options: GgufOptions, importance: _Importance, stream: bool | None) -> GgufJob:
    return prepare(model, options, importance.names, importance.keys, stream)


def _with_weights(job: GgufJob, importance: _Importance, progress: Progress) -> GgufJob:
    """The job with a checkpoint that can be read: downloaded, or streamed."""
    checkpoint = job.model.checkpoint
    size = format_bytes(checkpoint.download_bytes)
    if job.streamed:
        held = format_bytes(streamed_bytes(checkpoint))
        progress.say(f"streaming {size} of {checkpoint.repo_id}: at most {held} of it are on the disk at a time")
        return replace(job, model=job.model.streamed(job.folder / SHARD_FOLDER, progress.say))
    progress.say(f"downloading {size} of {checkpoint.repo_id}")
    pinned = open_checkpoint(f"{checkpoint.repo_id}@{checkpoint.commit}", progress=progress)
    # Planned anew: what the files hold is known for certain only now.
    fetched = replace(open_model(pinned, job.options.pre), base_bytes=job.model.base_bytes)
    return _prepared(fetched, job.options, importance, stream=False)


def _warm(options: GgufOptions, wish: ImatrixWish) -> None:
    """Compile the encoders that the types need; what is wrong with the types is said later."""
    wanted = {name for text in options.types for name in _types(text)}
    warm({name for name in wanted if can_encode(name)}, wish.where != NONE)


def _types(text: str) -> Collection[str]:
    mixture = FTYPES[ftype_named(text)]
    return {*mixture.types, "F32"}


def _promised(model: GgufModel, wish: ImatrixWish) -> _Importance:
    """What is known before anything is collected: a file's importance, or the names of what will be."""
    if wish.where == NONE:
        return _Importance()
    if wish.where == AUTO:
        from quantkit.pipeline.imatrix import check_forward, weight_inputs

        check_forward(model.family)
        return _Importance(weight_inputs(model.family, model.rows))
    path = Path(wish.where).expanduser()
    if not path.exists():
        raise NotFoundError(f"no such imatrix file: {path}", "give --imatrix auto, a file, or none")
    imatrix = read_imatrix(path)
    if not imatrix.entries.keys() & {row.name for row in model.rows}:
        raise BadInputError(
            f"{path} tells of no tensor of this model, but of {next(iter(imatrix.entries))} and such",
            "take the imatrix of this very model",
        )
    _check_columns(imatrix, model.rows)
    return _with_keys(imatrix, path, {"file": path.name, "sha256": file_hash(path)})


def _check_columns(imatrix: Imatrix, rows: Sequence["GgufRow"]) -> None:
    """Refuse the imatrix of a model with the same names and other sizes."""
    for row in rows:
        if row.name not in imatrix.entries:
            continue
        matrices = row.shape[0] if len(row.shape) == 3 else 1
        found = len(imatrix.importance(row.name, row.shape[-1]))
        if found not in (1, matrices):  # one for all experts will do
            values = f"{found} times {row.shape[-1]} values for {row.name}, expected {matrices} times"
            raise BadInputError(f"{imatrix.source}: found {values}", "take the imatrix of this very model")


def _collected(job: GgufJob, wish: ImatrixWish, progress: Progress) -> _Importance:
    """The importance matrix beside the GGUF files, made unless it is there already."""
    from quantkit.devices import choose_device
    from quantkit.pipeline.gguf_imatrix import imatrix_for

    assert wish.calibration is not None
    path = job.folder / f"{job.model.naming.file_name('imatrix')}"
    device = choose_device(wish.device)
    identity = source_identity(job.model.checkpoint)
    with locked(job.folder):
        imatrix, record = imatrix_for(path, job.model, wish.calibration, device, identity, progress)
    return _with_keys(imatrix, path, record)


def _with_keys(imatrix: Imatrix, path: Path, record: dict[str, Any]) -> _Importance:
    from quantkit.pipeline.imatrix_file import imatrix_metadata

    return _Importance(imatrix.entries, imatrix, imatrix_metadata(imatrix, path.name), record)
