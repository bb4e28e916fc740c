"""A streamed model as lm-evaluation-harness sees one, and the surroundings in which the harness works here."""

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partialmethod
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval.utils
import tqdm.std
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)  # fmt: skip
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline.likelihood import Continuation
from quantkit.pipeline.streamed import Prompt, StreamedWeights

MOST_NEW_TOKENS = 256  # of an answer, where the task does not say


class StreamedModel(TemplateLM):  # type: ignore[misc]
    """Texts to token ids as the harness's own HFLM makes them; the computing is given.

    Args:
        weights: what computes.
    """

    def __init__(self, weights: StreamedWeights) -> None:
        super().__init__()
        self.weights, self.tokenizer, self.max_length = weights, weights.tokenizer, weights.longest
        self.shortened = 0  # prompts that lost their beginning

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ANN401
        """Token ids, with the tokenizer's special tokens unless the text brings them or they are not wanted."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation in nats, and whether it is the most likely one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        **_: Any,  # noqa: ANN401
    ) -> list[tuple[float, bool]]:
        asked = [self._fitted(context, ids) for _, context, ids in requests]
        found = self.weights.judge(asked)
        return [(found[one].log_probability, found[one].greedy) for one in asked]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text in nats, in windows as long as the model reads."""
        windows: list[list[Continuation]] = []
        for instance in requests:
            rolling = get_rolling_token_windows(
                self.tok_encode(instance.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            windows.append([self._fitted(*make_disjoint_window(one)) for one in rolling])
        found = self.weights.judge([one for text in windows for one in text])
        return [sum(found[one].log_probability for one in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What greedy decoding writes after each prompt, up to the first of the task's stop texts."""
        prompts = [self._prompt(*instance.args) for instance in requests]
        answers = self.weights.answer(prompts)
        return [
            postprocess_generated_text(answer, list(prompt.until), None)
            for answer, prompt in zip(answers, prompts, strict=True)
        ]

    def _fitted(self, context: list[int], ids: list[int]) -> Continuation:
        """The continuation behind as much of the context as the model reads."""
        if not ids or len(ids) > self.max_length:
            raise BadInputError(f"a continuation has {len(ids)} tokens, expected 1 to {self.max_length}")
        room = self.max_length + 1 - len(ids)
        self.shortened += len(context) > room
        return Continuation(tuple(context[-room:]), tuple(ids))

    def _prompt(self, text: str, options: dict[str, Any]) -> Prompt:
        settings = normalize_gen_kwargs(options, MOST_NEW_TOKENS)
        if settings["do_sample"]:
            raise UsageError("the task samples its answers, which differ from run to run", "answers are greedy here")
        most = settings["max_gen_toks"]
        room = self.max_length - most
        if room < 1:
            raise UsageError(f"the task asks for {most} new tokens, the model reads {self.max_length} at once")
        ids = self.tok_encode(text)
        self.shortened += len(ids) > room
        until = handle_stop_sequences(settings["until"], self.tokenizer.decode(self.eot_token_id))
        return Prompt(tuple(ids[-room:]), most, tuple(stop for stop in until if stop))


@contextmanager
def surroundings(offline: bool) -> Iterator[None]:
    """Within the block the harness is quiet, and templates of tasks reach no Python.

    Args:
        offline: look up no data set on the Hub, and do not tell the Hub of those that are read.
    """
    sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= {"regex_replace": lm_eval.utils.env.filters["regex_replace"]}
    silent = partialmethod(tqdm.std.tqdm.__init__, disable=True)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))  # where our own results go
        _patch(stack, lm_eval.utils, "env", sandbox)
        _patch(stack, tqdm.std.tqdm, "__init__", silent)
        for logger in (logging.getLogger("lm_eval"), logging.getLogger("datasets")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        if offline:
            _patch(stack, datasets.config, "HF_HUB_OFFLINE", True)
            _patch(stack, datasets.config, "HF_DATASETS_OFFLINE", True)
            _patch(stack, huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


def _patch(stack: ExitStack, owner: Any, name: str, value: Any) -> None:  # noqa: ANN401
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
