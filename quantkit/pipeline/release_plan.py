"""A release planned: every variant with its folder, its repository and what it will cost, from headers alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.pipeline.gguf_convert import AUTO, ImatrixWish, plan
from quantkit.pipeline.gguf_job import GgufJob, GgufOptions
from quantkit.pipeline.job import Job, default_name, prepare
from quantkit.pipeline.look import look, look_for_gguf
from quantkit.pipeline.preflight import host_bytes
from quantkit.plan.budget import SMALL_FILES
from quantkit.quality.gates import Limits, limits_from
from quantkit.recipe import Recipe
from quantkit.release_file import ReleaseFile, Variant, is_folder, scheme_of
from quantkit.scheme import GgufRecipe
from quantkit.strict_yaml import did_you_mean
from quantkit.weights.gguf_names import SUFFIX, gguf_stem
from quantkit.weights.source import Checkpoint
from quantkit.weights.streamed import streamed_bytes

STREAM = {"auto": None, "always": True, "never": False}


@dataclass(frozen=True)
class Made:
    """One variant: what is made, where, and where it goes.

    Attributes:
        name: of the variant.
        path: its folder, or the first file of a GGUF model.
        repo_id: None: it is not published.
        branch: of the repository; None: main.
        limits: gates of recipe and release file.
        nbytes: predicted.
        bits_per_weight: predicted.
    """

    name: str
    path: Path
    repo_id: str | None
    branch: str | None
    limits: Limits
    nbytes: int
    bits_per_weight: float

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path.parent if self.path.suffix == SUFFIX else self.path

    @property
    def check_name(self) -> str:
        """What a check calls it."""
        return gguf_stem(self.path) if self.path.suffix == SUFFIX else self.path.name


@dataclass(frozen=True)
class GgufGroup:
    """GGUF files that one reading of the checkpoint makes."""

    options: GgufOptions
    wish: ImatrixWish
    job: GgufJob
    made: tuple[Made, ...]


@dataclass(frozen=True)
class ReleasePlan:
    """What a release will do."""

    file: ReleaseFile
    folder: Path
    checkpoint: Checkpoint
    jobs: tuple[Job, ...]  # of GPTQ
    made_by_jobs: tuple[Made, ...]  # by each
    groups: tuple[GgufGroup, ...]

    @property
    def reference(self) -> str:
        """The base at its commit."""
        commit = self.checkpoint.commit
        return f"{self.checkpoint.repo_id}@{commit}" if self.checkpoint.repo_id else self.file.base

    @property
    def name(self) -> str:
        """Of the base."""
        return base_name(self.file)

    @property
    def made(self) -> tuple[Made, ...]:
        """Every variant, GPTQ before GGUF."""
        return (*self.made_by_jobs, *(one for group in self.groups for one in group.made))

    @property
    def streamed(self) -> bool:
        """Whether the base is read while it comes instead of being downloaded first."""
        return any(job.streamed for job in self.jobs) or any(group.job.streamed for group in self.groups)

    def passes(self) -> int:
        """How often a streamed base crosses the network."""
        # GPTQ checks in its own pass; GGUF files are converted, and then checked.
        gguf = len(self.groups) + sum(group.wish.where == AUTO for group in self.groups) + bool(self.groups)
        return bool(self.jobs) + gguf

    def _notes(self) -> Iterator[tuple[str, ...]]:
        yield from (job.plan.notes for job in self.jobs)
        yield from (group.job.notes for group in self.groups)

    def as_dict(self) -> dict[str, Any]:
        """The plan for --json."""
        artifacts = sum(one.nbytes for one in self.made)
        download = self.checkpoint.download_bytes
        held = streamed_bytes(self.checkpoint) if self.streamed else download
        budgets = [group.job.budget for group in self.groups]
        return {
            "schema_version": 1,
            "base": {"name": self.name, "repo": self.checkpoint.repo_id, "commit": self.checkpoint.commit},
            "folder": str(self.folder),
            "variants": [
                {
                    "name": one.name,
                    "path": str(one.path),
                    "bytes": one.nbytes,
                    "bits_per_weight": round(one.bits_per_weight, 4),
                    "repo": one.repo_id,
                    "branch": one.branch,
                }
                for one in self.made
            ],
            "streamed": self.streamed,
            "download_bytes": download * (self.passes() if self.streamed else 1),
            "disk_bytes": artifacts + held + SMALL_FILES * len(self.made),
            "host_bytes": max([*([host_bytes(self.jobs)] if self.jobs else []), *(one.host_bytes for one in budgets)]),
            "seconds": sum(job.budget.seconds for job in self.jobs) + sum(one.seconds for one in budgets),
            "notes": [*dict.fromkeys(note for notes in self._notes() for note in notes)],
        }


def base_name(file: ReleaseFile) -> str:
    """What the base is called, without its organisation."""
    return Path(file.base).name


def plan_release(
    file: ReleaseFile, folder: Path, commit: str | None = None, *, only: Sequence[str] = (), device: str = "auto"
) -> ReleasePlan:
    """Plan every variant; no weight is read.

    Args:
        file: what to make.
        folder: where everything goes.
        commit: of the base, where an earlier run has pinned it.
        only: names of variants; none: all of them.
        device: where to compute.

    Raises:
        UsageError: `only` names a variant that there is not.
        QuantkitError: whatever makes a variant impossible, in one sentence.
    """
    variants = _chosen(file.variants, only)
    schemes = [(variant, scheme_of(variant)) for variant in variants]
    revision = commit or file.revision
    reference = file.base if is_folder(file.base) or not revision else f"{file.base}@{revision}"
    gptq = [(variant, scheme) for variant, scheme in schemes if isinstance(scheme, Recipe)]
    gguf = [(variant, scheme) for variant, scheme in schemes if isinstance(scheme, GgufRecipe)]
    checkpoint = look(reference) if gptq else look_for_gguf(reference)
    stream = STREAM[file.stream] if checkpoint.download_bytes else None
    names = _folder_names(checkpoint, gptq)
    jobs = tuple(
        prepare(checkpoint, scheme, output=folder / name, device=device, stream=stream)
        for (_, scheme), name in zip(gptq, names, strict=True)
    )
    repos = _repositories(file, names)
    made = tuple(
        Made(str(variant.name), job.output, repo_id, branch, _limits(scheme), job.plan.artifact_bytes,
             job.plan.bits_per_weight)
        for (variant, scheme), job, (repo_id, branch) in zip(gptq, jobs, repos, strict=True)
    )  # fmt: skip
    groups = tuple(_group(file, folder, checkpoint, group, device, stream) for group in _alike(gguf))
    return ReleasePlan(file, folder, checkpoint, jobs, made, groups)


def _chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    known = [str(variant.name) for variant in variants]
    if unknown := next((name for name in only if name not in known), None):
        raise UsageError(f"no variant is called {unknown!r}", did_you_mean(unknown, known))
    return [variant for variant in variants if not only or variant.name in only]


def _folder_names(checkpoint: Checkpoint, gptq: Sequence[tuple[Variant, Recipe]]) -> list[str]:
    """`Model-GPTQ-Int4`; with its group size where that is not 128, with its variant's name where two are alike."""
    names = []
    for variant, scheme in gptq:
        group = {128: "", -1: "-per-row"}.get(scheme.group_size, f"-g{scheme.group_size}")
        name = default_name(checkpoint, scheme) + group
        names.append(f"{name}-{variant.name}" if name in names else name)
    return names


def _repositories(file: ReleaseFile, names: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Repository and branch of each GPTQ variant; with branches, the first variant has main."""
    if file.push is None:
        return [(None, None)] * len(names)
    if file.push.gptq == "repositories":
        return [(f"{file.push.namespace}/{name}", None) for name in names]
    repo_id = f"{file.push.namespace}/{base_name(file)}-GPTQ"
    return [(repo_id, "auto" if number else None) for number in range(len(names))]


def _limits(scheme: Recipe | GgufRecipe) -> Limits:
    return limits_from(scheme.gates.model_dump())


def _alike(gguf: Sequence[tuple[Variant, GgufRecipe]]) -> list[list[tuple[Variant, GgufRecipe]]]:
    """Variants that one reading of the checkpoint makes: alike in all but type and gates."""
    groups: dict[str, list[tuple[Variant, GgufRecipe]]] = {}
    for variant, scheme in gguf:
        alike: Mapping[str, Any] = scheme.model_dump(mode="json", exclude={"type", "gates"})
        key = repr(sorted(alike.items())) + (str(variant.name) if scheme.target_size else "")
        groups.setdefault(key, []).append((variant, scheme))
    return list(groups.values())


def _group(
    file: ReleaseFile, folder: Path, checkpoint: Checkpoint, group: list[tuple[Variant, GgufRecipe]], device: str,
    stream: bool | None,
) -> GgufGroup:  # fmt: skip
    first = group[0][1]
    out = folder / f"{base_name(file)}-GGUF"
    types = tuple(scheme.type for _, scheme in group if scheme.type)
    options = GgufOptions(types, first.target_size, first.tensor_types, first.pre, first.split_max_size, out)
    wish = ImatrixWish(first.imatrix, first.calibration, device)
    job = plan(checkpoint, options, wish, stream=stream)
    repo_id = f"{file.push.namespace}/{base_name(file)}-GGUF" if file.push else None
    made = tuple(
        Made(str(variant.name), out / output.files[0], repo_id, None, _limits(scheme), output.nbytes,
             job.bits_per_weight(output))
        for (variant, scheme), output in zip(group, job.outputs, strict=True)
    )  # fmt: skip
    return GgufGroup(options, wish, job, made)


def with_imatrix(group: GgufGroup, path: Path) -> GgufGroup:
    """The group with an importance matrix from a file."""
    return replace(group, wish=replace(group.wish, where=str(path)))
