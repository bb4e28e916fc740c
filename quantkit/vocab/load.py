"""A checkpoint's tokenizer through transformers: mended if need be, never with remote code."""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError
from quantkit.vocab.repair import repaired
from quantkit.weights.source import read_config

TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
Tokenizer = Any  # transformers' tokenizer


def load_tokenizer(folder: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    It is loaded from a copy of its files beside the artifact's configuration, in which no `auto_map`
    stands and the architecture is one that transformers knows.

    Args:
        folder: where the tokenizer files lie.
        config: config.json as the artifact will have it; without it the folder's own, as data.

    Raises:
        BadInputError: there is none, or it does not load.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as copy:
        for pattern in (*TOKENIZER_FILES, "chat_template*"):
            for path in folder.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, Path(copy, path.name))
        _mend_file(Path(copy, "tokenizer.json"))
        if config is not None or (folder / "config.json").is_file():
            stated = read_config(folder) if config is None else config
            kept = {key: value for key, value in stated.items() if key != "auto_map"}
            Path(copy, "config.json").write_text(json.dumps(kept), encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(copy, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(copy, folder.name)
            raise BadInputError(
                f"the tokenizer of {folder.name} does not load: {reason}",
                "calibration needs tokenizer.json or tokenizer.model; --method rtn needs no calibration",
            ) from error
    tokenizer.model_max_length = sys.maxsize  # documents are cut by the caller, no warning is needed
    return tokenizer


def _mend_file(path: Path) -> None:
    if path.is_file() and (mended := repaired(path.read_bytes())) is not None:
        path.write_bytes(mended)
