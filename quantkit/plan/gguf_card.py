"""What a GGUF file is called and what it says of itself, from the repository's name and the model card.

The conventions are those of ggml's docs/gguf.md: BaseName-SizeLabel-FineTune-Version-Encoding.gguf.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.weights.gguf_types import Value

_VERSION = re.compile(r"(v|iter)?[0-9]+([.][0-9]+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q[0-9](_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"((a|[0-9]+x)?[0-9]+([._][0-9]+)?[kmbt])|small|mini|medium|large|x?xl", re.IGNORECASE)
_TUNED = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_POWERS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_HUB = re.compile(r"https?://huggingface\.co/([^/\s]+/[^/\s]+)/?")
# Key of generation_config.json -> key behind general.sampling. and its type.
SAMPLING = {
    "temperature": ("temp", "float32"),
    "top_k": ("top_k", "int32"),
    "top_p": ("top_p", "float32"),
    "min_p": ("min_p", "float32"),
    "repetition_penalty": ("penalty_repeat", "float32"),
}


@dataclass(frozen=True)
class Naming:
    """The parts of a model's name."""

    name: str  # for people: `XVERSE 13B Chat`
    stem: str  # as it was given: `XVERSE-13B-Chat`
    organization: str | None
    basename: str | None
    size_label: str
    finetune: str | None
    version: str | None
    repo_url: str | None

    def file_name(self, encoding: str) -> str:
        """`XVERSE-13B-Chat-Q4_K_M.gguf`."""
        words = [(self.basename or self.stem).replace(" ", "-"), self.size_label, self.finetune, self.version, encoding]
        return "-".join(word for word in words if word) + ".gguf"


def naming(reference: str, shapes: Mapping[str, Sequence[int]], experts: int = 0, *, on_hub: bool = False) -> Naming:
    """The parts of a model's name.

    Args:
        reference: `org/name` of a repository, or the name of a folder.
        shapes: of every GGUF tensor by name: how large the model is.
        experts: of a layer, 0 in a dense model.
        on_hub: whether `reference` is a repository of the Hub.
    """
    organization, _, name = reference.strip("/").rpartition("/")
    total = sum(math.prod(shape) for shape in shapes.values())
    parts = _parts(name, total)
    stacked = sum(math.prod(shape) for tensor, shape in shapes.items() if "_exps." in tensor)
    size = f"{experts}x{_rounded(total - stacked + stacked // experts)}" if experts else _rounded(total)
    return Naming(
        _title(name),
        name,
        _title(organization) if organization else None,
        parts.get("basename"),
        parts.get("size") or size,
        parts.get("finetune"),
        parts.get("version"),
        f"https://huggingface.co/{reference}" if on_hub else None,
    )


def card_values(naming: Naming, card: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> dict[str, Value]:
    """Keys behind `general.` that say what the model is.

    Args:
        naming: what it is called.
        card: front matter of the checkpoint's card.
        sampling: generation_config.json.
    """
    told: dict[str, Value] = {}
    for key, (name, kind) in SAMPLING.items():
        found = (sampling or {}).get(key)
        if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
            told[f"sampling.{name}"] = Value(kind, int(found) if kind == "int32" else float(found))
    licences = _texts(card.get("license"))
    words = {
        "name": naming.name,
        "version": naming.version,
        "organization": naming.organization,
        "finetune": naming.finetune,
        "basename": naming.basename,
        "size_label": naming.size_label,
        "license": ",".join(licences) or None,
        "license.name": _text(card.get("license_name")),
        "license.link": _text(card.get("license_link")),
        "source.repo_url": naming.repo_url,
    }
    told |= {key: Value("string", word) for key, word in words.items() if word}
    told |= _relatives("base_model", card.get("base_model"), "")
    told |= _relatives("dataset", card.get("datasets"), "datasets/")
    tags = [*_texts(card.get("tags")), *_texts(card.get("pipeline_tag"))]
    lists = {"tags": tags, "languages": _texts(card.get("language"))}
    return told | {key: Value("string", tuple(words)) for key, words in lists.items() if words}


def _relatives(key: str, found: object, folder: str) -> dict[str, Value]:
    """What the model was made from, numbered."""
    told = {}
    references = _texts(found)
    if references:
        told[f"{key}.count"] = Value("uint32", len(references))
    for number, reference in enumerate(references):
        match = _HUB.fullmatch(reference)
        is_url = "://" in reference
        organization, _, name = (match[1] if match else "" if is_url else reference).rpartition("/")
        url = reference if is_url else f"https://huggingface.co/{folder}{reference}" if organization else None
        words = {"name": _title(name), "organization": _title(organization), "repo_url": url}
        told |= {f"{key}.{number}.{part}": Value("string", word) for part, word in words.items() if word}
    return told


def _parts(name: str, parameters: int) -> dict[str, str]:
    """Which words of a name are what: basename, size, finetune, version."""
    words = [word for word in name.split("-") if word]
    kinds = [_kind(word, index, parameters) for index, word in enumerate(words)]
    if any(kind == "size" and not word.isalpha() for word, kind in zip(words, kinds, strict=True)):
        kinds = ["" if kind == "size" and word.isalpha() else kind for word, kind in zip(words, kinds, strict=True)]
    based = [kind == "version" or (kind == "" and word[0].isalpha()) for word, kind in zip(words, kinds, strict=True)]
    end = based.index(False) if False in based else len(words)
    # A version inside of the base belongs to it, as in Llama-3.2-1B; not at the end of the name, as in xgen-v2.
    if all(based):
        while end and kinds[end - 1] == "version":
            end -= 1
    found = {"basename": words[:end]}
    for word, kind in zip(words[end:], kinds[end:], strict=True):
        found.setdefault(kind or "finetune", []).append(_as_size(word) if kind == "size" else word)
    if not found.keys() & {"size", "finetune", "version"}:
        return {}
    return {kind: "-".join(dict.fromkeys(words)) for kind, words in found.items() if words}


def _as_size(word: str) -> str:
    return word if word.isalpha() else word[:-1].replace("_", ".") + word[-1].upper()


def _kind(word: str, index: int, parameters: int) -> str:
    if _VERSION.fullmatch(word):
        return "version"
    if _ENCODING.fullmatch(word):
        return "encoding"
    if index and _SIZE.fullmatch(word):
        return "size" if _may_be_size(word, parameters) else "finetune"
    return "finetune" if index and _TUNED.fullmatch(word) else ""


def _may_be_size(word: str, parameters: int) -> bool:
    """Whether a size in a name can be the model's: 8k in xgen-7b-8k is a context."""
    number = word[:-1].replace("_", ".")
    try:
        stated = float(number) * _POWERS[word[-1].upper()]
    except (KeyError, ValueError):
        return True
    return abs(stated - parameters) <= 7 * parameters // 8


def _rounded(parameters: int) -> str:
    """`13B`, `4.2M`: two digits."""
    unit, power = next(((unit, power) for unit, power in reversed(_POWERS.items()) if parameters > power), ("K", 1e3))
    scaled = parameters / power
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{unit}"


def _title(name: str) -> str:
    """A name for people: words capitalised, versions and abbreviations left alone."""
    words = name.strip().replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not re.fullmatch(r"v\d+(?:\.\d+)*|\d.*", word) else word for word in words
    )


def _text(found: object) -> str | None:
    return found if isinstance(found, str) else None


def _texts(found: object) -> list[str]:
    """A text, or the texts of a list."""
    if isinstance(found, str):
        return [found]
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
