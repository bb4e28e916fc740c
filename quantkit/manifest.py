"""quantkit.json: from what an artifact was made, how, and the sha256 of each of its files."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantkit.errors import BadInputError
from quantkit.weights.files import holds, write_file
from quantkit.weights.hashes import file_hashes
from quantkit.weights.header import parse_object
from quantkit.weights.regular import read_small, short

MANIFEST_FILE = "quantkit.json"
RECORD = ".quantkit.json"  # behind the stem of a GGUF file: what its run says of it
SCHEMA_VERSION = 1
DIGEST = "digest"  # of everything else in the file, which cannot hold its own hash
CARD, PICTURE, CHECK = "README.md", "quality.svg", "check.json"
_IMATRIX = re.compile(r".*imatrix.*\.gguf")
_NAME = re.compile(r"[^/\\\0]{1,255}")
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Oid = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]


class Base(BaseModel):
    """The checkpoint that an artifact was made from.

    Attributes:
        name: organisation/name, or what a local folder is called.
        repo: organisation/name on the Hub; None: a local folder.
        commit: of the repository.
        gated: whether the Hub asks people before it shows the repository; None: not known.
        files: name -> sha256, or the git oid (40 digits) of a small file of a repository.
        card: the part of its card's front matter that artifacts carry along.
    """

    model_config = _STRICT
    name: str
    repo: str | None = None
    commit: str | None = None
    gated: bool | None = None
    files: dict[str, Oid] = {}
    card: dict[str, Any] = {}


class Manifest(BaseModel):
    """What quantkit.json holds beside its schema and its digest.

    Attributes:
        method: `gptq` or `gguf`.
        base: what it was made from.
        recipe: what was asked for; of GGUF files `models`, by the stem of the file.
        calibration: the text that was looked at, by its sha256; None: there was none.
        versions: of Python and the libraries that decide the bytes.
        files: name -> sha256 of every file of the artifact but this one.
    """

    model_config = _STRICT
    method: Literal["gptq", "gguf"]
    base: Base
    recipe: dict[str, Any]
    calibration: dict[str, Any] | None
    versions: dict[str, str]
    files: dict[str, Sha256]


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write quantkit.json, unless it is there: the same manifest gives the same bytes.

    Raises:
        DiskError: the folder cannot be written.
    """
    path, raw = folder / MANIFEST_FILE, _text(manifest.model_dump(mode="json"))
    if not holds(path, raw, len(raw)):
        write_file(path, raw)
    return path


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact; None where it has none.

    Raises:
        BadInputError: it is not what quantkit wrote, to the byte.
        DiskError: it cannot be read.
    """
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        return None
    raw = read_small(path)
    content = parse_object(raw, MANIFEST_FILE)
    version = content.pop("schema_version", None)
    stated = content.pop(DIGEST, None)
    if version != SCHEMA_VERSION:
        raise BadInputError(
            f"{MANIFEST_FILE}: found schema {short(repr(version))}, expected {SCHEMA_VERSION}", "update quantkit"
        )
    if stated != _digest(content) or raw != _text(content):
        raise BadInputError(f"{MANIFEST_FILE} has changed since it was written: its digest is of another text")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{MANIFEST_FILE}: {short(place)}: {first['msg']}") from error
    for name in manifest.files:
        if not _NAME.fullmatch(name) or name in (".", "..", MANIFEST_FILE):
            raise BadInputError(f"{MANIFEST_FILE}: found file {short(repr(name))}, expected a name inside the folder")
    return manifest


def comes_later(name: str) -> bool:
    """Whether a file is made from the finished artifact: card, picture, check, importance matrix of a GPTQ run."""
    return name in (CARD, PICTURE, CHECK) or name.endswith(f".{CHECK}") or bool(_IMATRIX.fullmatch(name))


def seal(folder: Path, names: Iterable[str], gone: Iterable[str] = ()) -> Manifest | None:
    """Add files that came later, such as card and check, to an artifact's manifest, and forget those that went.

    Returns:
        The manifest as it is now; None where there is none.

    Raises:
        BadInputError: it is not what quantkit wrote.
        DiskError: the folder cannot be read or written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    kept = {name: digest for name, digest in manifest.files.items() if name not in set(gone)}
    sealed = manifest.model_copy(update={"files": dict(sorted((kept | file_hashes(folder, names)).items()))})
    if sealed != manifest:
        write_manifest(folder, sealed)
    return sealed


def _text(content: Mapping[str, Any]) -> bytes:
    whole = {"schema_version": SCHEMA_VERSION, **content, DIGEST: _digest(content)}
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
