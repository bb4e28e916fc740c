"""What a check found, as the record that check.json and the reports hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quantkit.lockstep import Pass
from quantkit.pipeline.check_job import CheckJob
from quantkit.pipeline.weightset import WeightSet
from quantkit.plan.runtime import RUNTIME_OVERHEAD, kv_cache_bytes, runtime_bytes
from quantkit.quality.gates import apply_gates, limits_for, limits_from, overridden
from quantkit.quality.metrics import TokenScores, summarize


def evaluation_record(job: CheckJob) -> dict[str, Any]:
    """How it was measured: windows, texts, precision."""
    windows, by_text = job.windows, job.windows.scored.sum(1)
    return {
        "windows": windows.rule,
        "count": len(windows.ids),
        "context": windows.ids.shape[1],
        "stride": job.options.stride,
        "like_llama_cpp": job.options.like_llama_cpp,
        "prefix": list(job.prefix),
        "tokens": windows.tokens,
        "dtype": str(job.device.dtype).removeprefix("torch."),
        "device": job.device.label,
        "texts": [
            {
                "name": text.name,
                "language": text.language,
                "sha256": text.sha256,
                "tokens": int(by_text[windows.text == number].sum()),
            }
            for number, text in enumerate(job.texts)
        ],
        "notes": list(job.notes),
    }


def entry_of(job: CheckJob, number: int, found: Pass) -> dict[str, Any]:
    """One weight set's part of the record."""
    weights = job.sets[number]
    entry: dict[str, Any] = {
        "name": weights.name,
        "repo": weights.repo_id,
        "commit": weights.commit,
        "format": weights.label,
        "bits": weights.bits,
        "bits_per_weight": round(weights.bits_per_weight, 4),
        "files": weights.hashes(),
        "file_bytes": weights.file_bytes,
        "memory": _memory(job, weights),
        "metrics": _metrics(job, found.scores[number], found.scores[0]),
    }
    if number == 0:
        return entry
    recorded = _output_errors(weights.path)
    entry["drift"] = found.drift[number]
    entry["linears"] = [
        {**damage.as_dict(), "output_error": recorded.get(damage.name)} for damage in found.damage[number]
    ]
    entry["intact"] = _intact(weights, entry["files"])
    recipe = (weights.run or {}).get("recipe") or {}
    own = job.options.limits_by_name.get(weights.name)
    asked = (own,) if own else (limits_from(recipe.get("gates")), job.options.limits)
    limits = overridden(limits_for(weights.bits), *asked)
    gates = apply_gates(limits, entry) if job.options.gated else []
    entry["gates"] = [asdict(gate) | {"sentence": gate.sentence} for gate in gates]
    entry["passed"] = all(gate.passed for gate in gates)
    return entry


def _metrics(job: CheckJob, scores: TokenScores, baseline: TokenScores) -> dict[str, Any]:
    text = job.windows.text.unsqueeze(1).expand_as(job.windows.scored)[job.windows.scored]
    languages = sorted({text.language for text in job.texts})
    by_language = {
        language: [number for number, one in enumerate(job.texts) if one.language == language] for language in languages
    }

    def over(numbers: Sequence[int]) -> dict[str, Any] | None:
        mask = torch.isin(text, torch.tensor(list(numbers)))
        return summarize(scores.select(mask), baseline.select(mask)).as_dict() if mask.any() else None

    return {
        "all": summarize(scores, baseline).as_dict(),
        "texts": {one.name: over([number]) for number, one in enumerate(job.texts)},
        "languages": {language: over(numbers) for language, numbers in by_language.items()},
    }


def _memory(job: CheckJob, weights: WeightSet) -> dict[str, Any]:
    sizes, context = job.skeleton.sizes(), job.options.kv_context
    predicted = runtime_bytes(sizes, weights.weight_bytes, context)
    return {
        "weight_bytes": weights.weight_bytes,
        "context": context,
        "kv_bytes": kv_cache_bytes(sizes, context),
        "overhead_bytes": RUNTIME_OVERHEAD,
        "predicted_bytes": predicted,
        "ratio": predicted / runtime_bytes(sizes, _sixteen_bit_bytes(job), context),
        "measured": None,
    }


def _sixteen_bit_bytes(job: CheckJob) -> int:
    return 2 * sum(torch.Size(shape).numel() for shape in job.skeleton.tensors().values())


def _output_errors(folder: Path) -> dict[str, float]:
    """Relative error of each linear's output over the calibration set, as the run noted it."""
    try:
        lines = (folder / "layers.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return {}
    return {row["name"]: row["relative_error"] for row in rows if "relative_error" in row}


def _intact(weights: WeightSet, hashes: Mapping[str, str]) -> dict[str, Any] | None:
    """Which files are no longer those that the run wrote; None where it did not say."""
    written = (weights.run or {}).get("files")
    if not isinstance(written, dict):
        return None
    return {"changed": sorted(name for name in hashes if name in written and written[name] != hashes[name])}
