"""The main job: a checkpoint in, GPTQ checkpoints out, one decoder layer in memory at a time."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibration import CalibrationTokens
from quantkit.checkfile import bound_files
from quantkit.checkpoint import open_checkpoint
from quantkit.devices import reset_peak
from quantkit.formats.gptq_config import quantization_config
from quantkit.pipeline.calibration_sets import calibration_sets
from quantkit.pipeline.costs import Cost, Meter, total
from quantkit.pipeline.gptq_imatrix import GptqImatrix
from quantkit.pipeline.gptq_pass import GptqPass
from quantkit.pipeline.job import Job, fingerprint, prepare
from quantkit.pipeline.memo import Memo
from quantkit.pipeline.output import ArtifactWriter, config_text, copy_side_files, is_whole, write_descriptions
from quantkit.pipeline.preflight import host_bytes, preflight
from quantkit.pipeline.provenance import write_gptq_manifest
from quantkit.pipeline.record import run_record
from quantkit.pipeline.tokenizer import RunTokenizer, open_tokenizer
from quantkit.plan.order import reading_order
from quantkit.plan.rows import DTYPE_OPTION
from quantkit.progress import Progress, Silent
from quantkit.rundir import RunFolder, check_folder, is_finished, says_finished
from quantkit.runlock import locked
from quantkit.units import format_bytes
from quantkit.versions import version, versions
from quantkit.weights.files import write_file
from quantkit.weights.hashes import file_hashes
from quantkit.weights.source import CONFIG
from quantkit.weights.streamed import SHARD_FOLDER, StreamedSource, streamed, streamed_bytes

if TYPE_CHECKING:
    from quantkit.pipeline.same_pass import SamePassCheck


@dataclass(frozen=True)
class Result:
    """What a run made."""

    output: Path
    record: dict[str, Any]  # run.json
    check: dict[str, Any] | None = None  # check.json, where it was measured in the same pass


@dataclass(frozen=True)
class _Making:
    """A job at work."""

    job: Job
    tokens: CalibrationTokens | None
    carried: RunTokenizer
    inputs: dict[str, Any]
    folder: RunFolder
    importance: GptqImatrix | None


def run(
    job: Job,
    progress: Progress | None = None,
    *,
    restart: bool = False,
    imatrix: Path | None = None,
    check: "SamePassCheck | None" = None,
) -> Result:
    """Execute a prepared job, or continue it where it stopped.

    Args:
        job: from `prepare`.
        progress: told what happens; silent by default.
        restart: begin anew in a folder that holds an earlier run.
        imatrix: a file that is to get the importance matrix of the same pass over the text.
        check: measures what was lost, in the same pass over the source.

    Returns:
        The folder of the artifact and its run.json.

    Raises:
        QuantkitError: another run holds the folder; disk, memory or input fail. Finished layers are kept
            and the same call goes on from there.
    """
    return run_together([job], progress, restart=restart, imatrix=imatrix, check=check)[0]


def run_together(
    jobs: Sequence[Job],
    progress: Progress | None = None,
    *,
    restart: bool = False,
    imatrix: Path | None = None,
    check: "SamePassCheck | None" = None,
) -> list[Result]:
    """Several artifacts of one checkpoint in one pass over its layers; each has the bytes that a run alone gives it.

    Args:
        jobs: of the same checkpoint, with folders of their own.
        progress: as for `run`.
        restart: as for `run`.
        imatrix: as for `run`; it is taken from the first job that calibrates.
        check: as for `run`; it compares all artifacts with the source at once.

    Raises:
        QuantkitError: as for `run`.
    """
    progress = progress or Silent()
    for job in jobs:
        check_folder(job.output)
    with ExitStack() as locks:
        for job in jobs:
            if not locks.enter_context(locked(job.output)):
                progress.say(f"note: the file system of {job.output} has no locks; start no second run there")
        return _run(list(jobs), progress, restart, imatrix, check)


def _run(
    jobs: list[Job], progress: Progress, restart: bool, imatrix: Path | None, check: "SamePassCheck | None"
) -> list[Result]:
    meter = Meter(jobs[0].device.device)
    asked = check.budget if check else None
    open_jobs = [job for job in jobs if restart or not says_finished(job.output)]
    if open_jobs:
        preflight(open_jobs, asked)
    calibrating = next((job for job in jobs if job.recipe.method == "gptq"), jobs[0])
    importance = GptqImatrix(imatrix, calibrating) if imatrix else None
    read = [open_tokenizer(job) for job in jobs]
    for note in dict.fromkeys(note for job in jobs for note in job.tokenizer.notes):
        progress.say(note)
    for carried in {carried.unread: carried for _, carried in read if carried.unread}.values():
        progress.say(f"note: {carried.unread}; it is copied unread")
    if any(not job.checkpoint.source.infos for job in jobs):  # bare pickles: what they hold is known from the files
        jobs = _with_weights(jobs, progress)
    reset_peak()
    tokens = calibration_sets(jobs, [tokenizer for tokenizer, _ in read], progress)
    inputs = [fingerprint(job, one.sha256 if one else None, versions()) for job, one in zip(jobs, tokens, strict=True)]
    whole = [
        is_finished(job.output, told) and is_whole(job.checkpoint, job.plan, job.output, carried.files)
        for job, told, (_, carried) in zip(jobs, inputs, read, strict=True)
    ]
    fetched = jobs
    if restart or not all(whole):
        preflight([job for job, done in zip(jobs, whole, strict=True) if restart or not done], asked)
        fetched = _with_weights(jobs, progress)
    if len(fetched) > 1 or check:
        fetched = _as_company(fetched, check)
    makings = []
    for number, job in enumerate(fetched):
        folder = RunFolder(job.output, inputs[number], restart=restart)
        if folder.complete and not whole[number]:
            progress.say(f"{job.output} was finished, but a file is gone; making it again")
            folder.reopen()
        own = importance if jobs[number].output == calibrating.output else None
        makings.append(_Making(job, tokens[number], read[number][1], inputs[number], folder, own))
    del read
    source = fetched[0].checkpoint.source
    with closing(source) if isinstance(source, StreamedSource) else nullcontext():
        _make([making for making in makings if not making.folder.complete], meter, progress, check)
    if isinstance(source, StreamedSource):
        source.remove()
    return [_result(making, progress, check) for making in makings]


def _as_company(jobs: Sequence[Job], check: "SamePassCheck | None") -> list[Job]:
    """Jobs that predict what they take together, and a check with them: the one process has one peak."""
    peak = host_bytes(jobs, check.budget if check else None)
    seconds = check.budget.seconds if check else 0.0
    return [
        replace(job, budget=replace(job.budget, host_bytes=peak, seconds=job.budget.seconds + seconds)) for job in jobs
    ]


def _with_weights(jobs: list[Job], progress: Progress) -> list[Job]:
    """The jobs with a checkpoint that can be read: downloaded, or streamed."""
    checkpoint = jobs[0].checkpoint
    if not checkpoint.download_bytes:
        return jobs
    size = format_bytes(checkpoint.download_bytes)
    if jobs[0].streamed:
        held = format_bytes(streamed_bytes(checkpoint))
        progress.say(f"streaming {size} of {checkpoint.repo_id}: at most {held} of it are on the disk at a time")
        here = streamed(checkpoint, jobs[0].output / SHARD_FOLDER, progress.say)
        return [replace(job, checkpoint=here) for job in jobs]
    progress.say(f"downloading {size} of {checkpoint.repo_id}")
    pinned = open_checkpoint(f"{checkpoint.repo_id}@{checkpoint.commit}", progress=progress)
    # Planned anew: what the files hold is known for certain only now.
    return [
        prepare(pinned, job.recipe, output=job.output, device=str(job.device.device), strict=job.strict) for job in jobs
    ]


def _make(makings: list[_Making], meter: Meter, progress: Progress, check: "SamePassCheck | None") -> None:
    """Everything that is not finished: one pass over the layers, then the small files of each artifact."""
    if not makings:
        return
    with ExitStack() as writers:
        memo = Memo(makings[0].job.family, makings[0].job.budget.remembered)
        passes = []
        for making in makings:
            folder, job = making.folder, making.job
            writer = ArtifactWriter(job.plan, job.output, folder.finished_layers, folder.beside())
            folder.forget_from(writers.enter_context(writer).intact_layers)
            passes.append(GptqPass(job, making.tokens, folder, writer, memo, meter, progress, making.importance))
        if check:
            check.open(passes)
        try:
            _through_layers(passes, progress, check)
        finally:
            progress.stop()
        if check:
            check.score()
        for one in passes:
            one.writer.finish_shards()
    for making in makings:
        _finish(making, total([*making.folder.costs(), meter.read()]))


def _through_layers(passes: list[GptqPass], progress: Progress, check: "SamePassCheck | None") -> None:
    count, done = passes[0].count, min(one.folder.finished_layers for one in passes)
    source = passes[0].job.checkpoint.source
    if isinstance(source, StreamedSource):
        source.expect(_reading_order(passes, check))
    for one in passes:
        one.begin()
    if check:
        check.begin()
    if done:
        progress.say(f"continuing: {done} of {count} layers are finished")
    progress.start(count, done)
    for index in range(count):
        started = time.perf_counter()
        quantized = [one.layer(index) for one in passes]
        if check:
            check.layer(index)
        if any(quantized):
            progress.layer(index, time.perf_counter() - started)
    for one in passes:
        one.end()


def _reading_order(passes: list[GptqPass], check: "SamePassCheck | None") -> list[str]:
    """Every read to come: of each pass for itself, layer by layer."""
    readers = [one.reads() for one in passes] + ([({}, check.reads())] if check else [])
    beside: dict[int, list[str]] = {}
    layers: dict[int, list[str]] = {}
    for outer, own in readers:
        for index, outer_names in outer.items():
            beside.setdefault(index, []).extend(outer_names)
        for index, names in own.items():
            layers.setdefault(index, []).extend(names)
    return reading_order(passes[0].count, beside, layers)


def _result(making: _Making, progress: Progress, check: "SamePassCheck | None") -> Result:
    output = making.job.output
    if making.folder.complete:
        progress.say(f"{output} is finished already; nothing to do")
    if making.importance and making.tokens:
        making.importance.write(making.job, making.tokens, making.inputs, progress)
    record = json.loads((output / "run.json").read_text("utf-8"))
    measured = check.record(output, progress) if check and not making.folder.complete else None
    return Result(output, record, measured)


def _finish(making: _Making, spent: Cost) -> None:
    """Small files last: what has a config.json is whole."""
    job, output = making.job, making.job.output
    record = run_record(job, making.tokens, making.inputs, making.folder, spent)
    copy_side_files(job.checkpoint, output, making.carried.files)
    stored = DTYPE_OPTION[job.plan.kept_dtype]
    config = {key: stored if key in ("torch_dtype", "dtype") else value for key, value in job.config.items()}
    described = quantization_config(
        job.recipe.grid,
        job.plan.grids(),
        job.family.fused,
        desc_act=job.layout.desc_act,
        damp_percent=job.recipe.damp_percent if job.recipe.method == "gptq" else None,
        version=version(),
        transformers=record["first_transformers"],
    )
    write_descriptions(output, job.plan, described)
    record["tokenizer"] = making.carried.prove(output, config)
    record["files"] = file_hashes(output, [name for name in bound_files(output) if name != CONFIG])
    making.folder.write_run(record)
    raw = config_text(config, described)
    write_gptq_manifest(output, job.checkpoint, record, {CONFIG: raw})
    write_file(output / CONFIG, raw)
