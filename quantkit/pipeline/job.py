"""A job prepared: everything that can be known, and refused, before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quantkit.calibration import text_sets
from quantkit.devices import Device, choose_device
from quantkit.dtypes import DTYPE_NAMES
from quantkit.errors import BadInputError, UsageError
from quantkit.families.checks import check_model_type
from quantkit.families.family import Family
from quantkit.families.layers import required
from quantkit.families.lookup import artifact_config, family_of
from quantkit.formats.runtimes import Layout, check_targets, layout_of, runtime_table
from quantkit.pipeline.disk import is_streamed
from quantkit.pipeline.look import look
from quantkit.pipeline.machine import machine_of
from quantkit.plan.budget import SMALL_FILES, Budget, estimate
from quantkit.plan.rows import Plan, Row, layer_of, make_plan
from quantkit.plan.runtime import machine_table
from quantkit.recipe import Recipe
from quantkit.skeleton import Skeleton
from quantkit.tensors import TensorInfo
from quantkit.vocab.files import Treatment, treatment
from quantkit.weights.hashes import file_hashes
from quantkit.weights.source import CONFIG, Checkpoint
from quantkit.weights.streamed import streamed_bytes

METHOD_LABELS = {"gptq": "GPTQ", "rtn": "RTN"}


@dataclass(frozen=True)
class Job:
    """What `prepare` found; `run` executes it."""

    checkpoint: Checkpoint
    family: Family
    recipe: Recipe
    plan: Plan
    budget: Budget
    device: Device
    output: Path
    config: Mapping[str, Any]  # config.json of the artifact, before its quantization_config
    skeleton: Skeleton
    tokenizer: Treatment
    strict: bool = False
    streamed: bool = False  # shards of a repository come and go instead of being downloaded first

    @property
    def layout(self) -> Layout:
        """What runtimes look at."""
        return layout_of(self.recipe, self.plan.grids())

    def as_dict(self, context: int) -> dict[str, Any]:
        """The plan for --json; `context` is the KV cache's, in tokens."""
        return {
            "schema_version": 1,
            "source": {"reference": self.checkpoint.reference, "commit": self.checkpoint.commit},
            "architecture": self.checkpoint.config["architectures"][0],
            "family": self.family.name,
            "recipe": self.recipe.model_dump(mode="json"),
            "output": str(self.output),
            "device": self.device.label,
            "bits_per_weight": round(self.plan.bits_per_weight, 4),
            "source_bytes": self.plan.source_bytes,
            "artifact_bytes": self.plan.artifact_bytes,
            "shards": {name: sum(info.nbytes for info in infos) for name, infos in self.plan.shards.items()},
            "streamed": self.streamed,
            "budget": self.budget.as_dict(),
            "context": context,
            "machines": machine_table(self.skeleton.sizes(), self.plan.artifact_bytes, context),
            "runtimes": [
                {
                    "runtime": row.runtime.name,
                    "loads": row.loads,
                    "tried": row.runtime.tried,
                    "reason": row.reason,
                }
                for row in runtime_table(self.layout)
            ],
            "notes": list(self.plan.notes),
            "rows": [_row_dict(row) for row in self.plan.rows],
        }


def prepare(
    source: str | Checkpoint,
    recipe: Recipe,
    *,
    output: Path | None = None,
    device: str = "auto",
    strict: bool = False,
    stream: bool | None = None,
) -> Job:
    """Plan a job from headers and configuration alone.

    Args:
        source: what `look` gave; or a folder, or `org/name[@revision]`. A repo is not downloaded.
        recipe: what to make.
        output: the artifact's folder; by default named after the source and the method.
        device: `auto`, `cpu`, `cuda[:n]` or `mps`.
        strict: refuse linears that cannot be packed instead of leaving them in 16 bits.
        stream: let the shards of a repository come and go; None: where the disk does not hold them all.

    Raises:
        QuantkitError: whatever makes the job impossible, in one sentence.
    """
    check_targets(recipe.targets, layout_of(recipe, {}))
    _check_name(output)
    if recipe.method == "gptq":
        text_sets(recipe.calibration)
    chosen = choose_device(device)
    checkpoint = look(source) if isinstance(source, str) else source
    family = family_of(checkpoint.config)
    config = artifact_config(family, checkpoint.config)
    skeleton = Skeleton(family, config, chosen.dtype, chosen.device)
    check_model_type(config, skeleton.model_type)
    infos = checkpoint.source.infos or _infos_from(
        skeleton, checkpoint.config, getattr(checkpoint.source, "weight_map", {})
    )
    check_tensors(family, skeleton, infos)
    plan = make_plan(family, recipe, infos, strict=strict, tied=skeleton.tied())
    tokenizer = treatment(checkpoint.folder, config, checkpoint.repo_id)
    plan = replace(plan, notes=plan.notes + tokenizer.notes)
    check_targets(recipe.targets, layout_of(recipe, plan.grids()))
    where = output or Path(default_name(checkpoint, recipe))
    streams = is_streamed(checkpoint, where, plan.artifact_bytes + SMALL_FILES, stream)
    budget = estimate(
        plan,
        family,
        recipe,
        skeleton.sizes(),
        machine_of(chosen),
        recipe.calibration.samples,
        sample_length(recipe, config),
        checkpoint.download_bytes,
        streamed_bytes(checkpoint) if streams else None,
    )
    return Job(checkpoint, family, recipe, plan, budget, chosen, where, config, skeleton, tokenizer, strict, streams)


def _check_name(output: Path | None) -> None:
    """Refuse a name that no file system takes, before anything else is looked at."""
    try:
        if output is not None:
            output.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"no folder can be named {str(output)[:60]!r}: {reason}", "choose another --out") from error


def default_name(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """`XVERSE-13B-Chat-GPTQ-Int4`, the name that users of the Hub know."""
    name = (checkpoint.repo_id or str(Path(checkpoint.reference).resolve())).rpartition("/")[2]
    return f"{name}-{METHOD_LABELS[recipe.method]}-Int{recipe.bits}"


def sample_length(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Tokens of a calibration sample: as asked, at most the model's context."""
    longest = config.get("max_position_embeddings")
    asked = recipe.calibration.sequence_length
    return min(asked, longest) if isinstance(longest, int) and longest > 0 else asked


def check_tensors(family: Family, skeleton: Skeleton, infos: Mapping[str, TensorInfo]) -> None:
    """Compare the checkpoint's tensors with those that the configuration asks for.

    Raises:
        BadInputError: one is missing, too many, of another shape, or not of a float dtype.
    """
    expected = skeleton.tensors()
    head = family.head + ".weight"
    if head in infos:  # tied checkpoints may carry the head nevertheless
        expected |= {head: expected[family.embedding + ".weight"]}
    for name, shape in expected.items():
        required(infos, name, shape)
    for name in sorted(infos.keys() - expected.keys()):
        if not any(Path(name).match(pattern) for pattern in family.dropped):
            where = f" of {len(skeleton.layers)}" if layer_of(family, name) is not None else ""
            raise BadInputError(
                f"tensor {name} has no place in a {family.name} model{where}: surplus in {infos[name].file}"
            )


def fingerprint(job: Job, calibration_sha256: str | None, versions: Mapping[str, str]) -> dict[str, Any]:
    """Every input that decides the bytes of the artifact, by a name that a person understands."""
    recipe = {
        f"recipe.{key}": value
        for key, value in job.recipe.model_dump(mode="json").items()
        if key not in ("targets", "calibration", "gates")
    }
    return {
        "source": job.checkpoint.commit or source_hashes(job),
        **recipe,
        "calibration_sha256": calibration_sha256,
        "compute": f"{job.device.device.type} {DTYPE_NAMES[job.device.dtype]}",
        **{f"version.{name}": text for name, text in versions.items()},
    }


def source_hashes(job: Job) -> dict[str, str]:
    """sha256 of config.json and of every weight file of the source, by name; of what was streamed, as it was proven."""
    checkpoint = job.checkpoint
    names = {CONFIG} | {row.source.file for row in job.plan.rows}
    here = {name for name in names if (checkpoint.folder / name).is_file()}
    return {name: checkpoint.oids[name] for name in sorted(names - here)} | file_hashes(checkpoint.folder, here)


def _infos_from(skeleton: Skeleton, config: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, TensorInfo]:
    """For a repo of `.bin` files not yet downloaded: shapes from the configuration, dtype as it states."""
    stated = str(config.get("torch_dtype") or config.get("dtype") or "float32")
    dtype = {"bfloat16": "BF16", "float16": "F16"}.get(stated, "F32")
    return {
        name: TensorInfo(name, dtype, shape, files.get(name, "pytorch_model.bin"))
        for name, shape in skeleton.tensors().items()
        if not files or name in files
    }


def expected_infos(family: Family, config: Mapping[str, Any], weight_map: Mapping[str, str]) -> dict[str, TensorInfo]:
    """Tensors of a repo of `.bin` files not yet downloaded, by a model that is built for nothing else."""
    skeleton = Skeleton(family, config, torch.float32, torch.device("cpu"))
    return _infos_from(skeleton, config, weight_map)


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "layer": row.layer,
        "action": row.action,
        "dtype": row.source.dtype,
        "shape": list(row.source.shape),
        "source_bytes": row.source.nbytes,
        "bits": row.grid.bits if row.grid else None,
        "group_size": row.grid.group_size if row.grid else None,
        "bytes": sum(info.nbytes for info in row.outputs),
        "shard": row.outputs[0].file if row.outputs else None,
    }
