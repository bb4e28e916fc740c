"""Whether an artifact is the one that its manifest describes: every file hashed, every tensor read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkfile import check_path, standing
from quantkit.errors import BadInputError, NotFoundError
from quantkit.hub.download import download
from quantkit.hub.repository import parse_reference, resolve
from quantkit.manifest import MANIFEST_FILE, Manifest, read_manifest
from quantkit.pipeline.verify_tensors import Reading, models_in, read_checkpoint, read_gguf_model
from quantkit.progress import Progress, Silent
from quantkit.units import format_bytes
from quantkit.weights.hashes import file_hashes, has_hash

SCHEMA_VERSION = 1
# What a runtime might load, or run: such a file must be known.
SUSPECT = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".pkl", ".py", ".so")
SHOWN = 5  # differences in a sentence


def verify_reference(reference: str, progress: Progress | None = None) -> dict[str, Any]:
    """The same as `examine` for a folder, or for a repository, which is downloaded whole.

    Raises:
        NotFoundError: no such folder or repository, or no access to it.
        NetworkError: the Hub was not reached.
        DiskError: the disk is full or refuses to read.
    """
    folder = Path(reference).expanduser()
    if folder.exists():
        return examine(folder, progress)
    repository = parse_reference(reference)
    if repository is None:
        raise NotFoundError(
            f"no such folder: {reference[:200]}", "write a folder's path, or organisation/name@revision for the Hub"
        )
    snapshot = resolve(repository.repo_id, repository.revision)
    names = [name for name in snapshot.files if "/" not in name and not name.startswith(".")]
    found = examine(download(snapshot, names, progress), progress, names=names, oids=snapshot.oids)
    return found | {"artifact": snapshot.repo_id, "commit": snapshot.commit}


def verify_folder(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Compare a folder with its manifest and read every tensor.

    Returns:
        What `examine` found.

    Raises:
        BadInputError: something differs, with what.
        NotFoundError: no weights in it.
        DiskError: a file cannot be read.
    """
    found = examine(folder, progress)
    refuse(found)
    return found


def refuse(found: Mapping[str, Any]) -> None:
    """Raise what `examine` has found wrong.

    Raises:
        BadInputError: there is something.
    """
    problems = found["problems"]
    if not problems:
        return
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise BadInputError(
        f"{found['artifact']}: {'; '.join(problems[:SHOWN])}{more}", "fetch it again, or make it again from its recipe"
    )


def examine(
    folder: Path,
    progress: Progress | None = None,
    *,
    names: Sequence[str] | None = None,
    oids: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Hash every file, read every tensor, and hold both against manifest and checks.

    Args:
        folder: of an artifact, of quantkit or of others.
        progress: told what happens; silent by default.
        names: the files that belong to it; all of the folder by default.
        oids: name -> sha256 or git oid, as the Hub states them.

    Returns:
        `files`, `tensors`, `checks`, `manifest` and `problems`: a sentence for everything that differs.

    Raises:
        NotFoundError: it is no folder, or holds no weights.
        DiskError: a file cannot be read.
    """
    progress = progress or Silent()
    names = _names(folder) if names is None else sorted(names)
    is_checkpoint, models = models_in(names)
    if not is_checkpoint and not models:
        raise NotFoundError(f"{folder} holds no weights", "name the folder of an artifact, or organisation/name")
    total = sum((folder / name).stat().st_size for name in names)
    progress.say(f"hashing {len(names)} files, {format_bytes(total)}")
    hashes = file_hashes(folder, names)
    manifest, broken = _manifest(folder)
    files, problems = _compare(folder, manifest, hashes, oids or {})
    readings = [read_checkpoint(folder, progress)] if is_checkpoint else []
    readings += [read_gguf_model(folder / name, progress) for name in models]
    checks = [_check(folder, reading.path, hashes) for reading in readings if reading.is_model]
    void = [check["reason"] for check in checks if check["standing"] == "void"]
    problems = [*broken, *problems, *(problem for reading in readings for problem in reading.problems), *void]
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": folder.resolve().name,
        "commit": None,
        "manifest": manifest.model_dump(mode="json", exclude={"files"}) if manifest else None,
        "files": files,
        "tensors": _tensors(readings),
        "checks": checks,
        "problems": list(dict.fromkeys(problems)),
        "passed": not problems,
    }


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {found}, expected a folder", "name the folder of an artifact")
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _manifest(folder: Path) -> tuple[Manifest | None, list[str]]:
    try:
        return read_manifest(folder), []
    except BadInputError as error:
        return None, [str(error).replace(f"{folder}/", "")]


def _compare(
    folder: Path, manifest: Manifest | None, hashes: Mapping[str, str], oids: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Files against the manifest and against what the Hub states."""
    listed = dict(manifest.files) if manifest else {}
    missing = sorted(listed.keys() - hashes.keys())
    changed = sorted(name for name, digest in listed.items() if name in hashes and hashes[name] != digest)
    beyond = sorted(hashes.keys() - listed.keys() - {MANIFEST_FILE}) if manifest else []
    surplus = [name for name in beyond if name.endswith(SUSPECT)]
    damaged = sorted(name for name in hashes.keys() & oids.keys() if not _is(folder / name, hashes[name], oids[name]))
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is another file than {MANIFEST_FILE} lists" for name in changed),
        *(f"{name} is not in {MANIFEST_FILE}" for name in surplus),
        *(f"{name} is not the file that the Hub lists" for name in damaged if name not in changed),
    ]
    found = {
        "hashed": len(hashes),
        "listed": len(listed),
        "missing": missing,
        "changed": changed,
        "surplus": surplus,
        "unlisted": [name for name in beyond if name not in surplus],
        "damaged": damaged,
    }
    return found, problems


def _is(path: Path, digest: str, oid: str) -> bool:
    """Whether a file has an oid of the Hub: its sha256, or git's name of it."""
    return digest == oid if len(oid) == len(digest) else has_hash(path, oid, path.stat().st_size)


def _check(folder: Path, path: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Whether the check of a model is of these very files, and what it said."""
    found = standing(path, hashes)
    if found.is_of_these:
        word, reason = ("passed" if found.counts else "failed"), found.reason
    elif not check_path(path).exists():
        word, reason = "not checked", "not checked"
    else:
        word, reason = "void", found.reason.replace(f"{folder}/", "")
    return {"model": path.absolute().name, "standing": word, "reason": reason}


def _tensors(readings: Sequence[Reading]) -> dict[str, int]:
    return {"read": sum(one.tensors for one in readings), "bytes": sum(one.nbytes for one in readings)}
