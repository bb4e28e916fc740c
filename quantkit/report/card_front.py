"""The front matter of a card: what the Hub reads of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.basecard import GATE
from quantkit.manifest import Base
from quantkit.report.card_facts import Artifact, Model
from quantkit.report.card_text import visible

HUB = "https://huggingface.co"
# Tags of a base that do not hold for what was made of it.
_NOT_CARRIED = re.compile(
    r"pytorch|tf|jax|onnx|openvino|safetensors|custom_code|gguf|gptq|awq|exl2|[0-9]-bit|(base_model|license|region):.*",
    re.IGNORECASE,
)
LIBRARIES = {"gptq": "transformers", "gguf": "gguf"}
TASK = "text-generation"  # what every family does; a base may be more exact


def front_matter(artifact: Artifact, title: str, namespace: str | None, files: Sequence[str]) -> dict[str, Any]:
    """The keys that the Hub knows, in its order.

    Args:
        artifact: GPTQ or GGUF.
        title: of the card.
        namespace: of the user or organisation that publishes it; None: not known.
        files: names of the artifact's files.
    """
    base, card = artifact.manifest.base, artifact.manifest.base.card
    front: dict[str, Any] = {
        "base_model": base.repo,
        "base_model_relation": "quantized" if base.repo else None,
        "license": _one(card.get("license")) or "unknown",
        "license_name": card.get("license_name"),
        "license_link": licence_link(base, files),
        "language": card.get("language"),
        "library_name": LIBRARIES[artifact.manifest.method],
        "pipeline_tag": _one(card.get("pipeline_tag")) or TASK,
        "tags": tags(artifact),
        "quantized_by": namespace,
        **{key: _switch(value) for key, value in card.items() if key.startswith(GATE)},
        "model-index": model_index(artifact, title),
    }
    return {key: _shown(value) for key, value in front.items() if value}


def tags(artifact: Artifact) -> list[str]:
    """Tags of the base that still hold, and those of the method and its bits."""
    kept = [tag for tag in artifact.manifest.base.card.get("tags", ()) if not _NOT_CARRIED.fullmatch(tag)]
    bits = {found[0] for model in artifact.models if (found := re.findall(r"\d+", model.label)) and len(found[0]) == 1}
    own = [artifact.manifest.method, *(f"{number}-bit" for number in sorted(bits)), "quantkit"]
    if any((model.record.get("imatrix") or {}).get("file") for model in artifact.models):
        own.append("imatrix")
    return list(dict.fromkeys([*kept, *own]))


def licence_link(base: Base, files: Sequence[str]) -> str | None:
    """Where the licence is: what was relative to the base's repository is so to this one if the file came along."""
    said = base.card.get("license_link")
    if not isinstance(said, str) or "://" in said or said in files or base.repo is None:
        return said if isinstance(said, str) else None
    return f"{HUB}/{base.repo}/blob/{base.commit or 'main'}/{said.lstrip('./')}"


def model_index(artifact: Artifact, title: str) -> list[dict[str, Any]] | None:
    """The measured perplexity of every checked model; None where there is none."""
    results = [result for model in artifact.models if (result := _result(model))]
    return [{"name": title, "results": results}] if results else None


def _result(model: Model) -> dict[str, Any] | None:
    if model.check is None or model.overall is None:
        return None
    evaluation = model.check["evaluation"]
    texts = {text["name"]: text["sha256"] for text in evaluation["texts"]}
    languages = list(dict.fromkeys(text["language"] for text in evaluation["texts"]))
    return {
        "task": {"type": TASK},
        "dataset": {
            "type": "text",
            "name": f"evaluation texts of quantkit check: {', '.join(texts)}",
            "args": {"sha256": texts, "languages": languages, "windows": evaluation["windows"]},
        },
        "metrics": [
            {
                "type": "perplexity",
                "name": f"perplexity, {model.label}",
                "value": round(model.overall["perplexity"], 4),
                "args": {"standard_error": round(model.overall["perplexity_error"], 4)},
                "verified": False,
            }
        ],
    }


def _one(value: object) -> str | list[str] | None:
    """A text, or texts."""
    return value if isinstance(value, str | list) else None


def _switch(value: object) -> object:
    """A truth value, which the reader of front matter gives as text."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _shown(value: Any) -> Any:  # noqa: ANN401
    """Without characters that nobody sees, at any depth."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value
