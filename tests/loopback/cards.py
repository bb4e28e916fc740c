"""A model card's front matter: what the Hub reads from it, and what it refuses."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from loopback.storage import Entry

_FRONT_MATTER = re.compile(r"^---\s*\n(.*?)\n?---\s*(\n|$)", re.DOTALL)
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
RELATIONS = ("finetune", "adapter", "merge", "quantized", "derivative")
LICENSES = tuple(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "  # noqa: SIM905
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma unknown other".split()
)


def front_matter(text: str) -> Any:
    """The front matter as YAML reads it; None where there is none.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    match = _FRONT_MATTER.match(text)
    return yaml.safe_load(match[1]) if match else None


def problems(text: str) -> tuple[list[str], list[str]]:
    """What is wrong with a card, and what is merely missing."""
    try:
        words = front_matter(text)
    except yaml.YAMLError as error:
        return [f"bad YAML in the front matter: {str(error).splitlines()[0]}"], []
    if words is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(words, dict):
        return ["metadata must be an object"], []
    errors = [f'"{name}" must be a list of strings' for name in ("tags",) if not _is_texts(words.get(name, []))]
    licenses = words.get("license", [])
    for name in [licenses] if isinstance(licenses, str) else licenses:
        if name not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES[:3])}, ...], not {name!r}')
    bases = words.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not _REPO_ID.fullmatch(str(base)):
            errors.append(f'"base_model" with value {base!r} is not valid. Use a model id from https://hf.co/models.')
    if words.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    if not re.fullmatch(r"[a-z0-9-]+", str(words.get("pipeline_tag", "x"))):
        errors.append('"pipeline_tag" must be a task id')
    return errors, []


def words_of(files: Mapping[str, Entry]) -> dict[str, Any]:
    """The front matter of a commit's README.md, empty where it has none that can be read."""
    if (entry := files.get("README.md")) is None:
        return {}
    try:
        words = front_matter(entry.content.read().decode(errors="replace"))
    except yaml.YAMLError:
        return {}
    return words if isinstance(words, dict) else {}


def tags_of(card: Mapping[str, Any]) -> list[str]:
    """A repository's tags: the card's own, and those that other words of it become."""
    tags = [str(tag) for tag in card.get("tags") or []]
    for name in ("library_name", "pipeline_tag"):
        tags += [str(card[name])] if card.get(name) else []
    for name in ("license", "base_model"):
        values = card.get(name) or []
        tags += [f"{name}:{value}" for value in ([values] if isinstance(values, str) else values)]
        if name == "base_model" and (relation := card.get("base_model_relation")):
            tags += [f"base_model:{relation}:{value}" for value in ([values] if isinstance(values, str) else values)]
    return list(dict.fromkeys(tags))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
