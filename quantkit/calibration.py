"""Calibration text to token ids: shipped sets, files, Hub data sets, and mixes of them."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantkit.errors import BadInputError, UsageError
from quantkit.recipe import Calibration
from quantkit.texts import file_documents, hub_documents, shipped_documents, text_index
from quantkit.vocab.chat import plain_texts

FOLDER = "calibration"
Tokenizer = Any  # transformers' tokenizer


@dataclass(frozen=True)
class TextSet:
    """Where one set's documents come from, before any is read."""

    name: str
    weight: float
    licence: str
    documents: Callable[[], Iterable[Any]]  # str, or a list of chat messages
    local: bool = True  # no network is needed to read it


@dataclass(frozen=True)
class CalibrationTokens:
    """The packed calibration set."""

    ids: torch.Tensor  # [samples, sequence] int64
    sha256: str  # over the ids as little-endian int64
    sets: tuple[tuple[str, int], ...]  # name, tokens used
    asked_samples: int


def text_sets(calibration: Calibration) -> list[TextSet]:
    """Resolve every name of `calibration.text`, reading nothing but the index of shipped sets.

    Raises:
        UsageError: a name that is no set, mix, file or Hub data set, or a weight that is no number.
    """
    index = text_index(FOLDER)
    shipped = {row["name"]: row for row in index["sets"]}
    found: list[TextSet] = []
    for text in calibration.text:
        name, weight = _split_weight(text)
        if name in index["mixes"]:
            mix = index["mixes"][name]
            found += [_shipped_set(shipped[part], weight * share) for part, share in mix.items()]
        elif name in shipped:
            found.append(_shipped_set(shipped[name], weight))
        elif _is_file(name):
            found.append(_file_set(Path(name), weight))
        elif name in index["hub"]:
            found.append(_hub_set(name, index["hub"][name], weight))
        else:
            known = [*index["mixes"], *shipped, *index["hub"]]
            raise UsageError(
                f"no calibration text {name!r}", f"name a text or JSONL file, or one of: {', '.join(known)}"
            )
    return found


def public_name(text: str) -> str:
    """An entry of `calibration.text` without the local path of a file."""
    name, weight = _split_weight(text)
    short = Path(name).name if _is_file(name) else name
    return short if weight == 1 else f"{short}:{weight:g}"


def build_tokens(
    calibration: Calibration, tokenizer: Tokenizer, vocabulary: int, longest: int | None = None
) -> CalibrationTokens:
    """Read, tokenize and pack the text into samples of one length.

    Documents of a set are shuffled with the seed, tokenized each by itself with the special tokens
    that the tokenizer adds, and joined; windows that straddle documents are kept, as in training.
    A set gives its share of the samples, or as many as it has.

    Args:
        calibration: what to read and how much.
        tokenizer: the checkpoint's.
        vocabulary: rows of the embedding; no id may reach it.
        longest: the model's context, where the configuration states one.

    Raises:
        BadInputError: less text than one sample, or an id past the embedding.
    """
    length = min(calibration.sequence_length, longest or calibration.sequence_length)
    sets = text_sets(calibration)
    streams = [_TokenStream(text_set, tokenizer, calibration.seed) for text_set in sets]
    counts = _shares(streams, [text_set.weight for text_set in sets], calibration.samples * length)
    surplus = sum(counts) % length  # less than a sample: left out
    counts = _shares(streams, [text_set.weight for text_set in sets], sum(counts) - surplus)
    if not sum(counts):
        raise BadInputError(
            f"the calibration text has {surplus} tokens, less than one sample of {length}",
            "give more text or a smaller --sequence-length",
        )
    rows: list[list[int]] = []
    rest: list[int] = []  # what is left of each set: samples across the seams of sets
    for stream, count in zip(streams, counts, strict=True):
        whole = count // length * length
        rows += [stream.ids[start : start + length] for start in range(0, whole, length)]
        rest += stream.ids[whole:count]
    rows += [rest[start : start + length] for start in range(0, len(rest), length)]
    random.Random(calibration.seed).shuffle(rows)
    ids_tensor = torch.tensor(rows, dtype=torch.int64)
    if int(ids_tensor.max()) >= vocabulary:
        raise BadInputError(
            f"the tokenizer gives id {int(ids_tensor.max())}, the embedding has {vocabulary} rows",
            "tokenizer and weights are not of the same checkpoint",
        )
    digest = hashlib.sha256(ids_tensor.numpy().astype("<i8").tobytes()).hexdigest()
    used = tuple((text_set.name, count) for text_set, count in zip(sets, counts, strict=True))
    return CalibrationTokens(ids_tensor, digest, used, calibration.samples)


class _TokenStream:
    """The tokens of one set, read as far as they are asked for."""

    def __init__(self, text_set: TextSet, tokenizer: Tokenizer, seed: int) -> None:
        documents = text_set.documents()
        if isinstance(documents, list):
            random.Random(seed).shuffle(documents)
        self._documents = plain_texts(documents, tokenizer)
        self._tokenizer = tokenizer
        self.ids: list[int] = []

    def has(self, count: int) -> bool:
        """Whether the set holds so many tokens."""
        while len(self.ids) < count:
            document = next(self._documents, None)
            if document is None:
                return False
            text, plain = document
            self.ids += _document_ids(self._tokenizer, text) if plain else _chat_ids(self._tokenizer, text)
        return True


def _shares(streams: list[_TokenStream], weights: list[float], total: int) -> list[int]:
    """Tokens of each set: by weight, and what a short set cannot give comes from the others."""
    counts = [0] * len(streams)
    open_sets = set(range(len(streams)))
    while open_sets:
        left = total - sum(counts[i] for i in range(len(streams)) if i not in open_sets)
        weight = sum(weights[i] for i in open_sets)
        exact = {i: left * weights[i] / weight for i in sorted(open_sets)}
        shares = {i: int(share) for i, share in exact.items()}
        by_fraction = sorted(exact, key=lambda i: shares[i] - exact[i])
        for i in by_fraction[: left - sum(shares.values())]:
            shares[i] += 1
        short = [i for i, share in shares.items() if not streams[i].has(share)]
        for i in short or open_sets:
            counts[i] = min(shares[i], len(streams[i].ids))
        open_sets -= set(short) or open_sets
    return counts


def _document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A document as in pretraining: the special tokens of the tokenizer, and EOS behind where it is at neither end."""
    ids, end = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    if end is None or (ids and end in (ids[0], ids[-1])):  # XGLM has </s> in front: the next document's ends this one
        return ids
    return [*ids, end]


def _chat_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _split_weight(text: str) -> tuple[str, float]:
    name, colon, weight = text.rpartition(":")
    if not colon or _is_file(text):
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        return text, 1.0
    if not 0 < value < math.inf:
        raise UsageError(f"the weight of {name!r} is {weight}, expected more than 0")
    return name, value


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # too long for a name
        return False


def _shipped_set(row: dict[str, Any], weight: float) -> TextSet:
    return TextSet(row["name"], weight, row["licence"], lambda: shipped_documents(FOLDER, row))


def _file_set(path: Path, weight: float) -> TextSet:
    return TextSet(path.name, weight, "unknown", lambda: file_documents(path))


def _hub_set(name: str, row: dict[str, Any], weight: float) -> TextSet:
    return TextSet(name, weight, row["licence"], lambda: hub_documents(name, row), local=False)
