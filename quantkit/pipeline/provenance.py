"""The manifests of runs: quantkit.json of a GPTQ folder, and of a folder of GGUF files over all its models."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.basecard import carried, licence_files, read_front_matter
from quantkit.errors import BadInputError
from quantkit.hub.repository import needed_files, small_files
from quantkit.manifest import MANIFEST_FILE, RECORD, Base, Manifest, comes_later, read_manifest, write_manifest
from quantkit.weights.files import copy_file
from quantkit.weights.hashes import file_hash, file_hashes
from quantkit.weights.source import Checkpoint

ASKED = ("type", "tensor_type_overrides", "imatrix")  # of a record: what its model's recipe was


def base_of(checkpoint: Checkpoint, files: Mapping[str, str]) -> Base:
    """The checkpoint of a run as its manifest names it.

    Args:
        checkpoint: whose folder has the card, if it has one.
        files: sha256 of its files where that was taken; for the others of a repository the Hub's word is given.

    Raises:
        BadInputError: its card is no regular file, or larger than 25 MB.
        DiskError: it cannot be read.
    """
    needed = needed_files(checkpoint.files) if checkpoint.oids else ()
    stated = {name: checkpoint.oids[name] for name in needed if name in checkpoint.oids}
    return Base(
        name=checkpoint.repo_id or Path(checkpoint.reference).expanduser().resolve().name,
        repo=checkpoint.repo_id,
        commit=checkpoint.commit,
        gated=checkpoint.gated if checkpoint.repo_id else None,
        files=dict(sorted({**stated, **files}.items())),
        card=carried(read_front_matter(checkpoint.folder)),
    )


def write_gptq_manifest(
    folder: Path, checkpoint: Checkpoint, record: Mapping[str, Any], coming: Mapping[str, bytes]
) -> Path:
    """Write quantkit.json of a GPTQ folder, when all files of the run are there but those that are to come.

    Args:
        folder: of the artifact; run.json is in it.
        checkpoint: what it was made from.
        record: run.json.
        coming: the bytes of files that will be written after this: config.json.

    Raises:
        DiskError: the folder cannot be read or written.
    """
    there = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    known = {name: hashlib.sha256(raw).hexdigest() for name, raw in coming.items()} | record.get("files", {})
    found = file_hashes(folder, {name for name in there - known.keys() - {MANIFEST_FILE} if not comes_later(name)})
    manifest = Manifest(
        method="gptq",
        base=base_of(checkpoint, record["source"]["files"]),
        recipe=record["recipe"],
        calibration=record["calibration"],
        versions=record["versions"],
        files=dict(sorted({**_sealed(folder), **known, **found}.items())),
    )
    return write_manifest(folder, manifest)


def gguf_base(checkpoint: Checkpoint) -> Base:
    """The same for GGUF files, whose run does not read weight files of a folder a second time for their hashes."""
    names = () if checkpoint.repo_id else small_files(checkpoint.files)
    return base_of(checkpoint, file_hashes(checkpoint.folder, names))


def carry_licences(checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Copy the licence files of a checkpoint beside its GGUF files.

    Returns:
        sha256 of each copy by name; and the names of files that are there already with other bytes, left alone.

    Raises:
        DiskError: one cannot be read or written.
    """
    names = licence_files(small_files(checkpoint.files))
    hashes = file_hashes(checkpoint.folder, names)
    others = [name for name in names if (folder / name).exists() and file_hash(folder / name) != hashes[name]]
    for name in hashes.keys() - {*others}:
        copy_file(checkpoint.folder / name, folder / name)
    return {name: digest for name, digest in hashes.items() if name not in others}, others


def write_gguf_manifest(folder: Path, base: Base) -> Path:
    """Write quantkit.json of a folder of GGUF files: one over all its finished models of one base.

    Args:
        folder: with the records of its models.
        base: what they were made from.

    Raises:
        DiskError: the folder cannot be read or written.
    """
    own = base.model_dump(mode="json")
    records = {path: record for path, record in gguf_records(folder).items() if record["base"] == own}
    files, versions = file_hashes(folder, [path.name for path in records]), {}
    models: dict[str, dict[str, Any]] = {}
    for path, record in records.items():
        models[path.name.removesuffix(RECORD)] = {key: record[key] for key in ASKED}
        files |= record["sha256"]
        versions = record["versions"]
    manifest = Manifest(
        method="gguf",
        base=base,
        recipe={"method": "gguf", "models": models},
        calibration=_calibration([model["imatrix"] for model in models.values()]),
        versions=versions,
        files=dict(sorted({**_sealed(folder), **files}.items())),
    )
    return write_manifest(folder, manifest)


def gguf_records(folder: Path) -> dict[Path, dict[str, Any]]:
    """The records of finished GGUF models in a folder, by their path, in the order of their names."""
    found = {}
    for path in sorted(folder.glob(f"*{RECORD}")):
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("status") == "finished" and {"base", "sha256"} <= record.keys():
            found[path] = record
    return found


def _calibration(imatrices: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The text of the importance matrix, where all models with one have the same."""
    used = [one for one in imatrices if one]
    if not used or any(one["sha256"] != used[0]["sha256"] for one in used):
        return None
    names = {"calibration_sha256": "sha256", "datasets": "text", "chunks": "samples", "chunk_tokens": "sequence_length"}
    return {new: used[0][key] for key, new in names.items() if key in used[0]} | {"imatrix_sha256": used[0]["sha256"]}


def _sealed(folder: Path) -> dict[str, str]:
    """Files that came later to an earlier state of the folder, as far as they are still there."""
    try:
        before = read_manifest(folder)
    except BadInputError:
        return {}
    found = before.files if before else {}
    return {name: digest for name, digest in found.items() if comes_later(name) and (folder / name).exists()}
