"""The tokenizer files of an artifact: the source's, mended or rebuilt where they would not give the right ids."""

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, DiskError
from quantkit.hub.repository import small_files
from quantkit.vocab import spm, xgen
from quantkit.vocab.repair import repaired
from quantkit.vocab.templates import ChatTemplate, template_for
from quantkit.weights.header import parse_object
from quantkit.weights.regular import open_regular, read_small

PATTERNS = (
    "tokenizer*.json",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
CONFIG, JSON, SPM = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
SPECIAL = "special_tokens_map.json"
MAX_BYTES = 2**28  # of one tokenizer file; the largest known have 35 MB
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
# What the class would say, and FAST does not.
LLAMA_DEFAULTS = {
    "bos_token": spm.BOS,
    "eos_token": spm.EOS,
    "unk_token": spm.UNK,
    "clean_up_tokenization_spaces": False,
}
LLAMA_TYPES = ("llama", "mistral")  # of which these are the classes where tokenizer_config.json names none
FAST = "PreTrainedTokenizerFast"  # tokenizer.json as it is, in every version of transformers
INPUTS = ["input_ids", "attention_mask"]  # decoders refuse the token_type_ids that FAST gives of itself


@dataclass(frozen=True)
class Treatment:
    """What happens to a checkpoint's tokenizer files on their way into the artifact.

    Attributes:
        names: the source's tokenizer files.
        from_gpt2: tokenizer.json is XGen's, made from GPT-2's vocabulary.
        from_spm: tokenizer.json is made from tokenizer.model.
        by_vocabulary: transformers would take vocabulary and merges alone from tokenizer.json.
        as_it_is: tokenizer_config.json says that tokenizer.json holds everything; no class of the source's does.
        template: what is supplied where the source has no chat template.
        unread: why the tokenizer cannot be read, if so.
    """

    names: tuple[str, ...]
    from_gpt2: bool = False
    from_spm: bool = False
    by_vocabulary: bool = False
    as_it_is: bool = False
    template: ChatTemplate | None = None
    unread: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, a sentence each."""
        said = {
            "tokenizer.json: rebuilt from GPT-2's vocabulary, without the checkpoint's code": self.from_gpt2,
            "tokenizer.json: made from tokenizer.model": self.from_spm,
            f"chat template: supplied ({self.template.name if self.template else ''}), the source has none": (
                self.template is not None
            ),
        }
        return tuple(note for note, holds in said.items() if holds)


def treatment(folder: Path, config: Mapping[str, Any] | None = None, repository: str | None = None) -> Treatment:
    """Decide from the small files of a checkpoint; nothing is downloaded.

    Args:
        folder: where they lie.
        config: config.json as the artifact will have it; without it the folder's own.
        repository: organisation/name on the Hub; None for a local folder.

    Raises:
        BadInputError: a configuration is no JSON object.
    """
    names = _names(folder)
    own, model = read_object(folder / CONFIG), read_object(folder / "config.json")
    stated = own.get("tokenizer_class") or model.get("tokenizer_class")
    is_xgen, has_json = stated == "XgenTokenizer", JSON in names
    remapped = config is not None and config.get("model_type") != model.get("model_type", config.get("model_type"))
    by_spm = stated in LLAMA_CLASSES or (stated is None and model.get("model_type") in LLAMA_TYPES)
    from_spm = SPM in names and not has_json and not is_xgen and by_spm and _is_llama_like(folder)
    by_vocabulary = has_json and stated in LLAMA_CLASSES and model.get("model_type") == "llama" and _normalizes(folder)
    templated = bool(own.get("chat_template")) or any(name.startswith("chat_template") for name in names)
    return Treatment(
        names,
        from_gpt2=is_xgen and not has_json,
        from_spm=from_spm,
        by_vocabulary=by_vocabulary,
        as_it_is=is_xgen or from_spm or by_vocabulary or (has_json and remapped),
        template=None if templated or not names else template_for(repository, folder.resolve().name),
        unread=None if has_json or is_xgen or from_spm else _why_unread(names, stated),
    )


def tokenizer_files(folder: Path, plan: Treatment) -> dict[str, bytes]:
    """The artifact's tokenizer files by name, byte for byte the source's where nothing is wrong with them.

    Raises:
        BadInputError: a file is not what it must be.
        NotFoundError: GPT-2's vocabulary is needed and cannot be had.
    """
    files = read_files(folder, plan.names)
    if JSON in files:
        files[JSON] = repaired(files[JSON]) or files[JSON]
    own = read_object(folder / CONFIG)
    if plan.from_gpt2:
        for name in xgen.GPT2_FILES:  # GPT-2's, if at all; read alone they lack what XGen adds
            files.pop(name, None)
        files[JSON] = xgen.rebuild(*xgen.gpt2_vocabulary(folder))
        own = {key: own[key] for key in ("model_max_length", "chat_template") if own.get(key)}
        own |= {"eos_token": xgen.END_OF_TEXT, "clean_up_tokenization_spaces": False}
    if plan.from_spm:
        files[JSON] = spm.rebuild(
            spm.read_spm(files[SPM]),
            add_bos=own.get("add_bos_token") is not False,
            add_eos=own.get("add_eos_token") is True,
            legacy=own.get("legacy") is not False,
        )
    if plan.from_spm or plan.by_vocabulary:
        named = read_object(folder / SPECIAL)
        own = {key: value for key, value in own.items() if value is not None}
        own = {key: value for key, value in LLAMA_DEFAULTS.items() if key not in named} | own
    if plan.as_it_is:
        own = {key: value for key, value in own.items() if key not in ("auto_map", "add_special_tokens")}
        own |= {"tokenizer_class": FAST, "model_input_names": INPUTS}
    if plan.template:
        own |= {"chat_template": plan.template.text}
    if plan.as_it_is or plan.template:
        files[CONFIG] = json.dumps(own, indent=2, ensure_ascii=False).encode() + b"\n"
    return files


def read_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """The tokenizer files of a folder by name, unchanged.

    Raises:
        BadInputError: one is no regular file, or larger than any tokenizer.
        DiskError: the disk refuses to read.
    """
    return {name: _read(folder / name) for name in (_names(folder) if names is None else names)}


def is_tokenizer_file(name: str) -> bool:
    """Whether a file belongs to the tokenizer, its chat template included."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)


def read_object(path: Path) -> dict[str, Any]:
    """A small JSON object, or an empty one where there is no such file.

    Raises:
        BadInputError: the file holds something else.
    """
    return parse_object(read_small(path), path.name, unique_keys=False) if path.is_file() else {}


def _names(folder: Path) -> tuple[str, ...]:
    found = [path.name for path in folder.iterdir() if path.is_file()]
    return tuple(name for name in small_files(found) if is_tokenizer_file(name))


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        try:
            raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise BadInputError(f"{path}: found more than {MAX_BYTES} bytes, too many for a tokenizer")
    return raw


def _is_llama_like(folder: Path) -> bool:
    try:
        return spm.read_spm(_read(folder / SPM)).is_llama_like
    except BadInputError:
        return False


def _normalizes(folder: Path) -> bool:
    """Whether tokenizer.json has a normalizer: transformers 5 makes a LlamaTokenizer without one.

    Llama 2's puts a space in front of each text and behind each special token. Without it a space at the beginning
    of a text is lost, and the first word of a prompt becomes another token.
    """
    try:
        made = json.loads(_read(folder / JSON))
    except (ValueError, RecursionError):
        return False  # the loader says what is wrong
    return isinstance(made, dict) and made.get("normalizer") is not None


def _why_unread(names: tuple[str, ...], stated: str | None) -> str | None:
    """A sentence about files that transformers would read into too few words, or with merges in the wrong order."""
    if {"vocab.json", "merges.txt"} <= set(names) or "vocab.txt" in names:
        return None
    model = next((name for name in names if name.endswith(".model")), None)
    if model is None:
        return f"found none of {JSON}, {SPM}, vocab.json with merges.txt"
    whose = f" of a {stated}" if stated else ""
    return f"found {model}{whose} without {JSON}, and only LLaMA's kind of it can be read alone"
