"""check.json beside an artifact: what was measured, bound to the files that were measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import DiskError
from quantkit.weights.files import write_file
from quantkit.weights.hashes import file_hashes

CHECK_FILE = "check.json"
SCHEMA_VERSION = 1
BOUND = (".safetensors", ".bin", ".gguf", ".index.json", "config.json", "tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Standing:
    """Whether an artifact's check still counts."""

    counts: bool
    reason: str  # for people
    record: dict[str, Any] | None  # check.json


def bound_files(folder: Path) -> list[str]:
    """The files that decide what an artifact computes: weights, configuration, tokenizer."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(BOUND))


def write_check(folder: Path, record: dict[str, Any]) -> Path:
    """Write check.json into the artifact's folder.

    Raises:
        DiskError: the folder cannot be written.
    """
    path = folder / CHECK_FILE
    write_file(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return path


def standing(folder: Path) -> Standing:
    """Whether the check of an artifact's folder passed and its files are still those that were checked.

    Raises:
        DiskError: a file cannot be read.
    """
    try:
        record = json.loads((folder / CHECK_FILE).read_bytes())
    except FileNotFoundError:
        return Standing(False, f"{folder} has no {CHECK_FILE}: it was not checked", None)
    except OSError as error:
        raise DiskError(f"cannot read {folder / CHECK_FILE}: {error.strerror}") from error
    except ValueError:
        return Standing(False, f"{folder / CHECK_FILE} is not JSON", None)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return Standing(False, f"{folder / CHECK_FILE} is not of schema {SCHEMA_VERSION}", None)
    artifact = record["artifacts"][0]
    present = bound_files(folder)
    hashes = file_hashes(folder, present)
    for name in sorted({*present, *artifact["files"]}):
        if hashes.get(name) != artifact["files"].get(name):
            what = "is gone" if name not in hashes else "is new" if name not in artifact["files"] else "has changed"
            return Standing(False, f"{name} {what} since the check; it no longer counts", record)
    if not artifact["passed"]:
        return Standing(False, "the check did not pass", record)
    return Standing(True, "checked, passed, and the files are those that were checked", record)
