"""The card of an artifact's folder: README.md and its picture, written and entered into the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, NotFoundError
from quantkit.manifest import CARD, MANIFEST_FILE, PICTURE, comes_later, seal
from quantkit.report.card import Place, Prompt, render_card
from quantkit.report.card_facts import Artifact, read_artifact
from quantkit.report.card_plot import picture
from quantkit.vocab.chat import render
from quantkit.weights.files import write_file
from quantkit.weights.gguf_read import open_gguf
from quantkit.weights.gguf_types import Value
from quantkit.weights.hashes import file_hashes
from quantkit.weights.header import parse_object
from quantkit.weights.regular import read_small

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")  # the first that has one
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "system", "content": "{system message}"}, {"role": "user", "content": "{prompt}"}],
    [{"role": "user", "content": "{prompt}"}],
)
WRITTEN = (CARD, PICTURE, MANIFEST_FILE)  # by `write_card`
NO_TEMPLATE = "The tokenizer has no chat template: the model continues plain text."


def write_card(
    folder: Path,
    *,
    repo_id: str | None = None,
    branch: str | None = None,
    siblings: Mapping[Path, str] | Sequence[Path] = (),
    forced: bool = False,
    write: bool = True,
    known: Mapping[str, str] | None = None,
) -> str:
    """Render README.md of an artifact's folder from what lies there, write it, and enter it into quantkit.json.

    Args:
        folder: of a finished GPTQ run, or of finished GGUF runs.
        repo_id: organisation/name under which it is published; None: not known yet.
        branch: of that repository, where it is not the default one.
        siblings: folders of other variants of the same base, for the table of variants; with the address of each
            where it has one.
        forced: say that it is published although its check does not vouch for it.
        write: False leaves the folder as it is.
        known: sha256 of files by name, where they were just taken; of any other, every byte is read.

    Returns:
        The card. The same files give the same text.

    Raises:
        NotFoundError: there is no such folder.
        BadInputError: it holds no finished artifact.
        DiskError: it cannot be read or written.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no such folder: {folder}", "name the output folder of quantkit gptq or quantkit gguf")
    names = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    hashes = file_hashes(folder, names - {*WRITTEN}, known)
    artifact = read_artifact(folder, hashes)
    hashes = {name: digest for name, digest in hashes.items() if name in artifact.manifest.files or comes_later(name)}
    homes = siblings if isinstance(siblings, Mapping) else dict.fromkeys(siblings, "")
    others = [model for path, home in homes.items() for model in read_artifact(path, home=home).models]
    ruler = next((model for model in artifact.models if model.check is not None), None)
    drawn = picture(sorted([*artifact.models, *others], key=lambda one: one.nbytes), ruler) if ruler else None
    place = Place(repo_id or artifact.name, repo_id, branch, forced)
    sizes = {name: (folder / name).stat().st_size for name in hashes}
    text = render_card(artifact, place, others, _prompt(folder, artifact), hashes, sizes, drawn is not None)
    if write:
        _write(folder, text, drawn, [name for name in hashes if comes_later(name)])
    return text


def _write(folder: Path, text: str, drawn: str | None, later: Sequence[str]) -> None:
    made = {CARD: text} | ({PICTURE: drawn} if drawn is not None else {})
    for name, content in made.items():
        write_file(folder / name, content.encode())
    if drawn is None:
        (folder / PICTURE).unlink(missing_ok=True)
    manifest = seal(folder, [*made, *later])
    stated = manifest.files if manifest else ()
    seal(folder, [], gone=[name for name in stated if comes_later(name) and name not in {*made, *later}])


def _prompt(folder: Path, artifact: Artifact) -> Prompt:
    """What the artifact's own chat template makes of a conversation."""
    if artifact.manifest.method == "gptq":
        template, special = _of_tokenizer(folder)
    else:
        template, special = _of_gguf(folder / artifact.models[0].files[0])
    if not template:
        return Prompt(None, NO_TEMPLATE)
    try:
        answers = render(template, CONVERSATIONS, special, add_generation_prompt=True)
    except BadInputError as error:
        return Prompt(None, f"{str(error)[:1].upper()}{str(error)[1:]}.")
    said = [answer for answer in answers if isinstance(answer, str)]
    if said:
        return Prompt(said[0])
    return Prompt(None, f"The chat template does not render a plain conversation: {answers[-1]}.")


def _of_tokenizer(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template of a tokenizer's files, and its special tokens."""
    config = _object(folder / "tokenizer_config.json")
    tokens = {**_object(folder / "special_tokens_map.json"), **config}
    special = {key: text for key in SPECIAL if (text := _token(tokens.get(key))) is not None}
    for name in TEMPLATE_FILES:
        if name.endswith(".jinja"):
            template: Any = read_small(folder / name).decode("utf-8", "replace") if (folder / name).is_file() else None
        else:
            template = _object(folder / name).get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((one.get("template") for one in template if one.get("name") == "default"), None)
        if isinstance(template, str) and template:
            return template, special
    return None, special


def _of_gguf(path: Path) -> tuple[str | None, dict[str, str]]:
    """The same of a GGUF file."""
    told: Mapping[str, Value] = open_gguf(path).metadata
    template = told["tokenizer.chat_template"].value if "tokenizer.chat_template" in told else None
    tokens = told["tokenizer.ggml.tokens"].value if "tokenizer.ggml.tokens" in told else ()
    special = {}
    for key in SPECIAL:
        number = told.get(f"tokenizer.ggml.{key.replace('unk_token', 'unknown_token').replace('pad_', 'padding_')}_id")
        if number is not None and isinstance(tokens, tuple | list) and isinstance(number.value, int):
            special[key] = str(tokens[number.value]) if 0 <= number.value < len(tokens) else ""
    return (template if isinstance(template, str) else None), special


def _object(path: Path) -> dict[str, Any]:
    return parse_object(read_small(path), path.name, unique_keys=False) if path.is_file() else {}


def _token(found: object) -> str | None:
    """A special token, which some files describe by an object."""
    content = found.get("content") if isinstance(found, dict) else found
    return content if isinstance(content, str) else None
