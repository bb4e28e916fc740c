"""What a folder of quantkit says about its artifact: its models, what each cost, and whether that still counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkfile import check_path, standing
from quantkit.errors import BadInputError
from quantkit.manifest import RECORD, Manifest, read_manifest
from quantkit.report.findings import failures, verdict
from quantkit.rundir import RUN_FILE
from quantkit.weights.gguf_names import gguf_parts


@dataclass(frozen=True)
class Model:
    """One model of an artifact: a GPTQ folder, or a GGUF file with its parts.

    Attributes:
        label: `GPTQ 4 bits, group 128`, `Q4_K_M`.
        record: run.json, or the record beside the GGUF file.
        files: of its weights.
        nbytes: of these.
        bits_per_weight: scales included.
        check: the record of its check, if that is of these very files.
        standing: `passed`, `failed`, `measured` (without limits), `not checked`, `void`.
        objections: why its check does not vouch for it, a sentence each.
        home: address of the repository that holds it; empty: this one.
    """

    label: str
    record: Mapping[str, Any]
    files: tuple[str, ...]
    nbytes: int
    bits_per_weight: float
    check: Mapping[str, Any] | None
    standing: str
    objections: tuple[str, ...]
    home: str = ""

    @property
    def entry(self) -> Mapping[str, Any] | None:
        """Its own part of the check."""
        return None if self.check is None else self.check["artifacts"][0]

    @property
    def overall(self) -> Mapping[str, Any] | None:
        """Its figures over all text."""
        return None if self.entry is None else self.entry["metrics"]["all"]

    def is_measured_like(self, other: "Model") -> bool:
        """Whether the figures of both compare: the same baseline over the same windows of the same text."""
        return self.check is not None and other.check is not None and _ruler(self.check) == _ruler(other.check)


@dataclass(frozen=True)
class Artifact:
    """A folder of quantkit."""

    name: str
    manifest: Manifest
    models: tuple[Model, ...]


def read_artifact(folder: Path, hashes: Mapping[str, str] | None = None, home: str = "") -> Artifact:
    """What a folder says.

    Args:
        folder: of a GPTQ run, or of GGUF runs.
        hashes: sha256 of its files as they are; without them what its manifest says is believed.
        home: address of the repository that holds it, for an artifact that others link to.

    Raises:
        BadInputError: it has no manifest, or a record is missing.
        DiskError: a file cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise BadInputError(f"{folder} has no quantkit.json: it is no finished artifact of quantkit")
    hashes = manifest.files if hashes is None else hashes
    if manifest.method == "gptq":
        models = [_gptq(folder, manifest, hashes, home)]
    else:
        models = [_gguf(folder, stem, hashes, home) for stem in manifest.recipe["models"]]
    return Artifact(folder.resolve().name, manifest, tuple(sorted(models, key=lambda model: model.nbytes)))


def _gptq(folder: Path, manifest: Manifest, hashes: Mapping[str, str], home: str) -> Model:
    record = _record(folder / RUN_FILE)
    files = tuple(name for name in manifest.files if name.endswith(".safetensors"))
    recipe = manifest.recipe
    group = recipe["group_size"]
    label = f"{recipe['method'].upper()} {recipe['bits']} bits, {'per row' if group == -1 else f'group {group}'}"
    label += ", with exceptions" if recipe.get("rules") else ""
    return _model(folder, folder, label, record, files, hashes, home)


def _gguf(folder: Path, stem: str, hashes: Mapping[str, str], home: str) -> Model:
    record = _record(folder / f"{stem}{RECORD}")
    files = tuple(record["files"])
    return _model(folder, gguf_parts(folder / files[0])[0], record["type"], record, files, hashes, home)


def _model(
    folder: Path, path: Path, label: str, record: Mapping[str, Any], files: tuple[str, ...],
    hashes: Mapping[str, str], home: str,
) -> Model:  # fmt: skip
    found = standing(path, hashes)
    check = found.record if found.is_of_these else None
    entry = None if check is None else check["artifacts"][0]
    if entry is not None:
        word, why = verdict(entry), failures(entry)
    elif found.record is not None:
        word, why = "void", [found.reason]
    elif check_path(path).exists():
        word, why = "void", [f"{check_path(path).name} cannot be read"]
    else:
        word, why = "not checked", ["not checked: what it lost was not measured"]
    bits = record["bits_per_weight"] if entry is None else entry["bits_per_weight"]
    nbytes = sum((folder / name).stat().st_size for name in files if (folder / name).exists())
    return Model(label, record, files, nbytes, bits, check, word, () if found.counts else tuple(why), home)


def _record(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path.name} is missing or no JSON", "run quantkit again") from error
    if not isinstance(record, dict):
        raise BadInputError(f"{path.name} is no record of quantkit")
    return record


def _ruler(check: Mapping[str, Any]) -> tuple[object, ...]:
    evaluation = check["evaluation"]
    texts = tuple(text["sha256"] for text in evaluation["texts"])
    return evaluation["windows"], evaluation["context"], texts, tuple(sorted(check["baseline"]["files"].items()))
