"""Greedy answers with one decoder layer in memory: written token by token, or judged in a single pass.

Everything is computed in float32, whatever the weights are stored in: in bfloat16 the order of a sum already
decides between two near tokens, and a model would contradict itself as often as a good quantization does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import DynamicCache

from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import TensorSource

BATCH_TOKENS = 2048  # of sequences that go through a layer at once, padding included
LOGIT_BYTES = 64 * 2**20  # of a chunk of logits, float32
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """A prompt as the model sees it."""

    ids: tuple[int, ...]
    most: int  # tokens of the answer, the one that ends it included


@torch.no_grad()
def generate(
    skeleton: Skeleton,
    source: TensorSource,
    questions: Sequence[Question],
    ends: frozenset[int],
    cache_tokens: int = 2**16,
    step_done: Callable[[int, int, int], None] = lambda steps, at_most, waiting: None,
    enough: Callable[[int, Sequence[int]], bool] = lambda number, answer: False,
) -> list[list[int]]:
    """What greedy decoding answers: as transformers' `generate(do_sample=False)` to each prompt alone.

    Args:
        skeleton: in float32.
        source: tensors by the family's names; every one is read once per token, so it had better keep some.
        questions: the prompts, in any order and of any lengths.
        ends: ids that end an answer.
        cache_tokens: tokens of all sequences whose keys and values may be held at a time.
        step_done: told the steps done, how many more there may be, and how many answers are not complete.
        enough: whether the answer to a question, by its number, needs no more than these ids.

    Returns:
        Token ids of each answer, the end included where it was reached.
    """
    switch = _switch_of_long_rope(skeleton)
    answers: list[list[int]] = [[] for _ in questions]
    waves = _waves(questions, cache_tokens, alone=switch is not None)
    waiting, steps = len(questions), 0
    while waves:
        wave = [batch for batch in waves[0] if batch.members]
        if not wave:
            waves.pop(0)
            continue
        for batch, tokens in zip(wave, _step(skeleton, source, wave, switch), strict=True):
            for member, token in zip(batch.members, tokens, strict=True):
                answers[member].append(token)
            done = [
                token in ends or len(answers[n]) == questions[n].most or enough(n, answers[n])
                for n, token in zip(batch.members, tokens, strict=True)
            ]
            batch.extend(tokens, done)
            waiting -= sum(done)
        steps += 1
        step_done(steps, sum(_longest(rest, questions, answers) for rest in waves), waiting)
    return answers


@torch.no_grad()
def greedy_choices(
    skeleton: Skeleton,
    source: TensorSource,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    layer_done: Callable[[int, float], None] = lambda index, seconds: None,
) -> list[list[int]]:
    """What greedy decoding would have said in place of every token of given answers, in one pass over the layers.

    Args:
        skeleton: in float32.
        source: tensors by the family's names, in any float dtype.
        sequences: prompt and answer as token ids.
        starts: where each answer begins, after one token at least.
        layer_done: told each layer's number and seconds.

    Returns:
        For each sequence, from its start on, the id chosen where that token stands, given the tokens before it.
    """
    pieces = sorted(_pieces(sequences, starts, _switch_of_long_rope(skeleton)), key=lambda piece: piece.order)
    batches = list(_packed(pieces, lambda one: one[0].long == one[-1].long and _area(one) <= BATCH_TOKENS))
    hiddens: list[torch.Tensor] = []
    calls: list[list[LayerCall]] = []
    with _filled(skeleton, source, skeleton.front_names()):
        for batch in batches:
            hidden, recorded = skeleton.embed(_padded([piece.ids for piece in batch]))
            hiddens.append(hidden)
            calls.append(recorded)
    for index in range(len(skeleton.layers)):
        started = time.perf_counter()
        with _filled(skeleton, source, skeleton.layer_names(index)):
            for hidden, call in zip(hiddens, calls, strict=True):
                hidden.copy_(skeleton.run_layer(index, hidden.to(skeleton.device), call[index]))
        layer_done(index, time.perf_counter() - started)
    found: list[list[int]] = [[] for _ in sequences]
    rows = [row for hidden in hiddens for row in hidden]
    asked = [row[piece.places] for row, piece in zip(rows, pieces, strict=True)]
    chosen = iter(_choose(skeleton, source, torch.cat(asked).unsqueeze(1)))
    for piece, places in zip(pieces, asked, strict=True):  # of one sequence, the short piece comes first
        found[piece.sequence] += [next(chosen) for _ in places]
    return found


def first_difference(one: Sequence[object], other: Sequence[object]) -> int | None:
    """The first place where two answers differ, by a token or by its absence; None where they are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
    return None if place == len(one) == len(other) else place


class _Batch:
    """Prompts that go through the layers together, padded on the left to one length, and their keys and values."""

    def __init__(self, members: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, prompts))
        self.members = list(members)
        self.ids = [list(prompt) for prompt in prompts]
        self.pads = [longest - len(prompt) for prompt in prompts]
        self._cache: DynamicCache | None = None

    def inputs(self, skeleton: Skeleton, switch: int | None) -> dict[str, Any]:
        """What the model is called with: whole prompts at first, each row's last token afterwards."""
        padded = [[0] * pad + ids for pad, ids in zip(self.pads, self.ids, strict=True)]
        ids = torch.tensor(padded, device=skeleton.device)
        mask = torch.ones_like(ids)
        for row, pad in enumerate(self.pads):
            mask[row, :pad] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        new = 1
        if self._cache is None or len(self.ids[0]) - 1 == switch:  # from here on all tokens are turned otherwise
            self._cache, new = DynamicCache(config=skeleton.config), ids.shape[1]
        return {
            "input_ids": ids[:, -new:],
            "attention_mask": mask,
            "position_ids": positions[:, -new:],
            "past_key_values": self._cache,
            "use_cache": True,
        }

    def extend(self, tokens: Sequence[int], done: Sequence[bool]) -> None:
        """Append a token to each row, and drop the rows that are done."""
        stay = [row for row, finished in enumerate(done) if not finished]
        self.members = [self.members[row] for row in stay]
        self.ids = [[*self.ids[row], tokens[row]] for row in stay]
        self.pads = [self.pads[row] for row in stay]
        if not stay:
            self._cache = None
        elif len(stay) < len(done) and self._cache is not None:
            self._cache.batch_select_indices(torch.tensor(stay))


@dataclass(frozen=True)
class _Piece:
    """The beginning of a sequence, and from which of its tokens on choices are asked for."""

    sequence: int
    ids: Sequence[int]
    first: int
    long: bool = False  # beyond the length from which a long rope turns its tokens otherwise

    @property
    def order(self) -> tuple[bool, int]:
        """Alike pieces stand side by side."""
        return self.long, len(self.ids)

    @property
    def places(self) -> slice:
        """Each choice is made where the token before it stands."""
        return slice(self.first - 1, len(self.ids))


def _pieces(sequences: Sequence[Sequence[int]], starts: Sequence[int], switch: int | None) -> Iterator[_Piece]:
    for number, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        last = len(ids) - 1  # nothing is asked after the last token
        border = last if switch is None else switch
        if start <= border:
            yield _Piece(number, ids[: min(last, border)], start)
        if last > border:
            yield _Piece(number, ids[:last], max(start, border + 1), long=True)


def _switch_of_long_rope(skeleton: Skeleton) -> int | None:
    """The length beyond which Phi-3's long rope turns every token otherwise; None for all other models."""
    rope = getattr(skeleton.config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def _waves(questions: Sequence[Question], cache_tokens: int, alone: bool) -> list[list[_Batch]]:
    """Batches of prompts of similar length, and which of them fit into memory at a time."""

    def tokens(members: Sequence[int]) -> int:
        return len(members) * max(len(questions[n].ids) + questions[n].most for n in members)

    def together(members: Sequence[int]) -> bool:
        longest = max(len(questions[n].ids) for n in members)
        return not alone and len(members) * longest <= BATCH_TOKENS and tokens(members) <= cache_tokens

    by_length = sorted(range(len(questions)), key=lambda n: len(questions[n].ids))
    batches = _packed(by_length, together)
    waves = _packed(list(batches), lambda several: sum(map(tokens, several)) <= cache_tokens)
    return [[_Batch(members, [questions[n].ids for n in members]) for members in wave] for wave in waves]


def _packed(items: Sequence[Item], fit: Callable[[Sequence[Item]], bool]) -> Iterator[list[Item]]:
    """Neighbours together as long as they fit; one alone always does."""
    group: list[Item] = []
    for item in items:
        if group and not fit([*group, item]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _area(pieces: Sequence[_Piece]) -> int:
    return len(pieces) * max(len(piece.ids) for piece in pieces)


def _longest(wave: Sequence[_Batch], questions: Sequence[Question], answers: Sequence[Sequence[int]]) -> int:
    """Steps that a wave may still take."""
    return max((questions[n].most - len(answers[n]) for batch in wave for n in batch.members), default=0)


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Ids [rows, longest] int64, padded at the end, which no causal model looks at."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _step(skeleton: Skeleton, source: TensorSource, wave: Sequence[_Batch], switch: int | None) -> list[list[int]]:
    """The next token of every row of every batch; each layer is filled once for all of them."""
    with _filled(skeleton, source, skeleton.front_names()):
        begun = [skeleton.begin(**batch.inputs(skeleton, switch)) for batch in wave]
    hiddens = [hidden for hidden, _ in begun]
    for index in range(len(skeleton.layers)):
        with _filled(skeleton, source, skeleton.layer_names(index)):
            for number, (_, calls) in enumerate(begun):
                hiddens[number] = skeleton.run_layer(index, hiddens[number], calls[index])
    chosen = iter(_choose(skeleton, source, torch.cat([hidden[:, -1:] for hidden in hiddens])))
    return [[next(chosen) for _ in batch.members] for batch in wave]


def _choose(skeleton: Skeleton, source: TensorSource, hidden: torch.Tensor) -> list[int]:
    """The most likely token after each of the hidden states [tokens, 1, hidden]."""
    head = skeleton.read_head(source)
    skeleton.fill(head)
    try:
        chunks = torch.split(hidden, max(1, LOGIT_BYTES // (4 * skeleton.vocabulary())))
        return [token for chunk in chunks for token in skeleton.finish(chunk)[:, 0].argmax(-1).tolist()]
    finally:
        skeleton.empty(list(head))


@contextmanager
def _filled(skeleton: Skeleton, source: TensorSource, names: list[str]) -> Iterator[None]:
    skeleton.fill_from(source, names)
    try:
        yield
    finally:
        skeleton.empty(names)
