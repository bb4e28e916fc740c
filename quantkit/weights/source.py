"""A checkpoint as the rest of the program sees it: where it came from, its configuration, its tensors."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import DiskError, NotFoundError
from quantkit.tensors import TensorSource
from quantkit.weights.header import parse_object
from quantkit.weights.local import LocalSource
from quantkit.weights.regular import read_small

CONFIG = "config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint."""

    reference: str  # as the user gave it
    folder: Path  # its small files; its weights too, unless only headers were asked for
    config: Mapping[str, Any]  # config.json
    source: TensorSource
    files: Mapping[str, int]  # file name -> bytes, all that are known
    repo_id: str | None = None  # None: a local folder
    commit: str | None = None
    download_bytes: int = 0  # what is still to be downloaded before the source can read
    gated: bool = False  # whether the Hub asks people before it shows the repository
    oids: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256 or git oid, as the Hub states them


def open_folder(folder: Path, reference: str | None = None) -> Checkpoint:
    """The checkpoint in a local folder; only headers and config.json are read.

    Raises:
        NotFoundError: no folder, no config.json or no weights.
        BadInputError: one of them breaks the rules.
        DiskError: the disk refuses to read.
    """
    if not folder.is_dir():
        found = "is a file, expected a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {found}", "name the folder of a Hugging Face checkpoint")
    config = read_config(folder)
    try:
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError as error:
        raise DiskError(f"cannot read {folder}: {error.strerror}") from error
    return Checkpoint(reference or str(folder), folder, config, LocalSource(folder), files)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder, as data.

    Raises:
        NotFoundError: there is none.
        BadInputError: it is not a JSON object, or longer than 25 MB.
        DiskError: the disk refuses to read.
    """
    if not os.path.lexists(folder / CONFIG):
        raise NotFoundError(f"{folder}: found no {CONFIG}", "name the folder of a Hugging Face checkpoint")
    raw = read_small(folder / CONFIG)
    # Hand-edited configurations repeat a key now and then; transformers takes the last one.
    return parse_object(raw, CONFIG, unique_keys=False)
