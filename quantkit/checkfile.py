"""The check of an artifact on disk: what was measured, bound to the files that were measured.

It is check.json in an artifact's folder, and NAME.check.json beside a GGUF model NAME.gguf.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import DiskError
from quantkit.weights.files import write_file
from quantkit.weights.gguf_names import SUFFIX, find_gguf, gguf_parts, gguf_stem
from quantkit.weights.hashes import file_hashes

CHECK_FILE = "check.json"
SCHEMA_VERSION = 1
BOUND = (".safetensors", ".bin", ".index.json", "config.json", "tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Standing:
    """Whether an artifact's check still counts."""

    counts: bool
    reason: str  # for people
    record: dict[str, Any] | None  # what it holds
    is_of_these: bool = False  # whether the files that were checked are these, passed or not


def home_of(path: Path) -> Path:
    """The folder of an artifact that is a folder or a GGUF file."""
    return path.parent if _is_gguf(path) else path


def bound_files(path: Path) -> list[str]:
    """The files in `home_of` that decide what an artifact computes: weights, configuration, tokenizer.

    A GGUF file has all of it, and the parts of a split one belong together.
    """
    if _is_gguf(path):
        return [part.name for part in gguf_parts(path)]
    return sorted(file.name for file in path.iterdir() if file.is_file() and file.name.endswith(BOUND))


def check_path(path: Path) -> Path:
    """Where the check of an artifact lies."""
    return path.with_name(f"{gguf_stem(path)}.{CHECK_FILE}") if _is_gguf(path) else path / CHECK_FILE


def write_check(path: Path, record: dict[str, Any]) -> Path:
    """Write the check of an artifact.

    Args:
        path: its folder or its GGUF file.
        record: with its own entry alone.

    Raises:
        DiskError: the folder cannot be written.
    """
    place = check_path(path)
    write_file(place, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return place


def standing(path: Path, hashes: Mapping[str, str] | None = None) -> Standing:
    """Whether the check of an artifact passed and its files are still those that were checked.

    Args:
        path: its folder or its GGUF file, or the folder of that file.
        hashes: sha256 of its files by name, where they were just taken; without them every byte is read.

    Raises:
        BadInputError: a folder of several GGUF models.
        DiskError: a file cannot be read.
    """
    path = find_gguf(path) or path
    place = check_path(path)
    try:
        record = json.loads(place.read_bytes())
    except FileNotFoundError:
        return Standing(False, f"{path} has no {place.name}: it was not checked", None)
    except OSError as error:
        raise DiskError(f"cannot read {place}: {error.strerror}") from error
    except ValueError:
        return Standing(False, f"{place} is not JSON", None)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return Standing(False, f"{place} is not of schema {SCHEMA_VERSION}", None)
    artifact = _artifact(record)
    if artifact is None:
        return Standing(False, f"{place} is not the check of one artifact", None)
    home = home_of(path)
    present = [name for name in bound_files(path) if (home / name).exists()]
    found = file_hashes(home, present) if hashes is None else {name: hashes.get(name) for name in present}
    for name in sorted({*present, *artifact["files"]}):
        if found.get(name) != artifact["files"].get(name):
            what = "is gone" if name not in found else "is new" if name not in artifact["files"] else "has changed"
            return Standing(False, f"{name} {what} since the check; it no longer counts", record)
    if not artifact["passed"]:
        return Standing(False, "the check did not pass", record, is_of_these=True)
    return Standing(True, "checked, passed, and the files are those that were checked", record, is_of_these=True)


def _artifact(record: dict[str, Any]) -> dict[str, Any] | None:
    """The only artifact of a check's record, None where it has another form."""
    match record.get("artifacts"):
        case [{"files": dict(), "passed": bool()} as artifact]:
            return dict(artifact)
    return None


def _is_gguf(path: Path) -> bool:
    return path.name.endswith(SUFFIX) and not path.is_dir()
