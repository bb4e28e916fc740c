"""What stands in for a decoder layer while a forward is watched, and what ends one where it has told enough."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Recorder(nn.Module):
    """Stands in for a decoder layer: notes its arguments and hands the hidden states on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not a submodule
        self.hidden: torch.Tensor = torch.empty(0)
        self.replacement: torch.Tensor | None = None
        self.is_end = False
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  transformers reads e.g. attention_type
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """As the layer is called; gives back what came, or the replacement."""
        self.hidden, self.args, self.kwargs = hidden_states, args, kwargs
        if self.is_end:
            raise InputReached
        return hidden_states if self.replacement is None else self.replacement


class InputReached(Exception):
    """Ends a forward at the input that was waited for: the rest of the layer is not needed."""


@contextmanager
def stop_at(module: nn.Module, receive: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Hand the module's input to `receive` and raise InputReached instead of computing on."""

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        receive(inputs[0])
        raise InputReached

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within the block every parameter that a module registers is moved to the meta device at once."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
