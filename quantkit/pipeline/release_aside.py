"""GGUF models of a release that did not pass: kept, but not in the folder that is published."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from quantkit.checkfile import check_path, standing
from quantkit.errors import DiskError
from quantkit.manifest import read_manifest
from quantkit.pipeline.provenance import gguf_records, write_gguf_manifest
from quantkit.weights.files import sync_folder
from quantkit.weights.gguf_names import gguf_parts, gguf_stem

ASIDE = "did-not-pass"  # beside the folder of GGUF files


def take_back(folder: Path) -> None:
    """Move every model that an earlier run set aside back into the folder of GGUF files.

    Raises:
        DiskError: a file cannot be moved.
    """
    aside = folder.parent / ASIDE
    if aside.is_dir():
        _move(sorted(aside.iterdir()), folder)
        aside.rmdir()


def set_aside(folder: Path, verdicts: Mapping[Path, bool]) -> list[str]:
    """Move every model without a check that counts out of the folder, with all that speaks of it, and of its manifest.

    Args:
        folder: of GGUF files.
        verdicts: whether a model has passed, by its first file, where that is known; of any other, every byte is read.

    Returns:
        What was moved.

    Raises:
        DiskError: a file cannot be read or moved.
    """
    models = {folder / min(record["files"]): path for path, record in gguf_records(folder).items()}
    failed = [model for model in models if not (verdicts[model] if model in verdicts else standing(model).counts)]
    for model in failed:
        files = (models[model], check_path(model), *gguf_parts(model))
        _move([path for path in files if path.exists()], folder.parent / ASIDE)
    manifest = read_manifest(folder) if failed else None
    if manifest is not None:
        write_gguf_manifest(folder, manifest.base)
    return [gguf_stem(model) for model in failed]


def _move(files: Iterable[Path], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            path.replace(folder / path.name)
        sync_folder(folder)
    except OSError as error:
        raise DiskError(f"cannot move {error.filename} to {folder}: {error.strerror}") from error
