"""Evaluation text cut into token windows, with the tokens that are scored in each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quantkit.errors import BadInputError

LLAMA_CPP_CONTEXT = 512


@dataclass(frozen=True)
class Windows:
    """Windows of one length; short ones are padded at the end, which no causal model looks at."""

    ids: torch.Tensor  # [windows, context] int64
    scored: torch.Tensor  # [windows, context] bool: this token counts, predicted from those before it
    text: torch.Tensor  # [windows] int64: which of the texts
    rule: str  # how they were cut, for people

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.sum())


def sliding(streams: Sequence[Sequence[int]], context: int, stride: int, prefix: Sequence[int]) -> Windows:
    """Windows that start every `stride` tokens; each token of a text is scored once.

    Every window begins with the prefix (BOS, XGLM's `</s>`, or nothing), then text. A window scores
    what the one before it has not: all of it in the first, its last `stride` tokens in the others. A
    token without anything before it is not scored.

    Args:
        streams: the token ids of each text, without special tokens.
        context: tokens of a window, the prefix included.
        stride: text tokens from one window's start to the next, at most what a window holds.
        prefix: ids in front of every window.

    Raises:
        BadInputError: the context does not hold the prefix and two tokens, or no text has two tokens.
    """
    body = context - len(prefix)
    if body < 2:
        raise BadInputError(f"a context of {context} tokens is too short, expected at least {len(prefix) + 2}")
    stride = min(stride, body)
    rows: list[tuple[list[int], int, int]] = []  # ids, first scored position, text
    for text, stream in enumerate(streams):
        done = 0
        for start in range(0, len(stream), stride):
            part = list(stream[start : start + body])
            rows.append(([*prefix, *part], len(prefix) + done - start, text))
            done = start + len(part)
            if done == len(stream):
                break
    named = f"{len(prefix)} prefix tokens" if prefix else "no prefix"
    return _padded(rows, context, f"windows of {context} tokens, stride {stride}, {named}")


def like_llama_cpp(streams: Sequence[Sequence[int]], context: int, bos: int | None) -> Windows:
    """llama.cpp's windows (tools/perplexity): one after the other, the second half of each scored.

    With a BOS, one stands in front of the whole text and takes the place of the first token of every
    window. A rest shorter than a window is left out.

    Args:
        streams: the token ids of each text, without special tokens.
        context: tokens of a window, 512 unless told.
        bos: the id that llama.cpp adds, or None for models without one.

    Raises:
        BadInputError: no text is as long as one window.
    """
    rows: list[tuple[list[int], int, int]] = []
    for text, stream in enumerate(streams):
        ids = list(stream) if bos is None else [bos, *stream]
        for start in range(0, len(ids) - context + 1, context):
            part = ids[start : start + context]
            if bos is not None:
                part[0] = bos
            rows.append((part, context // 2 + 1, text))
    named = "no BOS" if bos is None else "BOS in front of each"
    return _padded(rows, context, f"llama.cpp's windows of {context} tokens, second half scored, {named}")


def _padded(rows: list[tuple[list[int], int, int]], context: int, rule: str) -> Windows:
    ids = torch.zeros(len(rows), context, dtype=torch.int64)
    scored = torch.zeros(len(rows), context, dtype=torch.bool)
    for number, (row, first, _) in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        scored[number, max(1, first) : len(row)] = True
    if not scored.any():
        raise BadInputError("the evaluation text is too short", f"give more text, or a --context below {context}")
    return Windows(ids, scored, torch.tensor([text for _, _, text in rows]), rule)
