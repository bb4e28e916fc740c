"""Text from outside: shipped sets, text and JSONL files, data sets of the Hub; nothing is tokenized here."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, NetworkError, UsageError
from quantkit.recipe import data_folder

# Hub sets are streamed; this bounds what a set of very short documents can cost.
MAX_HUB_DOCUMENTS = 20_000
_SURROGATE = re.compile("[\ud800-\udfff]")


def text_index(folder: str) -> dict[str, Any]:
    """index.json of a shipped folder of texts: its sets, mixes and the Hub sets known by name."""
    index: dict[str, Any] = json.loads((data_folder(folder) / "index.json").read_text("utf-8"))
    return index


def shipped_documents(folder: str, row: Mapping[str, Any]) -> list[Any]:
    """The documents of a shipped set: text, or lists of chat messages.

    Raises:
        BadInputError: the file is not the one that index.json describes.
    """
    path = data_folder(folder) / row["file"]
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != row["sha256"]:
        raise BadInputError(f"{path.name} is not the file that index.json describes", "install quantkit again")
    return parse_jsonl(raw.decode("utf-8"), path.name)


def file_documents(path: Path) -> list[Any]:
    """The documents of a file: each line of .jsonl and .json, or the whole text.

    Raises:
        BadInputError: it is not UTF-8, or a line holds neither `text` nor `messages`.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    return parse_jsonl(text, path.name) if path.suffix in (".jsonl", ".json") else [text]


def parse_jsonl(text: str, name: str) -> list[Any]:
    """Documents from lines such as {"text": …} or {"messages": […]}.

    Raises:
        BadInputError: a line is not JSON, holds neither, or half of a surrogate pair.
    """
    documents: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise BadInputError(f"{name} line {number} is not JSON: {reason}") from error
        document = row.get("text", row.get("messages")) if isinstance(row, dict) else None
        if document is None or not (isinstance(document, str) or is_chat(document)):
            raise BadInputError(
                f"{name} line {number} has neither text nor messages",
                'expected {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]} on every line',
            )
        parts = [document] if isinstance(document, str) else [message["content"] for message in document]
        if any(_SURROGATE.search(part) for part in parts):
            raise BadInputError(f"{name} line {number} holds half of a surrogate pair, which is no text")
        documents.append(document)
    return documents


def is_chat(document: object) -> bool:
    """Whether a document is a list of messages with role and content, at least one."""
    if not isinstance(document, list) or not document:
        return False
    return all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in document
    )


def hub_documents(name: str, row: Mapping[str, Any]) -> Iterator[Any]:
    """The documents of a Hub data set, streamed.

    Args:
        name: as the user gave it.
        row: repo, config, split and column, from an index.

    Raises:
        UsageError: the datasets library is not installed.
        NetworkError: the Hub was not reached.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(
            f"the Hub set {name} needs the datasets library", "pip install 'quantkit[datasets]'"
        ) from error
    try:
        stream = load_dataset(row["repo"], row.get("config"), split=row["split"], streaming=True)
        for number, document in enumerate(stream):
            if number >= MAX_HUB_DOCUMENTS:
                return
            yield document[row["column"]]
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NetworkError(f"the Hub set {row['repo']} cannot be read: {first}") from error
