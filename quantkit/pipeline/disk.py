"""Whether the disk will do: for an artifact, and for a checkpoint that is not here yet."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from quantkit.errors import DiskError, UsageError
from quantkit.units import format_bytes
from quantkit.weights.source import Checkpoint
from quantkit.weights.streamed import streamed_bytes


def is_streamed(checkpoint: Checkpoint, output: Path, artifact_bytes: int, wished: bool | None) -> bool:
    """Whether a checkpoint is read shard by shard while it comes, instead of being downloaded first.

    Args:
        checkpoint: as it was looked at; one that is here is never streamed.
        output: where the artifact will stand, and the shards that come and go.
        artifact_bytes: of all that is made.
        wished: by the user; None: only where the disk does not hold it all.

    Raises:
        UsageError: streaming is asked for, and the checkpoint is not a repository.
    """
    if checkpoint.repo_id is None and wished:
        raise UsageError(f"{checkpoint.reference} is a folder: only a repository can be streamed", "leave --stream out")
    if not checkpoint.download_bytes or wished is not None or not checkpoint.source.infos:
        return bool(checkpoint.download_bytes and wished)
    wants = [(output, artifact_bytes), (checkpoint.folder, checkpoint.download_bytes)]
    if not missing_bytes(wants):
        return False
    return not missing_bytes([(output, artifact_bytes + streamed_bytes(checkpoint))])


def missing_bytes(wants: Iterable[tuple[Path, int]]) -> int:
    """How much room is missing on the fullest disk, where folders that may not exist yet get that many bytes each."""
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    for folder, size in wants:
        parent = existing(folder)
        disk = parent.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        free[disk] = shutil.disk_usage(parent).free
    return max(0, *(needed[disk] - free[disk] for disk in needed), 0)


def refuse_full_disk(folder: Path, needed: int, hint: str) -> None:
    """Refuse to begin what a disk cannot hold.

    Raises:
        DiskError: with the numbers.
    """
    parent = existing(folder)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DiskError(
            f"the run needs {format_bytes(needed)} of disk, {parent} has {format_bytes(free)} free: "
            f"{format_bytes(needed - free)} missing",
            hint,
        )


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
