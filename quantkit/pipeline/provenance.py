"""The manifests of runs: quantkit.json of a GPTQ folder, and of a folder of GGUF files over all its models."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.basecard import carried, read_front_matter
from quantkit.hub.repository import needed_files
from quantkit.manifest import MANIFEST_FILE, Base, Manifest, write_manifest
from quantkit.weights.hashes import file_hashes
from quantkit.weights.source import Checkpoint

LATER = (MANIFEST_FILE, "README.md", "quality.svg", "check.json")  # made from the artifact, not part of the run


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
    there = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    known = {name: hashlib.sha256(raw).hexdigest() for name, raw in coming.items()} | record.get("files", {})
    files = known | file_hashes(folder, {*there} - {*known} - {*LATER})
    manifest = Manifest(
        method="gptq",
        base=base_of(checkpoint, record["source"]["files"]),
        recipe=record["recipe"],
        calibration=record["calibration"],
        versions=record["versions"],
        files=dict(sorted(files.items())),
    )
    return write_manifest(folder, manifest)
