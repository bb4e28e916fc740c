"""The files of an artifact that go to the Hub: which, whether they are whole, and that they hold nothing local."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.checkfile import CHECK_FILE
from quantkit.errors import BadInputError, DiskError
from quantkit.hub.repository import small_files
from quantkit.manifest import MANIFEST_FILE, RECORD, read_manifest
from quantkit.rundir import CONFIG_FILE, LAYERS_FILE, RUN_FILE
from quantkit.weights.gguf_names import SUFFIX, gguf_parts, gguf_stem

CARD = "README.md"
RECORDS = (RUN_FILE, LAYERS_FILE, CHECK_FILE, MANIFEST_FILE)
WEIGHTS = (".safetensors", ".safetensors.index.json")
IMATRIX = re.compile(r".*imatrix.*\.gguf")  # an importance matrix, which others can quantize with
LICENCES = re.compile(r"(?i).*(licen[cs]e|notice|use_policy|copying).*")
PICTURES = (".svg", ".png")  # of the card
MAX_SCANNED_BYTES = 2**26
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Artifact:
    """A whole artifact as it goes to the Hub.

    Attributes:
        folder: where it lies.
        kind: of its weights.
        models: what has a check of its own: the folder, or the first file of every GGUF model.
        names: the files to publish: weights first, then what goes with them, records, card, config.json.
        left_out: files of the folder that stay here.
    """

    folder: Path
    kind: Literal["gptq", "gguf"]
    models: tuple[Path, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def is_ours(self) -> Callable[[str], bool]:
        """Whether a file in the repository would come from an earlier push of such an artifact.

        Licences, pictures and the card are never removed there, nor are other GGUF models.
        """
        if self.kind == "gptq":
            return lambda name: _is_gptq(name) and not _is_beside(name) and name != CARD
        stems = {gguf_stem(model) for model in self.models}
        endings = (SUFFIX, RECORD, f".{CHECK_FILE}")
        return lambda name: any(name.endswith(ending) and _model_stem(name, ending) in stems for ending in endings)


def find_artifact(folder: Path) -> Artifact:
    """The artifact in a folder.

    Raises:
        BadInputError: there is none, or it is not finished.
        DiskError: the folder cannot be read.
    """
    names = _names(folder)
    if working := [name for name in names if ".partial" in name]:
        raise BadInputError(f"{folder} is not finished: it holds {working[0]}", "let the run end, or start it again")
    visible = [name for name in names if not name.startswith(".")]
    if CONFIG_FILE in visible:
        return _gptq(folder, visible)
    if any(name.endswith(SUFFIX) for name in visible):
        return _gguf(folder, visible)
    raise BadInputError(
        f"{folder} holds no finished artifact: neither {CONFIG_FILE} nor GGUF files",
        "name the output folder of quantkit gptq or quantkit gguf; a run that was interrupted continues when repeated",
    )


def refuse_local(artifact: Artifact, home: Path, secrets: Iterable[str]) -> None:
    """Refuse to publish text that names this machine's folders, or holds a token.

    Args:
        artifact: of which every text is read.
        home: where it was made, which no record shall name.
        secrets: the user's token.

    Raises:
        BadInputError: a file holds such a thing; the sentence does not repeat a token.
        DiskError: a file cannot be read.
    """
    paths = [str(path) for path in (home.absolute(), Path.home()) if len(path.parts) > 1]
    folder, names = artifact.folder, artifact.names
    for name in names:
        if not name.endswith((".json", ".jsonl", ".md", ".txt", ".jinja", ".svg")):
            continue
        text = _text(folder / name)
        if any(secret and secret in text for secret in secrets) or _TOKEN.search(text):
            raise BadInputError(f"{name} holds a token of the Hub", "remove it from the file, and make the token anew")
        if _is_written_here(name) and (found := next((path for path in paths if path in text), None)):
            raise BadInputError(f"{name} names a folder of this machine: {found}", "remove it from the file")


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """A JSON record of quantkit; empty where there is none that can be read."""
    try:
        record = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _gptq(folder: Path, names: list[str]) -> Artifact:
    if read_record(folder, RUN_FILE).get("status") != "finished":
        raise BadInputError(f"{folder} holds no finished run of quantkit: see {RUN_FILE}", "let the run end")
    return _artifact(folder, "gptq", (folder,), [name for name in names if _is_gptq(name)], names)


def _gguf(folder: Path, names: list[str]) -> Artifact:
    files: dict[str, int] = {}
    stems = [name.removesuffix(RECORD) for name in names if name.endswith(RECORD)]
    for stem in stems:
        record = read_record(folder, stem + RECORD)
        if record.get("status") != "finished":
            raise BadInputError(f"{folder} is not finished: see {stem}{RECORD}", "let the run end, or start it again")
        files |= record.get("files") or {}
    for name, size in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise BadInputError(f"{folder} is not whole: expected {name} with {size} bytes")
    strangers = [name for name in names if name.endswith(SUFFIX) and name not in files and not IMATRIX.fullmatch(name)]
    if strangers or not files:
        raise BadInputError(
            f"{folder / strangers[0] if strangers else folder} has no record {RECORD[1:]} of a run of quantkit",
            "make it with quantkit gguf, or move it away",
        )
    models = sorted({gguf_parts(folder / name)[0] for name in files})
    beside = [name for stem in stems for name in (stem + RECORD, f"{_model_stem(stem, '')}.{CHECK_FILE}")]
    chosen = [
        *files,
        *beside,
        CARD,
        MANIFEST_FILE,
        *(name for name in names if IMATRIX.fullmatch(name) or _is_beside(name)),
    ]
    return _artifact(folder, "gguf", tuple(models), chosen, names)


def _model_stem(name: str, ending: str) -> str:
    """What a model is called by the name of a file; the record of a split one is named by its first part."""
    return gguf_stem(Path(name.removesuffix(ending) + SUFFIX))


def _artifact(
    folder: Path, kind: Literal["gptq", "gguf"], models: tuple[Path, ...], chosen: list[str], names: list[str]
) -> Artifact:
    manifest = read_manifest(folder)
    if manifest is None:
        raise BadInputError(f"{folder} has no {MANIFEST_FILE}, which says from what it was made", "make it again")
    own = {*chosen, *manifest.files}
    ordered = sorted((name for name in names if name in own), key=_order)
    return Artifact(folder, kind, models, tuple(ordered), tuple(name for name in names if name not in own))


def _order(name: str) -> tuple[bool, bool, bool, bool, str]:
    """Where a file comes: more than one commit takes them in this order, and config.json makes the artifact whole."""
    is_weights = name.endswith((*WEIGHTS, SUFFIX))
    return name == CONFIG_FILE, name == CARD, name in RECORDS, not is_weights, name


def _is_gptq(name: str) -> bool:
    """Whether a file belongs to a GPTQ checkpoint; folders of a repository do not."""
    own = name in (*RECORDS, CARD, "quantize_config.json") or name.endswith(WEIGHTS) or bool(IMATRIX.fullmatch(name))
    return "/" not in name and (own or _is_beside(name) or bool(small_files([name])))


def _is_beside(name: str) -> bool:
    """Whether a file goes with any artifact: a licence, a picture of the card."""
    is_text = not name.endswith((*WEIGHTS, SUFFIX, ".py"))
    return name.endswith(PICTURES) or (is_text and bool(LICENCES.fullmatch(name)))


def _is_written_here(name: str) -> bool:
    return name in (*RECORDS, CARD, CONFIG_FILE) or name.endswith((RECORD, f".{CHECK_FILE}", ".svg"))


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise BadInputError(f"{folder} is not a folder", "name the output folder of quantkit gptq or quantkit gguf")
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DiskError(f"cannot read {folder}: {error.strerror}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_SCANNED_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error
