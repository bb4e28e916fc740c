"""What a check found, said in words: verdicts, the worst linears, where the drift jumps."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.report.figures import UNKNOWN_TEXT, small
from quantkit.units import format_gib

LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)$")  # the first number of a linear's name is its layer
LANGUAGES = {
    "ar": "Arabic", "code": "code", "de": "German", "en": "English", "es": "Spanish", "fr": "French",
    "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean", "mul": "several", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "tr": "Turkish", "unknown": "not named",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def verdict(artifact: Mapping[str, Any]) -> str:
    """`passed`, `failed`, or `measured` where no gate was asked."""
    if not artifact["gates"]:
        return "measured"
    return "passed" if artifact["passed"] else "failed"


def failures(artifact: Mapping[str, Any]) -> list[str]:
    """A sentence for every gate that failed."""
    return [gate["sentence"] for gate in artifact["gates"] if not gate["passed"]]


def headline(record: Mapping[str, Any]) -> str:
    """All artifacts in a few words: `1 of 4 artifacts keeps its limits`."""
    verdicts = [verdict(artifact) for artifact in record["artifacts"]]
    passed, count = verdicts.count("passed"), len(verdicts)
    if "passed" not in verdicts and "failed" not in verdicts:
        return "Measured, without limits"
    if count == 1:
        return "The artifact keeps its limits" if passed else "The artifact fails its limits"
    if passed == count:
        return f"All {count} artifacts keep their limits"
    if not passed:
        return f"None of {count} artifacts keeps its limits"
    return f"{passed} of {count} artifacts {'keeps its' if passed == 1 else 'keep their'} limits"


def split_name(name: str) -> tuple[int, str]:
    """Layer and linear of a name: `model.layers.3.mlp.down_proj` → (3, `mlp.down_proj`); no layer is -1.

    The numbers of experts become `*`, so that a layer's experts share a name.
    """
    found = LAYER.search(name)
    if found is None:
        return -1, name
    return int(found[1]), re.sub(r"(?<=\.)\d+(?=\.)", "*", found[2])


def worst_linears(artifact: Mapping[str, Any], count: int = 3) -> list[str]:
    """The linears with the largest relative weight error: `layer 3 mlp.down_proj 0.0203`."""
    worst = sorted(artifact["linears"], key=lambda linear: linear["error"], reverse=True)[:count]
    return [f"{_short(linear['name'])} {small(linear['error'])}" for linear in worst]


def largest_jump(drift: Sequence[float]) -> tuple[int, float, float] | None:
    """The layer over which the drift grows most, with the drift before and after it."""
    before = [0.0, *drift]
    jumps = [(after - old, layer) for layer, (old, after) in enumerate(zip(before, drift, strict=False))]
    growth, layer = max(jumps, default=(0.0, 0))
    return (layer, before[layer], drift[layer]) if growth > 0 else None


def jump_sentence(drift: Sequence[float]) -> str:
    """`drift jumps most in layer 3, 0.0147 to 0.0298`, or nothing where nothing drifts."""
    jump = largest_jump(drift)
    if jump is None:
        return ""
    layer, before, after = jump
    return f"drift jumps most in layer {layer}, {small(before)} to {small(after)}"


def answers_sentence(answers: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """`46% identical to the baseline's, 5 of 7 correct (the baseline 6)`."""
    said = f"{answers['identical_share']:.0%} identical to the baseline's"
    right, of = answers.get("correct") or (0, 0)
    if not of:
        return said
    theirs = (baseline or {}).get("correct")
    return f"{said}, {right} of {of} correct" + (f" (the baseline {theirs[0]})" if theirs else "")


def measured_sentence(measured: Mapping[str, Any]) -> str:
    """`8.31 GiB at most, 412 tokens/s reading, 38.1 tokens/s writing (transformers 5.23, cuda)`."""
    parts = []
    if measured.get("peak_bytes") is not None:
        parts.append(f"{format_gib(measured['peak_bytes'])} at most")
    for key, what in (("prompt_tokens_per_second", "reading"), ("generation_tokens_per_second", "writing")):
        if measured.get(key) is not None:
            parts.append(f"{measured[key]:.3g} tokens/s {what}")
    where = ", ".join(str(measured[key]) for key in ("runtime", "device") if measured.get(key))
    return ", ".join(parts) + (f" ({where})" if where else "")


def task_sentence(task: Mapping[str, Any]) -> str:
    """`acc 0.5120 ± 0.0040, the baseline's 0.5180`."""
    return f"{task['metric']} {task_value(task)}, the baseline's {task['baseline']:.4f}"


def task_value(task: Mapping[str, Any]) -> str:
    """`0.5120 ± 0.0040`; some metrics have no error."""
    error = "" if task.get("error") is None else f" ± {task['error']:.4f}"
    return f"{task['value']:.4f}{error}"


def unknown_text(record: Mapping[str, Any]) -> str:
    """What to think of a huge perplexity, or nothing."""
    if record["baseline"]["metrics"]["all"]["perplexity"] <= UNKNOWN_TEXT:
        return ""
    return (
        "the baseline's perplexity is so high because it does not know some of these texts. Changes of it mean "
        "little here; the divergence still says how far an artifact is from the baseline."
    )


def fitting(needed: float, machines: Sequence[Any]) -> list[bool]:
    """For every machine whether so many bytes fit into what it has left for a model."""
    return [needed <= machine.usable_bytes for machine in machines]


def _short(name: str) -> str:
    layer, linear = split_name(name)
    return f"layer {layer} {linear}" if layer >= 0 else name
