"""The empty transformers model: record how it calls its layers, then fill, run and empty one at a time.

Parameters live on the meta device, buffers are real. transformers' own forward is run once with
recorders in place of the decoder layers, which teaches every layer's arguments (mask, rotary tables,
positions, sliding window); no family needs forward code of its own and no remote code is ever run.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from quantkit.errors import BadInputError
from quantkit.families.checks import refusal
from quantkit.families.family import Family
from quantkit.recording import InputReached, Recorder, parameters_on_meta
from quantkit.tensors import TensorInfo, TensorSource

# What transformers raises for configurations that make no sense.
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError,
    ValueError,
)  # fmt: skip
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class LayerCall:
    """How transformers called one decoder layer, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def widened(self, samples: int) -> "LayerCall":
        """The call for a batch: its mask is seen once per sample, as XGLM insists."""

        def seen(value: Any) -> Any:  # noqa: ANN401
            is_mask = isinstance(value, torch.Tensor) and value.dim() == 4  # [1, 1, queries, keys]
            return value.expand(samples, -1, -1, -1) if is_mask else value

        return LayerCall(tuple(map(seen, self.args)), {name: seen(value) for name, value in self.kwargs.items()})


class Skeleton:
    """A model of which at most one decoder layer has weights.

    Args:
        family: names of the layers, the embedding and the head.
        config: config.json as data.
        dtype: what weights and activations are computed in.
        device: where a filled layer lives.

    Raises:
        BadInputError: transformers refuses the configuration.
    """

    def __init__(
        self,
        family: Family,
        config: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.family, self.dtype, self.device = family, dtype, torch.device(device)
        model_class = getattr(transformers, family.model_class)
        try:
            self.config = model_class.config_class.from_dict(copy.deepcopy(dict(config)))
            with parameters_on_meta():
                self.model = model_class._from_config(self.config, dtype=dtype, attn_implementation=family.attention)
        except REFUSALS as error:
            library = f"transformers {transformers.__version__}"
            raise BadInputError(f"{library} refuses this config.json: {refusal(error, config)}") from error
        self.model.tie_weights()
        self._tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self.model.eval().requires_grad_(False)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)
        self.layers: nn.ModuleList = self.model.get_submodule(family.layers)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter that a checkpoint must hold (tied ones once)."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    def sizes(self) -> dict[str, Any]:
        """The configuration's sizes by the names that most families use, transformers' defaults included."""
        return {name: getattr(self.config, name, None) for name in SIZES}

    @property
    def model_type(self) -> str:
        """What config.json says under `model_type` for this class."""
        return str(type(self.config).model_type)

    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self._tied

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[out_features, in_features] of every linear of every decoder layer, by full name."""
        shapes = {}
        for index, layer in enumerate(self.layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear):
                    full = f"{self.family.layers}.{index}.{name}"
                    shapes[full] = (module.out_features, module.in_features)
        return shapes

    def front_names(self) -> list[str]:
        """Parameters in front of the decoder layers, which `embed` and `begin` need."""
        return [self.family.embedding + ".weight"]

    def outer_names(self) -> list[str]:
        """Parameters outside of the decoder layers and the head: embedding, norms."""
        inner, head = self.family.layers + ".", self.family.head + "."
        return [name for name in self.tensors() if not name.startswith((inner, head))]

    def head_names(self) -> list[str]:
        """Parameters behind the decoder layers, which `finish` needs."""
        if self._tied:
            return self.outer_names()
        head = [name for name in self.tensors() if name.startswith(self.family.head + ".")]
        return [name for name in self.outer_names() if name != self.family.embedding + ".weight"] + head

    def head_tensors(self, infos: Mapping[str, TensorInfo]) -> dict[str, str]:
        """The tensors that a weight set has for `head_names`, by these.

        A tied model's head is its embedding, unless the weight set stores a head beside it: transformers and llama.cpp
        compute with both then. It takes the embedding's place, which `finish` does not look at.
        """
        embedding, head = f"{self.family.embedding}.weight", f"{self.family.head}.weight"
        own = {embedding: head} if self._tied and head in infos else {}
        return {name: own.get(name, name) for name in self.head_names()}

    def read_head(self, source: TensorSource) -> dict[str, torch.Tensor]:
        """What a weight set has for `head_names`."""
        return {name: source.read(stored) for name, stored in self.head_tensors(source.infos).items()}

    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.tensors()[self.family.embedding + ".weight"][0]

    def fill(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> None:
        """Give parameters, named as in the checkpoint, their values; in the compute dtype unless told."""
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            value = tensor.to(device=self.device, dtype=dtype or self.dtype)
            self.model.get_submodule(path)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        self._tie()

    def fill_from(self, source: TensorSource, names: list[str]) -> None:
        """Fill parameters one after the other: as it is stored, which may be wider, only one is held at a time."""
        for name in names:
            self.fill({name: source.read(name)})

    def empty(self, names: list[str]) -> None:
        """Send parameters back to the meta device."""
        for name in names:
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            module._parameters[leaf] = nn.Parameter(module._parameters[leaf].to("meta"), requires_grad=False)
        self._tie()

    def _tie(self) -> None:
        if self._tied:
            embedding = self.model.get_submodule(self.family.embedding)
            self.model.get_submodule(self.family.head)._parameters["weight"] = embedding._parameters["weight"]

    def layer_names(self, index: int) -> list[str]:
        """Full names of one decoder layer's parameters."""
        prefix = f"{self.family.layers}.{index}."
        return [prefix + name for name, _ in self.layers[index].named_parameters()]

    @torch.no_grad()
    def embed(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[LayerCall]]:
        """Run transformers' forward with recorders for layers; the embedding must be filled.

        Args:
            token_ids: [samples, sequence] int64, unpadded.

        Returns:
            Hidden states before the first layer [samples, sequence, hidden] on the CPU in the
            compute dtype, and each layer's call, recorded on one sample: it holds for every batch.
        """
        hidden = torch.empty(0)
        calls: list[LayerCall] = []
        for row, ids in enumerate(token_ids):
            first, calls = self.begin(input_ids=ids.unsqueeze(0).to(self.device), use_cache=False)
            if row == 0:
                hidden = torch.empty(len(token_ids), *first.shape[1:], dtype=self.dtype)
            hidden[row] = first[0]
        return hidden, calls

    @torch.no_grad()
    def begin(self, **inputs: Any) -> tuple[torch.Tensor, list[LayerCall]]:  # noqa: ANN401
        """Run transformers' forward with recorders for layers once; the embedding must be filled.

        Args:
            inputs: what the forward takes, on the skeleton's device: input_ids [batch, sequence], perhaps
                attention_mask, position_ids and past_key_values, which the layers then fill.

        Returns:
            Hidden states before the first layer [batch, sequence, hidden], and each layer's call.
        """
        recorders = [Recorder(layer) for layer in self.layers]
        recorders[-1].is_end = True  # the norm behind it may be on meta: it may lie in a shard that is not here yet
        with self._replaced_layers(recorders), suppress(InputReached):
            self.model.base_model(**inputs)
        return recorders[0].hidden, [LayerCall(recorder.args, recorder.kwargs) for recorder in recorders]

    @torch.no_grad()
    def run_layer(self, index: int, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """One filled decoder layer on hidden states [batch, sequence, hidden]."""
        call = call.widened(len(hidden))
        output = self.layers[index](hidden, *call.args, **call.kwargs)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Transformers' own end of the forward (norm, head, soft-capping) on hidden states.

        The outer parameters and the head must be filled. The decoder layers are passed through.

        Args:
            hidden: [batch, sequence, hidden] after the last layer.

        Returns:
            Logits [batch, sequence, vocabulary].
        """
        passes = [Recorder(layer) for layer in self.layers]
        passes[0].replacement = hidden.to(self.device)
        with self._replaced_layers(passes):  # with embeddings given, the embedding itself may be empty
            logits: torch.Tensor = self.model(inputs_embeds=passes[0].replacement, use_cache=False).logits
        return logits

    @contextmanager
    def _replaced_layers(self, replacements: list["Recorder"]) -> Iterator[None]:
        real = list(self.layers)
        try:
            for index, replacement in enumerate(replacements):
                self.layers[index] = replacement
            yield
        finally:
            for index, layer in enumerate(real):
                self.layers[index] = layer
