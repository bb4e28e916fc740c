"""A checkpoint's tokenizer through transformers: mended if need be, never with remote code."""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError
from quantkit.vocab.files import Treatment, tokenizer_files, treatment
from quantkit.weights.source import read_config

Tokenizer = Any  # transformers' tokenizer
HINT = "calibration needs tokenizer.json or tokenizer.model; --method rtn needs no calibration"
SCRIPTS = "a 1 . Я 的 の ا"  # a vocabulary that knows none of these was not read


def load_tokenizer(folder: Path, config: Mapping[str, Any] | None = None, repository: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder, as the artifact will have it.

    Args:
        folder: where the tokenizer files lie.
        config: config.json as the artifact will have it; without it the folder's own, as data.
        repository: organisation/name on the Hub, by which a missing chat template is found.

    Raises:
        BadInputError: there is none, or it does not load.
        NotFoundError: it is made from GPT-2's vocabulary, which cannot be had.
    """
    plan = treatment(folder, config, repository)
    if config is None and (folder / "config.json").is_file():
        config = read_config(folder)
    return load_treated(plan, tokenizer_files(folder, plan), config, repository or folder.name)


def load_treated(plan: Treatment, files: Mapping[str, bytes], config: Mapping[str, Any] | None, name: str) -> Tokenizer:
    """As `load_files`, after a look whether the files are such as can be read.

    Raises:
        BadInputError: they are not, or do not load.
    """
    if plan.unread:
        raise BadInputError(f"the tokenizer of {name} does not load: {plan.unread}", HINT)
    return load_files(files, config, name)


def load_files(files: Mapping[str, bytes], config: Mapping[str, Any] | None, name: str) -> Tokenizer:
    """A tokenizer from the bytes of its files, as plain transformers loads them from a folder.

    Args:
        files: by name.
        config: config.json beside them; `auto_map` is left out.
        name: for messages.

    Raises:
        BadInputError: it does not load, or knows no word.
    """
    from transformers import AutoTokenizer

    copy = Path(tempfile.mkdtemp())
    try:
        for file, raw in files.items():
            (copy / file).write_bytes(raw)
        if config is not None:
            kept = {key: value for key, value in config.items() if key != "auto_map"}
            (copy / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(copy, trust_remote_code=False, local_files_only=True)
        ids = tokenizer(SCRIPTS, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises nothing narrower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(copy), name)
        raise BadInputError(f"the tokenizer of {name} does not load: {reason}", HINT) from error
    finally:
        shutil.rmtree(copy)
    if set(ids) <= {tokenizer.unk_token_id}:
        raise BadInputError(f"the tokenizer of {name} does not load: every text becomes {tokenizer.unk_token}", HINT)
    tokenizer.model_max_length = sys.maxsize  # documents are cut by the caller, no warning is needed
    return tokenizer
