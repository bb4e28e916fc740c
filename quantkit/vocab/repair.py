"""tokenizer.json files that current tokenizers refuse, mended without changing an id."""

import json
from typing import Any

from tokenizers import Tokenizer


def repaired(raw: bytes) -> bytes | None:
    """The mended bytes of a tokenizer.json, or None where the file loads as it is.

    tokenizers 0.14 and 0.15 wrote Metaspace with `add_prefix_space: false` beside a prepend_scheme of
    "always"; later versions refuse the contradiction. What the old ones did was not to prepend
    (XVERSE's published files are such). What cannot be mended is returned as None too: the loader's own
    message then says what is wrong.

    Args:
        raw: the file's bytes.
    """
    if _loads(raw):
        return None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    _mend(data)
    mended = json.dumps(data, ensure_ascii=False, indent=2).encode()
    return mended if _loads(mended) else None


def _loads(raw: bytes) -> bool:
    try:
        Tokenizer.from_str(raw.decode("utf-8"))
    except Exception:
        return False
    return True


def _mend(node: Any) -> None:  # noqa: ANN401
    """Rewrite every Metaspace below a node of the JSON tree."""
    if isinstance(node, dict):
        if node.get("type") == "Metaspace" and "add_prefix_space" in node:
            prepends = node.pop("add_prefix_space")
            node.pop("str_rep", None)
            node["prepend_scheme"] = node.get("prepend_scheme", "always") if prepends else "never"
            node["split"] = True
        for value in node.values():
            _mend(value)
    elif isinstance(node, list):
        for value in node:
            _mend(value)
