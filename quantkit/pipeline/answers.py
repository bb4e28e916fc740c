"""Answers side by side: what each weight set says to the same prompts, and where it leaves the baseline."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import psutil
import torch

from quantkit.devices import Device
from quantkit.errors import BadInputError
from quantkit.families.family import Family
from quantkit.generate import Question, first_difference, generate, greedy_choices
from quantkit.pipeline.questions import end_ids, has_template, questions_of
from quantkit.pipeline.sidebyside import Said, entry
from quantkit.pipeline.weightset import WeightSet
from quantkit.plan.runtime import KV_BYTES, kv_cache_bytes
from quantkit.progress import Progress, Silent
from quantkit.quality.prompts import Prompt
from quantkit.skeleton import Skeleton
from quantkit.units import format_seconds
from quantkit.weights.kept import KeptSource

FIRST_PAUSE = 30.0  # seconds without a line about the progress, at first
Answers = list[list[int]]  # of one weight set: token ids per prompt


class Comparison(Protocol):
    """What of a check's job is needed here."""

    @property
    def sets(self) -> tuple[WeightSet, ...]:
        """The baseline and the artifacts."""

    @property
    def family(self) -> Family:
        """The common family."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The common config.json."""

    @property
    def skeleton(self) -> Skeleton:
        """The common skeleton, in any dtype."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The baseline's tokenizer."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of a text."""

    @property
    def device(self) -> Device:
        """Where to compute."""


def answers(
    job: Comparison,
    prompts: Sequence[Prompt],
    *,
    baseline_answers: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Let every artifact answer the prompts greedily, and compare its answers with the baseline's.

    The baseline need not write: one pass over its layers says of all answers at once at which token it would
    first have chosen another, and which.

    Args:
        job: the weight sets, the baseline first, and what they share.
        prompts: from `load_prompts`.
        baseline_answers: let the baseline write its own answers in full.
        memory: bytes for keys and values and for weights that are kept from token to token; without it half
            of what is free.
        progress: told what happens; silent by default.

    Returns:
        `prompts`, a row each; `answers`, an entry for each weight set in their order; `chat_template`, whether
        one was applied.

    Raises:
        BadInputError: the chat template fails, an id is outside of the vocabulary, or no prompt fits.
        QuantkitError: a weight set cannot be read.
    """
    progress = progress or Silent()
    skeleton = job.skeleton
    if skeleton.dtype != torch.float32:
        skeleton = Skeleton(job.family, job.config, torch.float32, job.device.device)
    asked, questions = _that_fit(prompts, questions_of(prompts, job.tokenizer, job.prefix, skeleton), progress)
    ends = end_ids(job.sets[0].folder, job.config, job.tokenizer)
    room = free_memory(skeleton.device) // 2 if memory is None else memory
    writing = job.sets if baseline_answers else job.sets[1:]
    written = [write_answers(skeleton, weights, questions, ends, room, progress) for weights in writing]
    if baseline_answers:
        mode, said = "generated", [_beside(one, written[0]) for one in written]
    else:
        mode, said = "teacher-forced", _judged(skeleton, job.sets[0], questions, written, ends, progress)
    rows = [
        {
            "id": prompt.id,
            "kind": prompt.kind,
            "language": prompt.language,
            "prompt": prompt.text,
            "expected": prompt.answer,
        }
        for prompt in asked
    ]
    entries = [entry(job.tokenizer, asked, one, ends, mode) for one in said]
    entries[0]["identical_share"] = None  # with itself
    return {"chat_template": has_template(job.tokenizer), "prompts": rows, "answers": entries}


def free_memory(device: torch.device) -> int:
    """Bytes that are free where keys, values and weights are kept."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def write_answers(
    skeleton: Skeleton,
    weights: WeightSet,
    questions: Sequence[Question],
    ends: frozenset[int],
    memory: int,
    progress: Progress,
    enough: Callable[[int, Sequence[int]], bool] = lambda number, answer: False,
) -> Answers:
    """What a weight set answers greedily.

    Args:
        skeleton: in float32.
        weights: whose tensors are read.
        questions: the prompts.
        ends: ids that end an answer.
        memory: bytes; up to half of them for keys and values, the rest for weights that are kept.
        progress: told what happens.
        enough: whether the answer to a question, by its number, needs no more than these ids.
    """
    token_bytes = kv_cache_bytes(skeleton.sizes(), 1) * torch.float32.itemsize // KV_BYTES
    cache_tokens = memory // 2 // token_bytes
    needed = sum(len(question.ids) + question.most for question in questions)
    source = KeptSource(weights.source, memory - token_bytes * min(needed, cache_tokens), skeleton.device)
    told = _Told(progress, weights.name, len(questions))
    return generate(skeleton, source, questions, ends, cache_tokens, told.step, enough)


def _that_fit(
    prompts: Sequence[Prompt], questions: Sequence[Question | None], progress: Progress
) -> tuple[list[Prompt], list[Question]]:
    fitting = [(prompt, question) for prompt, question in zip(prompts, questions, strict=True) if question is not None]
    if not fitting:
        raise BadInputError("no prompt fits into the model's context", "give shorter --prompts")
    left_out = [prompt.id for prompt, question in zip(prompts, questions, strict=True) if question is None]
    if left_out:
        progress.say(f"note: left out, since they fill the model's context: {', '.join(left_out)}")
    return [prompt for prompt, _ in fitting], [question for _, question in fitting]


def _beside(written: Answers, baseline: Answers) -> list[Said | None]:
    """Answers beside the baseline's own."""
    said: list[Said | None] = []
    for ids, own in zip(written, baseline, strict=True):
        place = first_difference(ids, own)
        said.append(Said(ids, place, () if place is None else own[place:]))
    return said


def _judged(
    skeleton: Skeleton,
    baseline: WeightSet,
    questions: Sequence[Question],
    written: Sequence[Answers],
    ends: frozenset[int],
    progress: Progress,
) -> list[list[Said | None]]:
    """Answers beside what the baseline would have said; its own first, where an artifact's answer gives it away."""
    sequences = [(*asked.ids, *ids) for row in written for asked, ids in zip(questions, row, strict=True)]
    starts = [len(question.ids) for question in questions] * len(written)
    progress.say(f"{baseline.name}: one pass over {len(sequences)} answers")
    progress.start(len(skeleton.layers), 0)
    try:
        choices = iter(greedy_choices(skeleton, baseline.source, sequences, starts, progress.layer))
    finally:
        progress.stop()
    own: list[Said | None] = [None] * len(questions)
    judged: list[list[Said | None]] = []
    for row in written:
        said: list[Said | None] = []
        for number, ids in enumerate(row):
            chosen = next(choices)
            place = first_difference(ids, chosen)
            said.append(Said(ids, place, () if place is None else [chosen[place]]))
            known = ids if place is None else [*ids[:place], chosen[place]]
            if known[-1] in ends or len(known) == questions[number].most:
                own[number] = Said(known)
        judged.append(said)
    return [own, *judged]


class _Told:
    """A line about the progress now and then: after half a minute, later after a tenth of the time passed."""

    def __init__(self, progress: Progress, name: str, count: int) -> None:
        self._progress, self._name, self._count = progress, name, count
        self._started = self._last = time.perf_counter()
        progress.say(f"{name}: answering {count} prompts")

    def step(self, steps: int, at_most: int, waiting: int) -> None:
        """Told by `generate` after every token."""
        now = time.perf_counter()
        passed = now - self._started
        if not waiting:
            self._progress.say(f"{self._name}: {self._count} answers in {format_seconds(passed)}")
        elif now - self._last >= max(FIRST_PAUSE, passed / 10):
            self._last = now
            left = format_seconds(passed / steps * at_most)
            self._progress.say(f"{self._name}: {steps} tokens, {waiting} answers not complete, at most {left} to go")
