"""What a family of architectures declares: names and groupings, no code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# Rotary tables that old checkpoints carry; every runtime computes them again.
ROTARY_BUFFERS = ("*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached")


@dataclass(frozen=True)
class Family:
    """Facts about one family, checked by a test against transformers' own model.

    A stage is the set of linears of a layer that share one input; stages are listed in the order in
    which the layer computes them. `fused` names the linears that runtimes merge into one: they must
    be treated alike.
    """

    name: str
    architectures: tuple[str, ...]  # values of `architectures[0]` in config.json that are read so
    model_class: str  # the transformers class that computes it, and that the artifact names
    stages: tuple[tuple[str, ...], ...]  # names inside one decoder layer
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    # Modules of a layer whose output is that of their last linear, with the norm that only they read:
    # (module, its last linear, norm). What need not be computed twice.
    ends: tuple[tuple[str, str, str], ...] = (
        ("self_attn", "o_proj", "input_layernorm"),
        ("mlp", "down_proj", "post_attention_layernorm"),
    )
    dropped: tuple[str, ...] = ROTARY_BUFFERS  # patterns of tensors that nothing reads
    first_transformers: str = "4.28"  # oldest version whose native class loads the artifact
    config_set: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    # Checkpoints of a longer context than this leave their rotary settings to remote code; by context,
    # what that code says. None: config.json says all.
    rope_stated_to: int | None = None
    rope_by_context: Mapping[int, Mapping[str, object]] = field(default_factory=lambda: MappingProxyType({}))
    config_drop: tuple[str, ...] = ("auto_map",)

    @property
    def linears(self) -> tuple[str, ...]:
        """Every quantized linear of a layer, in order of computation."""
        return tuple(name for stage in self.stages for name in stage)
