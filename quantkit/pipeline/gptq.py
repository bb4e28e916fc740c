"""The main job: a checkpoint in, a GPTQ checkpoint out, one decoder layer in memory at a time."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantkit.calibration import CalibrationTokens, build_tokens, public_name
from quantkit.checkpoint import open_checkpoint
from quantkit.devices import peak_resident_bytes, release_memory, reset_peak
from quantkit.formats.gptq_config import quantization_config
from quantkit.formats.runtimes import runtime_table
from quantkit.methods import gptq
from quantkit.pipeline.job import Job, file_hashes, fingerprint, preflight, prepare, sample_length
from quantkit.pipeline.layerwise import (
    QuantizedLinear,
    advance,
    quantize_with_data,
    quantize_without_data,
    read_layer,
)
from quantkit.pipeline.memo import Memo
from quantkit.pipeline.output import ArtifactWriter, copy_side_files, is_whole, write_configuration
from quantkit.plan.rows import DTYPE_OPTION
from quantkit.progress import Progress, Silent
from quantkit.recipe import Recipe
from quantkit.rundir import SCHEMA_VERSION, RunFolder
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.units import format_bytes
from quantkit.versions import version, versions
from quantkit.vocab.load import load_tokenizer


@dataclass(frozen=True)
class Result:
    """What a run made."""

    output: Path
    record: dict[str, Any]  # run.json


def run(job: Job, progress: Progress | None = None) -> Result:
    """Execute a prepared job, or continue it where it stopped.

    Args:
        job: from `prepare`.
        progress: told what happens; silent by default.

    Returns:
        The folder of the artifact and its run.json.

    Raises:
        QuantkitError: disk, memory or input fail; finished layers are kept and the same call goes on
            from there.
    """
    progress = progress or Silent()
    started, cpu_started = time.perf_counter(), time.process_time()
    preflight(job)
    if job.checkpoint.download_bytes:
        progress.say(f"downloading {format_bytes(job.checkpoint.download_bytes)} of {job.checkpoint.repo_id}")
        pinned = open_checkpoint(f"{job.checkpoint.repo_id}@{job.checkpoint.commit}")
        # Planned anew: of `.bin` files only the names were known, not what they hold.
        device = str(job.device.device)
        job = prepare(pinned.reference, job.recipe, output=job.output, device=device, strict=job.strict)
    reset_peak()
    tokens = _calibration_tokens(job, progress) if job.recipe.method == "gptq" else None
    inputs = fingerprint(job, tokens.sha256 if tokens else None, versions())
    folder = RunFolder(job.output, inputs)
    if folder.complete and not is_whole(job.checkpoint, job.plan, job.output):
        progress.say(f"{job.output} was finished, but a file is gone; making it again")
        folder.reopen()
    if folder.complete:
        progress.say(f"{job.output} is finished already; nothing to do")
        return Result(job.output, json.loads((job.output / "run.json").read_text("utf-8")))
    with ArtifactWriter(job.plan, job.output, folder.finished_layers) as writer:
        folder.forget_from(writer.intact_layers)
        try:
            _layers(job, tokens, folder, writer, progress)
        finally:
            progress.stop()
        writer.finish_shards()
    record = _finish(job, tokens, inputs, folder, time.perf_counter() - started, time.process_time() - cpu_started)
    return Result(job.output, record)


def _calibration_tokens(job: Job, progress: Progress) -> CalibrationTokens:
    tokenizer = load_tokenizer(job.checkpoint.folder, job.config)
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
    job: Job, tokens: CalibrationTokens | None, folder: RunFolder, writer: ArtifactWriter, progress: Progress
) -> None:
    source = job.checkpoint.source
    skeleton = job.skeleton
    hidden, calls = torch.empty(0), [LayerCall((), {})] * len(job.plan.layers)
    if tokens is not None:
        outer = skeleton.outer_names()
        skeleton.fill(read_layer(source, outer))
        hidden, calls = skeleton.embed(tokens.ids)
        skeleton.empty(outer)
        release_memory()
    writer.copy_outer(source)
    memo = Memo(job.family, job.budget.remembered)
    if folder.finished_layers:
        progress.say(f"continuing: {folder.finished_layers} of {len(job.plan.layers)} layers are finished")
    progress.start(len(job.plan.layers), folder.finished_layers)
    for index in range(len(job.plan.layers)):
        if index < folder.finished_layers:
            if tokens is not None:
                _replay(job, skeleton, index, hidden, calls[index], writer)
            continue
        started = time.perf_counter()
        for linear in _quantize(job, skeleton, index, hidden, calls[index], writer, memo):
            writer.write_linear(linear.name, linear.weight)
            folder.record_linear(linear.record)
            progress.linear(linear.record)
        if tokens is not None and index + 1 < len(job.plan.layers):
            advance(skeleton, index, hidden, calls[index], memo)
        if tokens is not None:
            skeleton.empty(skeleton.layer_names(index))
        writer.sync(index)
        folder.record_finished(index)
        release_memory()
        progress.layer(index, time.perf_counter() - started)


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
    inputs: dict[str, Any],
    folder: RunFolder,
    seconds: float,
    cpu_seconds: float,
) -> dict[str, Any]:
    """Small files last: what has a config.json is whole."""
    record = _run_record(job, tokens, inputs, folder, seconds, cpu_seconds)
    copy_side_files(job.checkpoint, job.output)
    stored = DTYPE_OPTION[job.plan.kept_dtype]
    config = {key: stored if key in ("torch_dtype", "dtype") else value for key, value in job.config.items()}
    described = quantization_config(
        job.recipe.grid,
        job.plan.grids(),
        job.family.fused,
        desc_act=job.layout.desc_act,
        damp_percent=job.recipe.damp_percent if job.recipe.method == "gptq" else None,
        version=version(),
    )
    folder.write_run(record)
    write_configuration(job.output, job.plan, config, described)
    return record


def _run_record(
    job: Job,
    tokens: CalibrationTokens | None,
    inputs: dict[str, Any],
    folder: RunFolder,
    seconds: float,
    cpu_seconds: float,
) -> dict[str, Any]:
    """run.json of a finished run."""
    recipe = job.recipe
    linears = folder.linears()
    rounded = [row["name"] for row in linears if recipe.method == "gptq" and row["method"] == "rtn"]
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "fingerprint": inputs,
        "source": {
            "repo": job.checkpoint.repo_id,
            "commit": job.checkpoint.commit,
            "files": file_hashes(job) if job.checkpoint.commit else inputs["source"],
        },
        "recipe": _published(recipe),
        "calibration": None
        if tokens is None
        else {
            "sha256": tokens.sha256,
            "samples": tokens.ids.shape[0],
            "sequence_length": tokens.ids.shape[1],
            "tokens_by_set": dict(tokens.sets),
        },
        "versions": versions(),
        "device": job.device.label,
        "bits_per_weight": round(job.plan.bits_per_weight, 4),
        "artifact_bytes": job.plan.artifact_bytes,
        "predicted": {
            "host_bytes": job.budget.host_bytes,
            "device_bytes": job.budget.device_bytes,
            "disk_bytes": job.budget.disk_bytes,
            "seconds": round(job.budget.seconds, 1),
        },
        "measured": {
            "host_bytes": peak_resident_bytes(),
            "device_bytes": _peak_device_bytes(job),
            "disk_bytes": sum(path.stat().st_size for path in job.output.iterdir() if path.is_file()),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
        },
        "mean_relative_error": sum(row["relative_error"] for row in linears) / len(linears),
        "rounded_to_nearest": rounded,
        "notes": list(job.plan.notes),
        "runtimes": {row.runtime.name: row.reason or "loads" for row in runtime_table(job.layout)},
        "first_transformers": job.family.first_transformers,
    }


def _published(recipe: Recipe) -> dict[str, Any]:
    """The recipe without local paths: a text file by its name alone."""
    fields = recipe.model_dump(mode="json")
    fields["calibration"]["text"] = [public_name(text) for text in recipe.calibration.text]
    return fields


def _peak_device_bytes(job: Job) -> int:
    return torch.cuda.max_memory_allocated(job.device.device) if job.device.device.type == "cuda" else 0
