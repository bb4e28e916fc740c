"""One weight set of a check at work: likelihoods and greedy texts, with one layer in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from quantkit.generate import Question
from quantkit.pipeline.answers import free_memory, write_answers
from quantkit.pipeline.likelihood import Continuation, Likelihood, likelihoods, passes
from quantkit.pipeline.questions import end_ids
from quantkit.pipeline.weightset import WeightSet
from quantkit.progress import Progress
from quantkit.skeleton import Skeleton

LONGEST_WINDOW = 2048  # tokens read at once, where the model does not say
STOP_TOKENS = 4  # that a character of a stop text takes at most
SHARE = 3  # a third of the free memory holds activations, or keys, values and weights that are kept


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    ids: tuple[int, ...]
    most: int  # new tokens
    until: tuple[str, ...]  # texts that end the answer


@dataclass(frozen=True)
class StreamedWeights:
    """A weight set that answers questions.

    Args:
        weights: the tensors.
        skeleton: in which likelihoods are computed.
        exact: the same in float32, in which answers are written.
        tokenizer: of the baseline.
        progress: told what happens.
    """

    weights: WeightSet
    skeleton: Skeleton
    exact: Skeleton
    tokenizer: Any
    progress: Progress

    @property
    def longest(self) -> int:
        """Tokens that the model reads at once."""
        return int(getattr(self.skeleton.config, "max_position_embeddings", None) or LONGEST_WINDOW)

    def judge(self, requests: Sequence[Continuation]) -> dict[Continuation, Likelihood]:
        """The likelihood of every different continuation, in as few passes as memory allows."""
        skeleton = self.skeleton
        groups = passes(skeleton, requests, psutil.virtual_memory().available // SHARE)
        layers = len(skeleton.layers)
        times = "one pass" if len(groups) == 1 else f"{len(groups)} passes"
        self.progress.say(f"{self.weights.name}: {len(requests)} continuations, {times} over the layers")
        found: dict[Continuation, Likelihood] = {}
        self.progress.start(layers * len(groups), 0)
        try:
            for number, group in enumerate(groups):

                def done(index: int, seconds: float, before: int = number * layers) -> None:
                    self.progress.layer(before + index, seconds)

                found |= likelihoods(skeleton, self.weights.source, group, done)
        finally:
            self.progress.stop()
        return found

    def answer(self, prompts: Sequence[Prompt]) -> list[str]:
        """What greedy decoding writes after each prompt, at least up to the first of its stop texts."""
        answers = write_answers(
            self.exact,
            self.weights,
            [Question(prompt.ids, prompt.most) for prompt in prompts],
            end_ids(self.weights.folder, self.exact.config.to_dict(), self.tokenizer),
            free_memory(self.exact.device) // SHARE,
            self.progress,
            lambda number, answer: self._has_stopped(answer, prompts[number].until),
        )
        return [self._text(answer) for answer in answers]

    def _has_stopped(self, answer: Sequence[int], until: Sequence[str]) -> bool:
        """Whether a stop text stands at the end of an answer."""
        tail = self._text(answer[-STOP_TOKENS * max(map(len, until), default=0) :])
        return any(stop in tail for stop in until)

    def _text(self, answer: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(answer, skip_special_tokens=True)
        return text
