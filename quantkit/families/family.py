"""What a family of architectures declares: names and groupings, no code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# Rotary tables that old checkpoints carry; every runtime computes them again.
ROTARY_BUFFERS = ("*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached")


@dataclass(frozen=True)
class End:
    """A module of a layer whose output is that of its last linear: what need not be computed twice."""

    module: str
    linear: str  # its name in the layer; the module itself where that is a linear
    only_for: tuple[str, ...] = ()  # modules whose output nothing but this one reads, such as its norm


@dataclass(frozen=True)
class Family:
    """Facts about one family, checked by a test against transformers' own model.

    A stage is the set of linears of a layer that are computed one after the other from one input; stages
    are listed in the order of computation. `fused` names the linears that runtimes merge into one: they
    must be treated alike.
    """

    name: str
    architectures: tuple[str, ...]  # values of `architectures[0]` in config.json that are read so
    model_class: str  # the transformers class that computes it, and that the artifact names
    model_type: str  # what config.json of the artifact says of that class
    stages: tuple[tuple[str, ...], ...]  # names inside one decoder layer
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    final_norm: str | None = "model.norm"  # None: it has no weights
    ends: tuple[End, ...] = (
        End("self_attn", "self_attn.o_proj", ("input_layernorm",)),
        End("mlp", "mlp.down_proj", ("post_attention_layernorm",)),
    )
    # Linears that have a bias where this key of config.json is true; under "" those that always have one. Only what
    # is missing is found out sooner by it: transformers' own model has the last word.
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    # Norms of queries and keys inside a layer, and what they are as long as: `head`, `queries` or `keys`.
    head_norms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Where transformers has no fused attention for the class: what one attention score takes at the peak,
    # in bytes, by the bytes of the compute dtype.
    score_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    dropped: tuple[str, ...] = ROTARY_BUFFERS  # patterns of tensors that nothing reads
    first_transformers: str = "4.28"  # oldest version whose native class loads the artifact
    config_set: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    # Checkpoints of a longer context than this leave their rotary settings to remote code; by context,
    # what that code says. None: config.json says all.
    rope_stated_to: int | None = None
    rope_by_context: Mapping[int, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    config_drop: tuple[str, ...] = ("auto_map",)

    @property
    def attention(self) -> str:
        """Which of transformers' implementations computes the attention."""
        return "eager" if self.score_bytes else "sdpa"

    @property
    def linears(self) -> tuple[str, ...]:
        """Every quantized linear of a layer, in order of computation."""
        return tuple(name for stage in self.stages for name in stage)
