"""What a layer's attention and MLP have computed, kept so that later passes need not compute it again.

A pass gathers one stage's inputs and runs the layer from its beginning. Once the last linear of the
attention is quantized, the attention's output changes no more; the same holds for the MLP. So the
inputs of these last linears are kept as they pass by, and afterwards the module answers from them: the
passes over a layer then cost one forward instead of two and a half, bit for bit the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from quantkit.families.family import Family
from quantkit.skeleton import Skeleton


class Memo:
    """The kept inputs, at most one buffer per module of `Family.ends`.

    Args:
        family: which modules end in which linear.
        modules: those to keep, as memory allows.
    """

    def __init__(self, family: Family, modules: tuple[str, ...]) -> None:
        self._ends = {end.module: end for end in family.ends if end.module in modules}
        self._kept: dict[str, torch.Tensor] = {}  # module -> [samples, sequence, features]
        self._filled: dict[str, int] = {}  # samples
        self._finished: set[str] = set()  # those that hold the module's output instead of its last input

    def forget(self) -> None:
        """A new layer begins."""
        self._filled.clear()
        self._finished.clear()

    def keep(self, name: str, inputs: torch.Tensor, samples: int) -> None:
        """Note what a linear, by full name, sees for the next batch of samples, if it ends a module."""
        module = next((end.module for end in self._ends.values() if name.endswith("." + end.linear)), None)
        if module is None:
            return
        kept = self._kept.get(module)
        if kept is None or kept.shape != (samples, *inputs.shape[1:]):
            kept = self._kept[module] = torch.empty(samples, *inputs.shape[1:], dtype=inputs.dtype)
        first = self._filled.get(module, 0)
        kept[first : first + len(inputs)] = inputs
        self._filled[module] = first + len(inputs)

    @contextmanager
    def used(self, skeleton: Skeleton, layer: int, samples: int) -> Iterator[Callable[[int], None]]:
        """Within the block the layer's modules answer from the memo where it holds all samples.

        Yields:
            A function to be told the first sample of each batch.
        """
        at = [0]
        with ExitStack() as stack:
            answering = [module for module in self._ends if self._filled.get(module) == samples]
            for module in answering:
                stack.enter_context(self._answering(skeleton, skeleton.layers[layer], module, at))
            yield lambda first: at.__setitem__(0, first)
        self._finished.update(module for module in answering if self._holds_output(module, skeleton))

    @contextmanager
    def _answering(self, skeleton: Skeleton, layer: nn.Module, name: str, at: list[int]) -> Iterator[None]:
        end = self._ends[name]
        module, needless = layer.get_submodule(name), [layer.get_submodule(other) for other in end.only_for]
        linear = layer.get_submodule(end.linear).forward  # bound before `module`, which it may be, answers
        finished = name in self._finished
        returns_pair = name == "self_attn"  # transformers' attention also returns its weights

        def answer(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            asked = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            part = self._kept[name][at[0] : at[0] + len(asked)]
            if finished:
                output = part.to(skeleton.device)
            else:
                output = linear(part.to(skeleton.device))
                if output.shape == part.shape:
                    part.copy_(output)
            return (output, None) if returns_pair else output

        with ExitStack() as stack:
            for one, forward in [(module, answer), *((other, _unchanged) for other in needless)]:
                one.forward = forward
                stack.callback(one.__delattr__, "forward")
            yield

    def _holds_output(self, module: str, skeleton: Skeleton) -> bool:
        return bool(self._kept[module].shape[-1] == skeleton.config.hidden_size)


def _unchanged(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states
