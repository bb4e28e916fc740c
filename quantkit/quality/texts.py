"""The text an evaluation reads: names to documents, with language and what they share with calibration."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, UsageError
from quantkit.texts import file_documents, hub_documents, shipped_documents, text_index

FOLDER = "evaluation"
FILES = (".txt", ".jsonl", ".json", ".md")
SHINGLE = 48  # characters that two texts must have in a row to share something
OVERLAP = 0.01  # share of an evaluation text from which a warning is due


@dataclass(frozen=True)
class EvaluationText:
    """One text to be read and scored as a whole."""

    name: str
    language: str  # ISO 639-1, or "unknown"
    text: str

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def evaluation_texts(names: Sequence[str]) -> list[EvaluationText]:
    """Read every text that is named.

    Args:
        names: `default` (all shipped parts), a shipped part, a file, a folder of files, or a Hub set.

    Raises:
        UsageError: a name is none of these.
        BadInputError: a file does not hold text.
        NetworkError: the Hub was not reached.
    """
    index = text_index(FOLDER)
    shipped = {row["name"]: row for row in index["sets"]}
    found: list[EvaluationText] = []
    for name in names:
        if name == "default":
            found += [_shipped(row) for row in shipped.values()]
        elif name in shipped:
            found.append(_shipped(shipped[name]))
        elif Path(name).is_dir():
            found += _folder(Path(name))
        elif Path(name).is_file():
            found.append(EvaluationText(Path(name).name, "unknown", _join(file_documents(Path(name)))))
        elif name in index.get("hub", {}):
            row = index["hub"][name]
            found.append(EvaluationText(name, row.get("language", "unknown"), _join(hub_documents(name, row))))
        else:
            known = ["default", *shipped, *index.get("hub", {})]
            raise UsageError(f"no evaluation text {name!r}", f"name a file, a folder, or one of: {', '.join(known)}")
    return found


def overlap(text: str, others: Iterable[str]) -> float:
    """Share of a text's stretches of 48 characters that stand in one of the others word for word.

    Args:
        text: the evaluation text.
        others: calibration documents.
    """
    stretches = {text[start : start + SHINGLE] for start in range(0, len(text) - SHINGLE + 1, SHINGLE)}
    if not stretches:
        return 0.0
    shared: set[str] = set()
    for other in others:
        shared |= {piece for piece in stretches - shared if piece in other}
    return len(shared) / len(stretches)


def _shipped(row: dict[str, Any]) -> EvaluationText:
    return EvaluationText(row["name"], row["language"], _join(shipped_documents(FOLDER, row)))


def _folder(folder: Path) -> list[EvaluationText]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in FILES and path.is_file())
    if not paths:
        raise BadInputError(f"{folder} holds no text", f"expected files ending in {', '.join(FILES)}")
    return [EvaluationText(path.name, "unknown", _join(file_documents(path))) for path in paths]


def _join(documents: Iterable[Any]) -> str:
    """Documents as one text; of chats what was said."""
    return "\n\n".join(
        document if isinstance(document, str) else "\n".join(message["content"] for message in document)
        for document in documents
    )
