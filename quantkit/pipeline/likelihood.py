"""How likely a model finds given continuations: many at once, with one layer in memory.

Continuations that are read from the same ids share a window: the four letters of a question with choices cost
one forward. Windows are padded at the end, where a causal model does not look, to a few lengths that are known to
the layers. As many as memory holds go through the layers in one pass.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from quantkit.errors import BadInputError
from quantkit.lockstep import BATCH_TOKENS, chunk_tokens
from quantkit.methods.hessian import exact_bfloat16_products
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import TensorSource

LENGTH_STEP = 64  # window lengths are multiples of it, so that few masks are kept


@dataclass(frozen=True)
class Continuation:
    """Token ids whose likelihood is asked for, behind those that are given."""

    context: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def window(self) -> tuple[int, ...]:
        """What the model reads: the last token is predicted only."""
        return (*self.context, *self.ids)[:-1]


@dataclass(frozen=True)
class Likelihood:
    """What the model says about a continuation."""

    log_probability: float  # sum over its tokens, nats
    greedy: bool  # each of its tokens is the most likely one


@dataclass(frozen=True)
class _Block:
    """Windows padded to one length on their way through the layers."""

    windows: list[tuple[int, ...]]
    hidden: torch.Tensor  # [windows, length, hidden]
    calls: list[LayerCall]


def passes(skeleton: Skeleton, requests: Sequence[Continuation], activation_bytes: int) -> list[list[Continuation]]:
    """Group requests into passes over the layers whose activations fit into memory.

    Args:
        skeleton: whose activations they are.
        requests: in any order.
        activation_bytes: for the activations of a pass; at least one window is in each.

    Raises:
        BadInputError: a request has no context, or nothing to predict.
    """
    by_window: dict[tuple[int, ...], list[Continuation]] = {}
    for request in requests:
        if not request.context or not request.ids:
            raise BadInputError("a continuation needs tokens before it and tokens of its own")
        by_window.setdefault(request.window, []).append(request)
    token_bytes = int(skeleton.sizes()["hidden_size"]) * skeleton.dtype.itemsize
    groups: list[list[Continuation]] = []
    free = 0
    for window in sorted(by_window, key=len):
        size = _padded_length(len(window)) * token_bytes
        if not groups or size > free:
            groups.append([])
            free = activation_bytes
        groups[-1] += by_window[window]
        free -= size
    return groups


@torch.no_grad()
def likelihoods(
    skeleton: Skeleton,
    source: TensorSource,
    requests: Sequence[Continuation],
    layer_done: Callable[[int, float], None] = lambda index, seconds: None,
) -> dict[Continuation, Likelihood]:
    """One pass over the layers; the head is applied in float32.

    Args:
        skeleton: of the architecture.
        source: tensors by the family's names, in any float dtype.
        requests: one group of `passes`.
        layer_done: told each layer's number and seconds.

    Returns:
        An answer for each different request.
    """
    by_window: dict[tuple[int, ...], list[Continuation]] = {}
    for request in dict.fromkeys(requests):
        by_window.setdefault(request.window, []).append(request)
    blocks = _embedded(skeleton, source, sorted(by_window, key=len))
    for index in range(len(skeleton.layers)):
        started = time.perf_counter()
        layer = skeleton.layer_names(index)
        skeleton.fill_from(source, layer)
        for block in blocks:
            _advance(skeleton, index, block)
        skeleton.empty(layer)
        layer_done(index, time.perf_counter() - started)
    head = skeleton.read_head(source)
    skeleton.fill(head, torch.float32)
    found: dict[Continuation, Likelihood] = {}
    for block in blocks:
        found |= _judged(skeleton, block, by_window)
    skeleton.empty(list(head))
    return found


def _padded_length(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _embedded(skeleton: Skeleton, source: TensorSource, windows: Sequence[tuple[int, ...]]) -> list[_Block]:
    """The windows before the first layer: a block for each padded length."""
    front = skeleton.front_names()
    skeleton.fill_from(source, front)
    blocks = []
    for padded in sorted({_padded_length(len(window)) for window in windows}):
        same = [window for window in windows if _padded_length(len(window)) == padded]
        # No longer than the longest of them: the model may have no position behind it.
        ids = torch.zeros(len(same), max(map(len, same)), dtype=torch.int64)
        for row, window in enumerate(same):
            ids[row, : len(window)] = torch.tensor(window)
        blocks.append(_Block(same, *skeleton.embed(ids)))
    skeleton.empty(front)
    return blocks


def _advance(skeleton: Skeleton, index: int, block: _Block) -> None:
    size = max(1, BATCH_TOKENS // block.hidden.shape[1])
    for start in range(0, len(block.windows), size):
        part = block.hidden[start : start + size]
        part.copy_(skeleton.run_layer(index, part.to(skeleton.device), block.calls[index]))


def _judged(
    skeleton: Skeleton, block: _Block, by_window: dict[tuple[int, ...], list[Continuation]]
) -> dict[Continuation, Likelihood]:
    """Log-probabilities of what follows a block's windows, a chunk of tokens at a time; the head is filled."""
    asked = [(row, request) for row, window in enumerate(block.windows) for request in by_window[window]]
    counts = [len(request.ids) for _, request in asked]
    rows = torch.tensor([row for row, _ in asked]).repeat_interleave(torch.tensor(counts))
    ends = [len(request.window) for _, request in asked]
    columns = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    target = torch.tensor([token for _, request in asked for token in request.ids])
    log_probability, first = torch.empty(len(target)), torch.empty(len(target), dtype=torch.bool)
    # The inputs of the head's product are no finer than bfloat16, so its units still serve.
    products = nullcontext if skeleton.dtype == torch.float32 else exact_bfloat16_products
    chunk = chunk_tokens(skeleton.vocabulary())
    for start in range(0, len(target), chunk):
        tokens = slice(start, start + chunk)
        with products():
            logits = skeleton.finish(block.hidden[rows[tokens], columns[tokens]].float().unsqueeze(1))[:, 0]
        expected = target[tokens].to(logits.device)
        chosen = logits.gather(-1, expected.unsqueeze(-1)).squeeze(-1)
        log_probability[tokens] = chosen - torch.logsumexp(logits, -1)
        first[tokens] = logits.argmax(-1) == expected
    sums, all_first = torch.split(log_probability.double(), counts), torch.split(first, counts)
    return {
        request: Likelihood(float(total.sum()), bool(greedy.all()))
        for (_, request), total, greedy in zip(asked, sums, all_first, strict=True)
    }
