"""The card of an artifact: README.md from what its runs and its check have left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.basecard import licence_files
from quantkit.manifest import CARD, MANIFEST_FILE, PICTURE, comes_later
from quantkit.report import card_tables, figures
from quantkit.report.card_facts import Artifact, Model
from quantkit.report.card_front import HUB, front_matter, licence_link
from quantkit.report.card_loading import runtimes, ways
from quantkit.report.card_text import Markdown, as_yaml, code, fence, link, plain
from quantkit.report.findings import unknown_text
from quantkit.units import format_bytes, format_gib

TEMPLATE = "card.md"
UNLISTED = (CARD, PICTURE, MANIFEST_FILE)  # in the table of files: they speak of it


@dataclass(frozen=True)
class Prompt:
    """What a tokenizer's chat template makes of a conversation, or why it makes nothing."""

    text: str | None
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """Where an artifact is published.

    Attributes:
        title: organisation/name, or what the folder is called.
        repo_id: organisation/name; None: not known yet.
        branch: of it; None: the default one.
        forced: it is published although its check does not vouch for it.
    """

    title: str
    repo_id: str | None = None
    branch: str | None = None
    forced: bool = False

    @property
    def name(self) -> str:
        """The title without the organisation."""
        return self.title.rpartition("/")[2]


def render_card(
    artifact: Artifact,
    place: Place,
    siblings: Sequence[Model],
    prompt: Prompt,
    hashes: Mapping[str, str],
    sizes: Mapping[str, int],
    picture: bool,
) -> str:
    """The card as text, the same for the same facts.

    Args:
        artifact: what the folder says.
        place: where it is published.
        siblings: models of other artifacts of the same base, for the table of variants.
        prompt: what a prompt looks like.
        hashes: sha256 of every file as it is.
        sizes: bytes of every file.
        picture: whether `PICTURE` stands beside it.
    """
    ruler = next((model for model in artifact.models if model.check is not None), None)
    shown = sorted([*artifact.models, *siblings], key=lambda model: model.nbytes)
    namespace = place.repo_id.partition("/")[0] if place.repo_id else None
    front = front_matter(artifact, place.name, namespace, list(hashes))
    template = _environment().get_template(TEMPLATE)
    text: str = template.render(
        front=Markdown(as_yaml(front)),
        place=place,
        base=_base(artifact, list(hashes)),
        method=artifact.manifest.method,
        models=artifact.models,
        what=_what(artifact),
        version=artifact.manifest.versions.get("quantkit", ""),
        warning=_warning(artifact, place),
        objections=_objections(artifact, hashes),
        facts=_facts(artifact.models),
        variants=card_tables.variants(shown, ruler),
        languages=card_tables.languages(shown, ruler) if ruler else None,
        evaluation=_evaluation(ruler),
        picture=PICTURE if picture else None,
        ways=ways(artifact, place.repo_id or place.title, place.branch, prompt.text is not None),
        runtimes=runtimes(artifact.models[0]) if artifact.manifest.method == "gptq" else None,
        prompt=prompt,
        recipe=fence(as_yaml(dict(artifact.manifest.recipe)), "yaml"),
        calibration=_calibration(artifact),
        calibration_sets=_sets(artifact),
        notes=_notes(artifact),
        versions=Markdown(", ".join(plain(f"{name} {said}") for name, said in artifact.manifest.versions.items())),
        files=card_tables.files({name: one for name, one in hashes.items() if name not in UNLISTED}, sizes),
        size_of_files=format_bytes(sum(sizes[name] for name in hashes)),
    )
    return text


def _environment() -> Any:  # noqa: ANN401
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quantkit.report"),
        undefined=StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "fence": fence}
    return environment


def _escaped(value: object) -> object:
    """What a template shows: text of others is escaped, Markdown of ours is not."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markdown) else value


def _base(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    base = artifact.manifest.base
    link_text = licence_link(base, names)
    licence = base.card.get("license")
    said = licence if isinstance(licence, str) else ", ".join(licence or ())
    return {
        "name": link(base.name, f"{HUB}/{base.repo}") if base.repo else plain(base.name),
        "card": Markdown(f"{HUB}/{base.repo}") if base.repo else None,
        "tree": link(base.commit[:12], f"{HUB}/{base.repo}/tree/{base.commit}") if base.commit else None,
        "gated": base.gated,
        "licence": said,
        "licence_name": base.card.get("license_name") or "",
        "licence_link": link(link_text, link_text) if link_text else None,
        "licence_files": Markdown(", ".join(link(name, name) for name in licence_files(names))),
    }


def _what(artifact: Artifact) -> str:
    if artifact.manifest.method == "gptq":
        return f"quantized: {artifact.models[0].label}"
    labels = [model.label for model in artifact.models]
    return "as GGUF, " + (labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}")


def _warning(artifact: Artifact, place: Place) -> str:
    """What the objections come to."""
    checked = [model.standing for model in artifact.models if model.standing != "not checked"]
    several = len(artifact.models) > 1
    said = "Not all of these models passed their check" if several else "This model did not pass its check"
    missing = "These models were not checked" if several else "This model was not checked"
    return (said if checked else missing) + (", and published nevertheless" if place.forced else "")


def _objections(artifact: Artifact, hashes: Mapping[str, str]) -> list[str]:
    """Why nobody vouches for the files."""
    several = len(artifact.models) > 1
    said = [f"{model.label}: {why}" if several else why for model in artifact.models for why in model.objections]
    stated = artifact.manifest.files
    changed = [name for name, digest in stated.items() if not comes_later(name) and hashes.get(name) != digest]
    return said + [f"{name} is not the file that the run wrote" for name in changed]


def _facts(models: Sequence[Model]) -> list[str]:
    """The figures that decide, for an artifact of one model."""
    if len(models) != 1 or (entry := models[0].entry) is None or models[0].check is None:
        return []
    overall, memory = entry["metrics"]["all"], entry["memory"]
    before = models[0].check["baseline"]
    return [
        f"{format_bytes(models[0].nbytes)} on disk, the original has {format_bytes(before['file_bytes'])}",
        f"{format_gib(memory['predicted_bytes'])} of memory to run (predicted, {memory['context']} tokens of context)",
        f"perplexity {figures.change(overall['perplexity_ratio'], overall['perplexity_ratio_error'])}, mean KL "
        f"divergence {figures.small(overall['kl_mean'])}, the same first choice for "
        f"{figures.share(overall['top1_agreement'])} of tokens",
    ]


def _evaluation(ruler: Model | None) -> dict[str, Any] | None:
    if ruler is None or ruler.check is None:
        return None
    evaluation = ruler.check["evaluation"]
    return {
        "tokens": evaluation["tokens"],
        "texts": ", ".join(f"{text['name']} ({text['language']})" for text in evaluation["texts"]),
        "windows": evaluation["windows"],
        "dtype": evaluation["dtype"],
        "context": ruler.check["baseline"]["memory"]["context"],
        "notes": [note for note in (unknown_text(ruler.check), *evaluation["notes"]) if note],
        "version": ruler.check["versions"].get("quantkit", ""),
    }


def _calibration(artifact: Artifact) -> Markdown:
    """A sentence on what the method looked at."""
    found = artifact.manifest.calibration or {}
    words = []
    if "samples" in found:
        words.append(f"{found['samples']} samples of {found['sequence_length']} tokens")
    if "sha256" in found:
        words.append(f"sha256 of their token ids {code(found['sha256'])}")
    if "imatrix_sha256" in found:
        words.append(f"importance matrix with sha256 {code(found['imatrix_sha256'])}")
    if words:
        return Markdown(f"Calibration: {', '.join(words)}.")
    if artifact.manifest.method == "gptq":
        return Markdown("No text was used for calibration.")
    if any(model.record.get("imatrix") for model in artifact.models):
        return Markdown("The files have different importance matrices, which the recipe names.")
    return Markdown("No importance matrix was used, hence no calibration text.")


def _sets(artifact: Artifact) -> Markdown | None:
    found = artifact.manifest.calibration
    return card_tables.calibration(found) if found and (found.get("tokens_by_set") or found.get("text")) else None


def _notes(artifact: Artifact) -> list[str]:
    """What a user should know of the run, as it noted it."""
    notes = [note for model in artifact.models for note in model.record.get("notes") or ()]
    for model in artifact.models:
        if rounded := model.record.get("rounded_to_nearest"):
            notes.append(f"rounded to nearest, since their Hessian could not be factorised: {', '.join(rounded)}")
        if raised := model.record.get("damping_raised"):
            notes.append(f"quantized with more damping than asked for: {', '.join(raised)}")
    return list(dict.fromkeys(notes))
