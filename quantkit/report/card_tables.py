"""The tables of a card: variants side by side, languages, calibration, files."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.report import figures
from quantkit.report.card_facts import Model
from quantkit.report.card_text import Markdown, code, link, plain, table
from quantkit.report.findings import LANGUAGES
from quantkit.units import format_bytes, format_gib

UNKNOWN = "–"
HEAD = ["variant", "size", "bits per weight", "memory", "perplexity", "increase", "KL", "top-1", "check"]


def variants(models: Sequence[Model], ruler: Model | None) -> Markdown:
    """The baseline and every model in a row.

    Args:
        models: own ones and those of siblings, the smallest first.
        ruler: a model of this artifact that was checked; figures of others are shown if they compare with its.
    """
    rows = [_row(model, ruler) for model in models]
    if ruler is not None and ruler.check is not None:
        rows.append(_baseline(ruler.check["baseline"]))
    return table(HEAD, rows, "tnnnnnnnt")


def languages(models: Sequence[Model], ruler: Model) -> Markdown | None:
    """What every language lost; None where the text has one alone."""
    assert ruler.check is not None
    own = {name: found for name, found in ruler.check["baseline"]["metrics"]["languages"].items() if found}
    shown = [model for model in models if model.is_measured_like(ruler)]
    if len(own) < 2 or not shown:
        return None
    if len(shown) == 1:
        head = ["language", "tokens", "perplexity before", "after", "increase", "KL", "top-1"]
        return table(head, [_language(name, found, shown[0]) for name, found in own.items()], "tnnnnnn")
    rows = []
    for name, found in own.items():
        cells = [_short(model, name) for model in shown]
        rows.append([LANGUAGES.get(name, name), str(found["tokens"]), figures.perplexity(found["perplexity"]), *cells])
    head = ["language", "tokens", "perplexity before", *(f"{model.label}: KL (top-1)" for model in shown)]
    return table(head, rows, "t" + "n" * (len(head) - 1))


def calibration(found: Mapping[str, Any]) -> Markdown:
    """What the method looked at, a row for each set of text."""
    sets = found.get("tokens_by_set") or dict.fromkeys(found.get("text") or (), "")
    return table(["text", "tokens"], [[name, str(tokens)] for name, tokens in sets.items()], "tn")


def files(hashes: Mapping[str, str], sizes: Mapping[str, int]) -> Markdown:
    """Every file with its size and sha256."""
    rows = [[code(name), format_bytes(sizes[name]), code(digest)] for name, digest in sorted(hashes.items())]
    return table(["file", "size", "sha256"], rows, "tnt")


def _row(model: Model, ruler: Model | None) -> list[str]:
    name: str = link(model.label, model.home) if model.home else plain(model.label)
    sizes = [name, format_bytes(model.nbytes), figures.bits(model.bits_per_weight)]
    if model.entry is None or model.overall is None:
        return [*sizes, *[UNKNOWN] * 5, model.standing]
    overall = model.overall
    memory = format_gib(model.entry["memory"]["predicted_bytes"])
    if ruler is not None and not model.is_measured_like(ruler):
        return [*sizes, memory, *[UNKNOWN] * 4, "measured over other text"]
    return [
        *sizes,
        memory,
        figures.perplexity(overall["perplexity"], overall["perplexity_error"]),
        figures.change(overall["perplexity_ratio"]),
        figures.small(overall["kl_mean"]),
        figures.share(overall["top1_agreement"]),
        model.standing,
    ]


def _baseline(entry: Mapping[str, Any]) -> list[str]:
    overall = entry["metrics"]["all"]
    return [
        "original, 16 bits",
        format_bytes(entry["file_bytes"]),
        figures.bits(entry["bits_per_weight"]),
        format_gib(entry["memory"]["predicted_bytes"]),
        figures.perplexity(overall["perplexity"], overall["perplexity_error"]),
        *[""] * 4,
    ]


def _language(name: str, found: Mapping[str, Any], model: Model) -> list[str]:
    assert model.entry is not None
    after = model.entry["metrics"]["languages"].get(name)
    cells = [LANGUAGES.get(name, name), str(found["tokens"]), figures.perplexity(found["perplexity"])]
    if not after:
        return [*cells, *[UNKNOWN] * 4]
    return [
        *cells,
        figures.perplexity(after["perplexity"]),
        figures.change(after["perplexity_ratio"]),
        figures.small(after["kl_mean"]),
        figures.share(after["top1_agreement"]),
    ]


def _short(model: Model, name: str) -> str:
    assert model.entry is not None
    after = model.entry["metrics"]["languages"].get(name)
    return f"{figures.small(after['kl_mean'])} ({figures.share(after['top1_agreement'])})" if after else UNKNOWN
