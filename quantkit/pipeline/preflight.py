"""Jobs refused for which disk or memory will not do, before the first byte is downloaded or written."""

from collections.abc import Sequence

import torch

from quantkit.errors import OutOfMemoryError
from quantkit.pipeline.check_budget import CheckBudget
from quantkit.pipeline.disk import missing_bytes, refuse_full_disk
from quantkit.pipeline.job import Job
from quantkit.pipeline.machine import available_bytes
from quantkit.plan.budget import CODE_BYTES, SMALL_FILES
from quantkit.rundir import check_folder
from quantkit.units import format_bytes, format_gib
from quantkit.weights.streamed import SHARD_FOLDER, streamed_bytes


def preflight(jobs: Sequence[Job], check: CheckBudget | None = None) -> None:
    """Refuse jobs that run together, with the numbers.

    Args:
        jobs: of one checkpoint.
        check: in the same pass. Of a streamed base its activations are also kept on the disk, and stand there twice
            while they are replaced.

    Raises:
        BadInputError: an output folder holds something else.
        DiskError: less free disk than artifacts and download take.
        OutOfMemoryError: less available memory than the predicted peak.
    """
    for job in jobs:
        check_folder(job.output)
    _check_disk(jobs, 2 * check.activation_bytes if check and jobs[0].streamed else 0)
    needed, available = host_bytes(jobs, check), available_bytes()
    if needed > available:
        activations = sum(job.budget.activation_bytes for job in jobs)
        raise OutOfMemoryError(
            f"the run needs {format_gib(needed)} of memory, {format_gib(available)} is available",
            f"{format_gib(activations)} of it holds calibration activations: lower --samples or --sequence-length",
        )
    for job in jobs:
        if job.budget.device_bytes:
            free_device, _ = torch.cuda.mem_get_info(job.device.device)
            if job.budget.device_bytes > free_device:
                raise OutOfMemoryError(
                    f"the run needs {format_gib(job.budget.device_bytes)} of GPU memory, "
                    f"{format_gib(free_device)} is free",
                    "use --device cpu",
                )


def host_bytes(jobs: Sequence[Job], check: CheckBudget | None = None) -> int:
    """Predicted peak memory of jobs in one pass: the largest of them, and the activations of all others.

    A check in the same pass has its own activations, layers and products, beside those of the jobs.
    """
    largest = max(jobs, key=lambda job: job.budget.host_bytes)
    peak = largest.budget.host_bytes + sum(job.budget.activation_bytes for job in jobs if job is not largest)
    if check is None:
        return peak
    activations = sum(job.budget.activation_bytes for job in jobs)
    return max(peak + check.activation_bytes, check.host_bytes + activations) + CODE_BYTES


def _check_disk(jobs: Sequence[Job], kept: int) -> None:
    first = jobs[0]
    checkpoint = first.checkpoint
    wants = []
    for job in jobs:
        there = [path for path in job.output.glob("*") if path.is_file()] if job.output.exists() else []
        written = sum(path.stat().st_size for path in there)
        wants.append((job.output, job.plan.artifact_bytes + SMALL_FILES - written))
    if first.streamed:
        here = list((first.output / SHARD_FOLDER).glob("*/*"))
        fetched, where = streamed_bytes(checkpoint) - sum(path.stat().st_size for path in here), first.output
    else:
        fetched, where = checkpoint.download_bytes, checkpoint.folder
    wants += [(where, fetched), (first.output, kept)]
    missing = missing_bytes(wants)
    if not missing:
        return
    artifacts = format_bytes(sum(job.plan.artifact_bytes for job in jobs))
    said = f"{artifacts} is the artifact, {format_bytes(fetched)} the {'shards' if first.streamed else 'download'}"
    way = "" if first.streamed or not checkpoint.download_bytes else "give --stream, "
    hint = f"{said}; {way}choose another --out, or fewer --bits"
    refuse_full_disk(first.output, sum(size for _, size in wants), hint)
    refuse_full_disk(where, fetched, hint)
