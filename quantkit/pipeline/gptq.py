"""The main job: a checkpoint in, a GPTQ checkpoint out, one decoder layer in memory at a time."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantkit.calibration import CalibrationTokens, build_tokens
from quantkit.checkfile import bound_files
from quantkit.checkpoint import open_checkpoint
from quantkit.devices import release_memory, reset_peak
from quantkit.errors import OutOfMemoryError, is_out_of_memory
from quantkit.formats.gptq_config import quantization_config
from quantkit.methods import gptq
from quantkit.pipeline.costs import Cost, Meter, total
from quantkit.pipeline.gptq_imatrix import GptqImatrix
from quantkit.pipeline.job import Job, fingerprint, preflight, prepare, sample_length
from quantkit.pipeline.layerwise import (
    QuantizedLinear,
    advance,
    quantize_with_data,
    quantize_without_data,
    read_layer,
)
from quantkit.pipeline.memo import Memo
from quantkit.pipeline.output import ArtifactWriter, copy_side_files, is_whole, write_config, write_descriptions
from quantkit.pipeline.record import run_record
from quantkit.pipeline.tokenizer import RunTokenizer, Tokenizer, open_tokenizer
from quantkit.plan.rows import DTYPE_OPTION
from quantkit.progress import Progress, Silent
from quantkit.rundir import RunFolder, check_folder
from quantkit.runlock import locked
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.units import format_bytes
from quantkit.versions import version, versions
from quantkit.weights.hashes import file_hashes
from quantkit.weights.source import CONFIG


@dataclass(frozen=True)
class Result:
    """What a run made."""

    output: Path
    record: dict[str, Any]  # run.json


def run(job: Job, progress: Progress | None = None, *, restart: bool = False, imatrix: Path | None = None) -> Result:
    """Execute a prepared job, or continue it where it stopped.

    Args:
        job: from `prepare`.
        progress: told what happens; silent by default.
        restart: begin anew in a folder that holds an earlier run.
        imatrix: a file that is to get the importance matrix of the same pass over the text.

    Returns:
        The folder of the artifact and its run.json.

    Raises:
        QuantkitError: another run holds the folder; disk, memory or input fail. Finished layers are kept
            and the same call goes on from there.
    """
    progress = progress or Silent()
    check_folder(job.output)
    with locked(job.output) as protected:
        if not protected:
            progress.say(f"note: the file system of {job.output} has no locks; start no second run there")
        return _run(job, progress, restart, imatrix)


def _run(job: Job, progress: Progress, restart: bool, imatrix: Path | None) -> Result:
    meter = Meter(job.device.device)
    preflight(job)
    importance = GptqImatrix(imatrix, job) if imatrix else None
    for note in job.tokenizer.notes:
        progress.say(note)
    tokenizer, carried = open_tokenizer(job)
    if carried.unread:
        progress.say(f"note: {carried.unread}; it is copied unread")
    if job.checkpoint.download_bytes:
        progress.say(f"downloading {format_bytes(job.checkpoint.download_bytes)} of {job.checkpoint.repo_id}")
        pinned = open_checkpoint(f"{job.checkpoint.repo_id}@{job.checkpoint.commit}")
        # Planned anew: of `.bin` files only the names were known, not what they hold.
        device = str(job.device.device)
        job = prepare(pinned.reference, job.recipe, output=job.output, device=device, strict=job.strict)
    reset_peak()
    tokens = _calibration_tokens(job, tokenizer, progress) if job.recipe.method == "gptq" else None
    del tokenizer
    inputs = fingerprint(job, tokens.sha256 if tokens else None, versions())
    folder = RunFolder(job.output, inputs, restart=restart)
    if folder.complete and not is_whole(job.checkpoint, job.plan, job.output, carried.files):
        progress.say(f"{job.output} was finished, but a file is gone; making it again")
        folder.reopen()
    if folder.complete:
        progress.say(f"{job.output} is finished already; nothing to do")
        if importance and tokens:
            importance.write(job, tokens, inputs, progress)
        return Result(job.output, json.loads((job.output / "run.json").read_text("utf-8")))
    with ArtifactWriter(job.plan, job.output, folder.finished_layers) as writer:
        folder.forget_from(writer.intact_layers)
        try:
            _layers(job, tokens, folder, writer, progress, meter, importance)
        finally:
            progress.stop()
        writer.finish_shards()
    record = _finish(job, tokens, carried, inputs, folder, total([*folder.costs(), meter.read()]))
    if importance and tokens:
        importance.write(job, tokens, inputs, progress)
    return Result(job.output, record)


def _calibration_tokens(job: Job, tokenizer: Tokenizer, progress: Progress) -> CalibrationTokens:
    vocabulary = job.plan.row(f"{job.family.embedding}.weight").source.shape[0]
    length = sample_length(job.recipe, job.config)
    tokens = build_tokens(job.recipe.calibration, tokenizer, vocabulary, length)
    samples, length = tokens.ids.shape
    progress.say(f"calibration: {samples} x {length} tokens from {', '.join(name for name, _ in tokens.sets)}")
    if samples < tokens.asked_samples:
        progress.say(
            f"calibration: the text holds {samples} of the {tokens.asked_samples} samples asked for; "
            "for a large model give more, such as --calibration c4"
        )
    return tokens


def _layers(
    job: Job,
    tokens: CalibrationTokens | None,
    folder: RunFolder,
    writer: ArtifactWriter,
    progress: Progress,
    meter: Meter,
    importance: GptqImatrix | None,
) -> None:
    source = job.checkpoint.source
    skeleton = job.skeleton
    count, done = len(job.plan.layers), folder.finished_layers
    hidden, calls = torch.empty(0), [LayerCall((), {})] * count
    with_data = tokens is not None and done < count
    if tokens is not None and with_data:
        outer = skeleton.outer_names()
        skeleton.fill(read_layer(source, outer))
        hidden, calls = skeleton.embed(tokens.ids)
        skeleton.empty(outer)
        release_memory()
    writer.copy_outer(source)
    memo = Memo(job.family, job.budget.remembered)
    if done:
        progress.say(f"continuing: {done} of {count} layers are finished")
    progress.start(count, done)
    for index in range(0 if with_data else done, count):
        with _memory_for(index):
            if index < done:
                _replay(job, skeleton, index, hidden, calls[index], writer)
                continue
            started = time.perf_counter()
            for linear in _quantize(job, skeleton, index, hidden, calls[index], writer, memo):
                writer.write_linear(linear.name, linear.weight)
                folder.record_linear(linear.record)
                progress.linear(linear.record)
                if importance:
                    importance.note(linear)
            if with_data and index + 1 < count:
                advance(skeleton, index, hidden, calls[index], memo)
            if with_data:
                skeleton.empty(skeleton.layer_names(index))
            writer.sync(index)
            folder.record_finished(index, meter.read())
            release_memory()
            progress.layer(index, time.perf_counter() - started)


@contextmanager
def _memory_for(layer: int) -> Iterator[None]:
    """Name the layer for which memory did not do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory in layer {layer}: {str(error).partition(chr(10))[0] or 'no reason given'}",
            "finished layers are kept: free memory and give the same command again; or lower --samples and --restart",
        ) from error


def _quantize(
    job: Job,
    skeleton: Skeleton,
    index: int,
    hidden: torch.Tensor,
    call: LayerCall,
    writer: ArtifactWriter,
    memo: Memo,
) -> Iterator[QuantizedLinear]:
    stages, recipe = job.plan.layers[index], job.recipe
    names = skeleton.layer_names(index)
    tensors = read_layer(job.checkpoint.source, names)
    for name in names:
        writer.write_kept(name, tensors[name])
    if recipe.method == "rtn":
        yield from quantize_without_data(stages, tensors, recipe.scales, job.device.device)
        return
    skeleton.fill(tensors)
    settings = gptq.Settings(recipe.act_order, recipe.damp_percent, recipe.scales)
    yield from quantize_with_data(skeleton, stages, tensors, hidden, call, settings, memo)


def _replay(
    job: Job, skeleton: Skeleton, index: int, hidden: torch.Tensor, call: LayerCall, writer: ArtifactWriter
) -> None:
    """Carry the activations through a layer that an earlier run finished, from the artifact's own bytes."""
    names = skeleton.layer_names(index)
    quantized = {name + ".weight" for stage in job.plan.layers[index] if stage.grid for name in stage.linears}
    skeleton.fill(read_layer(job.checkpoint.source, [name for name in names if name not in quantized]))
    for name in sorted(quantized):
        weight = writer.read_linear(name.removesuffix(".weight"))
        skeleton.fill({name: weight.dequantize(skeleton.dtype)})
    if index + 1 < len(job.plan.layers):
        advance(skeleton, index, hidden, call, Memo(job.family, ()))
    skeleton.empty(names)
    release_memory()


def _finish(
    job: Job,
    tokens: CalibrationTokens | None,
    tokenizer: RunTokenizer,
    inputs: dict[str, Any],
    folder: RunFolder,
    spent: Cost,
) -> dict[str, Any]:
    """Small files last: what has a config.json is whole."""
    record = run_record(job, tokens, inputs, folder, spent)
    copy_side_files(job.checkpoint, job.output, tokenizer.files)
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
    write_descriptions(job.output, job.plan, described)
    record["tokenizer"] = tokenizer.prove(job.output, config)
    record["files"] = file_hashes(job.output, [name for name in bound_files(job.output) if name != CONFIG])
    folder.write_run(record)
    write_config(job.output, config, described)
    return record
