"""run.json: what a finished run was asked for, made, predicted and measured."""

from typing import Any

from quantkit.calibration import CalibrationTokens, public_name
from quantkit.families.lookup import first_transformers
from quantkit.formats.gptq_config import FIRST_TRANSFORMERS
from quantkit.formats.runtimes import runtime_table
from quantkit.pipeline.costs import Cost
from quantkit.pipeline.job import Job, source_hashes
from quantkit.recipe import Recipe
from quantkit.rundir import SCHEMA_VERSION, RunFolder
from quantkit.versions import newest, versions


def run_record(
    job: Job,
    tokens: CalibrationTokens | None,
    inputs: dict[str, Any],
    folder: RunFolder,
    spent: Cost,
) -> dict[str, Any]:
    """run.json of a finished run, but for the tokenizer's proof and the artifact's files.

    Args:
        job: what was asked for, and what the plan predicted.
        tokens: the calibration set, or None for a method without data.
        inputs: the fingerprint.
        folder: what is finished, linear by linear.
        spent: over all legs of the run.
    """
    recipe = job.recipe
    linears = folder.linears()
    rounded = [row["name"] for row in linears if recipe.method == "gptq" and row["method"] == "rtn"]
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "fingerprint": inputs,
        "source": {
            "repo": job.checkpoint.repo_id,
            "commit": job.checkpoint.commit,
            "files": source_hashes(job) if job.checkpoint.commit else inputs["source"],
        },
        "recipe": _published(recipe),
        "calibration": None
        if tokens is None
        else {
            "sha256": tokens.sha256,
            "samples": tokens.ids.shape[0],
            "sequence_length": tokens.ids.shape[1],
            "tokens_by_set": dict(tokens.sets),
        },
        "versions": versions(),
        "device": job.device.label,
        "bits_per_weight": round(job.plan.bits_per_weight, 4),
        "artifact_bytes": job.plan.artifact_bytes,
        "predicted": {
            "host_bytes": job.budget.host_bytes,
            "device_bytes": job.budget.device_bytes,
            "disk_bytes": job.budget.disk_bytes,
            "seconds": round(job.budget.seconds, 1),
        },
        "measured": {
            **spent,
            "disk_bytes": sum(path.stat().st_size for path in job.output.iterdir() if path.is_file()),
        },
        "mean_relative_error": sum(row["relative_error"] for row in linears) / len(linears),
        "rounded_to_nearest": rounded,
        "damping_raised": {row["name"]: row["damp_percent"] for row in linears if row.get("damping_raised")},
        "notes": list(job.plan.notes),
        "runtimes": {row.runtime.name: row.reason or "loads" for row in runtime_table(job.layout)},
        "first_transformers": newest(FIRST_TRANSFORMERS, first_transformers(job.family, job.config)),
    }


def _published(recipe: Recipe) -> dict[str, Any]:
    """The recipe without local paths: a text file by its name alone."""
    fields = recipe.model_dump(mode="json")
    fields["calibration"]["text"] = [public_name(text) for text in recipe.calibration.text]
    return fields
