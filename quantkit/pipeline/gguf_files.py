"""The GGUF files of a run on disk: parts being written, and the record beside each model that says what it is."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt

from quantkit.errors import BadInputError
from quantkit.formats.ggml.native import NATIVE_TYPES
from quantkit.manifest import RECORD as RECORD
from quantkit.pipeline.costs import Cost
from quantkit.pipeline.gguf_job import GgufJob, Output
from quantkit.pipeline.provenance import carry_licences, gguf_base
from quantkit.versions import version, versions
from quantkit.weights.files import disk_failure, holds, write_file
from quantkit.weights.gguf_layout import Part
from quantkit.weights.gguf_write import GgufWriter
from quantkit.weights.hashes import file_hash, file_hashes
from quantkit.weights.source import Checkpoint

SCHEMA_VERSION = 1


class Target:
    """One model while it is written: its parts by tensor."""

    def __init__(self, job: GgufJob, output: Output, fingerprint: str, stack: ExitStack) -> None:
        self.output = output
        self._writers: list[GgufWriter] = []
        self._by_tensor: dict[str, GgufWriter | None] = {}
        for part in output.parts:
            path = job.folder / part.file_name
            writer: GgufWriter | None = None
            if holds(path, part.header.raw, part.header.total_bytes):  # a crash fell between two renames
                _unlink(path.with_name(f"{path.name}.partial.jsonl"))
            else:
                writer = stack.enter_context(GgufWriter(path, part.header, fingerprint))
                self._writers.append(writer)
            self._by_tensor |= dict.fromkeys((tensor.name for tensor in part.header.tensors), writer)
        done = {name for writer in self._writers for name in writer.finished}
        self._missing = {name for name, writer in self._by_tensor.items() if writer is not None} - done

    def type_of(self, number: int) -> str:
        """The ggml type of a row of the plan."""
        return self.output.types[number]

    def lacks(self, name: str) -> bool:
        """Whether a tensor is still to be made."""
        return name in self._missing

    def write(self, name: str, start: int, data: npt.NDArray[Any]) -> None:
        """Bytes of a tensor, at their place in it."""
        writer = self._by_tensor[name]
        assert writer is not None
        writer.write(name, start, data)

    def finish(self, name: str) -> None:
        """All of a tensor's bytes were written."""
        writer = self._by_tensor[name]
        assert writer is not None
        writer.finish_tensor(name)
        self._missing.discard(name)

    def commit(self) -> None:
        """Give the parts their final names."""
        for writer in self._writers:
            writer.commit()


def open_targets(
    job: GgufJob, outputs: tuple[Output, ...], inputs: dict[str, Any], stack: ExitStack, restart: bool
) -> list[Target]:
    """The files to be written, or continued.

    Raises:
        BadInputError: a file of that name was made from something else, and `restart` is not asked for.
        DiskError: the disk cannot hold them.
    """
    digest = _digest(inputs)
    for output in outputs:
        if restart:
            _remove(job, output)
        known = _recorded(job, output)
        for part in output.parts:
            path = job.folder / part.file_name
            if path.exists() and (reason := _difference(known, inputs, part, path)):
                raise BadInputError(
                    f"{path} is there already, {reason}", "name another --out, or give --restart to make it again"
                )
        title = {"schema_version": SCHEMA_VERSION, "status": "writing", "fingerprint": inputs}
        write_file(_record_path(job, output), _text(title))
    return [Target(job, output, digest, stack) for output in outputs]


def present(job: GgufJob) -> int:
    """Bytes of the run's files that take room on the disk already."""
    names = [name for output in job.outputs for name in output.files]
    paths = [job.folder / f"{name}{ending}" for name in names for ending in ("", ".partial")]
    return sum(path.stat().st_blocks * 512 for path in paths if path.exists())


def finished_record(job: GgufJob, output: Output, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an output that was made from these very inputs and is whole."""
    known = _recorded(job, output)
    if known is None or known.get("status") != "finished" or known.get("fingerprint") != inputs:
        return None
    whole = all(holds(job.folder / part.file_name, part.header.raw, part.header.total_bytes) for part in output.parts)
    return known if whole else None


def is_finished(job: GgufJob, about_imatrix: dict[str, Any] | None) -> bool:
    """Whether every output is there, made from the job's inputs."""
    inputs = fingerprint(job, about_imatrix)
    return all(finished_record(job, output, inputs) for output in job.outputs)


def fingerprint(job: GgufJob, about_imatrix: dict[str, Any] | None) -> dict[str, Any]:
    """Every input that decides the bytes, by a name that a person understands; types and names are in the header.

    Weight files of a folder are known by size and time of change: to read them all would take as long as the run.
    """
    used = {chosen for output in job.outputs for chosen in output.types} & set(NATIVE_TYPES)
    return {
        "source": source_identity(job.model.checkpoint),
        "imatrix": (about_imatrix or {}).get("sha256"),
        "version.quantkit": version(),
        **({"version.xllamacpp": importlib.metadata.version("xllamacpp")} if used else {}),
    }


def source_identity(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    """A commit, or size and time of change of every weight file."""
    if checkpoint.commit:
        return checkpoint.commit
    files = sorted({info.file for info in checkpoint.source.infos.values()})
    stats = {name: (checkpoint.folder / name).stat() for name in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def write_record(
    job: GgufJob,
    output: Output,
    inputs: dict[str, Any],
    about_imatrix: dict[str, Any] | None,
    spent: Cost,
) -> dict[str, Any]:
    """Say beside a finished model what it is and what it cost."""
    model = job.model
    into_own_folder = job.options.out is None or job.options.out.suffix != ".gguf"
    beside, left = carry_licences(model.checkpoint, job.folder) if into_own_folder else ({}, [])
    if about_imatrix and _is(job.folder / about_imatrix["file"], about_imatrix["sha256"]):
        beside[about_imatrix["file"]] = about_imatrix["sha256"]
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "fingerprint": inputs,
        "source": {"reference": Path(model.checkpoint.reference).name, "repo": model.checkpoint.repo_id,
                   "commit": model.checkpoint.commit},
        "base": gguf_base(model.checkpoint).model_dump(mode="json"),
        "type": output.ftype,
        "files": {part.file_name: part.header.total_bytes for part in output.parts},
        "sha256": file_hashes(job.folder, output.files) | beside,
        "bytes": output.nbytes,
        "bits_per_weight": round(job.bits_per_weight(output), 4),
        "tensors": dict(Counter(output.types)),
        "tensor_type_overrides": list(job.options.overrides),
        "imatrix": about_imatrix,
        "vocabulary": {
            "model": model.told.vocabulary.kind, "pre": model.told.vocabulary.pre, "verified": model.told.verification
        },
        "versions": versions(),
        "predicted": {"host_bytes": job.budget.host_bytes, "disk_bytes": job.budget.disk_bytes,
                      "seconds": round(job.budget.seconds, 1)},
        "measured": {**spent, "disk_bytes": sum(one.nbytes for one in job.outputs)},
        "notes": [*job.notes, *(f"{name} is another than the checkpoint's, and left alone" for name in left)],
    }  # fmt: skip
    write_file(_record_path(job, output), _text(record))
    return record


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_hash(path) == digest


def _remove(job: GgufJob, output: Output) -> None:
    for name in output.files:
        for ending in ("", ".partial", ".partial.jsonl"):
            _unlink(job.folder / f"{name}{ending}")
    _unlink(_record_path(job, output))


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        disk_failure(error, path, 0)


def _recorded(job: GgufJob, output: Output) -> dict[str, Any] | None:
    try:
        known = json.loads(_record_path(job, output).read_bytes())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def _difference(known: dict[str, Any] | None, inputs: dict[str, Any], part: Part, path: Path) -> str | None:
    """Why a file is not the one that the run would make; None: it is."""
    stated = (known or {}).get("fingerprint")
    if not isinstance(stated, dict):
        return "and it is not known from what it was made"
    if differing := [key for key in inputs.keys() | stated.keys() if stated.get(key) != inputs.get(key)]:
        return f"made with another {' and '.join(sorted(differing))}"
    if not holds(path, part.header.raw, part.header.total_bytes):
        return "with another header or size than planned now"
    return None


def _record_path(job: GgufJob, output: Output) -> Path:
    return job.folder / f"{output.stem}{RECORD}"


def _digest(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"
