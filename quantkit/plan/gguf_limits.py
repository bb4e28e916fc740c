"""What llama.cpp computes as the model does, and what not: refusals by name, and notes where only long texts differ."""

from collections.abc import Callable

from quantkit.errors import BadInputError
from quantkit.families.gguf_family import GgufFamily
from quantkit.plan.gguf_settings import Config, head_dim, rope_of, size_of, windowed_layers

# llama.cpp reads no other values for these architectures.
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


def check_expressible(gguf: GgufFamily, config: Config) -> None:
    """Refuse a model of a known family that llama.cpp's architecture would compute as something else.

    Args:
        gguf: the family's row.
        config: complete.

    Raises:
        BadInputError: the first setting that llama.cpp has no way to express.
    """
    found = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function")
    if found not in (gguf.activation, gguf.near_activation):
        raise _cannot(gguf, f"computes {gguf.activation}", f"the activation {found!r}")
    if not config.get("tie_word_embeddings") and all(piece.name != "output" for piece in gguf.outside):
        raise _cannot(gguf, "takes the embedding for the head", "a head of its own")
    _check_rope(gguf, config)
    for name in gguf.limits:
        said = LIMITS[name](gguf, config)
        if said is not None:
            raise _cannot(gguf, *said)


def differences(gguf: GgufFamily, config: Config) -> tuple[str, ...]:
    """What the user should know: where llama.cpp computes something near, or the same only up to some length."""
    notes = []
    context = size_of(gguf, config, "context_length")
    window = config.get("sliding_window") or context
    if any(windowed_layers(gguf, config)) and not gguf.window_every and window < context:
        notes.append(
            f"llama.cpp knows no window for {gguf.architecture}: it computes what the model does for "
            f"texts of up to {window} tokens"
        )
    kind = rope_of(config).get("rope_type")
    if gguf.rope and kind == "dynamic":
        notes.append(f"llama.cpp knows no dynamic scaling: texts of more than {context} tokens are not stretched")
    if gguf.rope and kind == "longrope":
        original = rope_of(config).get("original_max_position_embeddings")
        notes.append(
            f"llama.cpp takes the long factors if its context (-c) is above {original} tokens, the model if the text is"
        )
    if gguf.near_activation and config.get("hidden_act", config.get("activation_function")) == gguf.near_activation:
        notes.append(f"llama.cpp approximates {gguf.near_activation} by {gguf.activation}")
    return tuple(notes)


def _cannot(gguf: GgufFamily, theirs: str, ours: str) -> BadInputError:
    return BadInputError(
        f"{gguf.family}: found {ours}; llama.cpp's architecture {gguf.architecture} {theirs}",
        "no GGUF file can say otherwise",
    )


def _check_rope(gguf: GgufFamily, config: Config) -> None:
    if not gguf.rope:
        return
    for layers in ("full_attention", "sliding_attention"):
        rope = rope_of(config, layers)
        kind = rope.get("rope_type") or "default"
        if kind not in gguf.rope:
            raise _cannot(gguf, f"rotates by {', '.join(gguf.rope)}", f"rotary scaling of type {kind!r}")
        odd = {key: rope[key] for key, value in YARN_DEFAULTS.items() if rope.get(key) not in (None, value)}
        if kind == "yarn" and odd:
            key, value = next(iter(odd.items()))
            raise _cannot(gguf, f"computes yarn with {key} {YARN_DEFAULTS[key]}", f"{key} {value}")
        if layers == "sliding_attention" and gguf.window_every and kind != "default" and rope is not rope_of(config):
            raise _cannot(gguf, "scales only layers that see everything", f"{kind} scaling of windowed layers")
        if not gguf.partial_rope and rope.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise _cannot(gguf, "rotates whole heads", f"partial_rotary_factor {rope['partial_rotary_factor']}")


Said = tuple[str, str] | None  # what llama.cpp does, what was found


def _heads_fill(gguf: GgufFamily, config: Config) -> Said:
    heads, hidden = size_of(gguf, config, "attention.head_count"), size_of(gguf, config, "embedding_length")
    width = head_dim(gguf, config)
    if heads * width == hidden:
        return None
    return "has heads that are together as wide as the hidden states", f"{heads} heads of {width} for {hidden}"


def _both_caps(gguf: GgufFamily, config: Config) -> Said:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config.get(key):
            return "always has soft caps", f"{key} {config.get(key)}"
    return None


def _no_score_cap(gguf: GgufFamily, config: Config) -> Said:
    cap = config.get("attn_logit_softcapping")
    return ("has no soft cap of scores", f"attn_logit_softcapping {cap}") if cap else None


def _causal(gguf: GgufFamily, config: Config) -> Said:
    both = config.get("use_bidirectional_attention")
    return ("looks back only", "use_bidirectional_attention") if both else None


def _every_fourth(gguf: GgufFamily, config: Config) -> Said:
    rotated = [bool(layer) for layer in config["no_rope_layers"]]
    if rotated == [(index + 1) % 4 != 0 for index in range(len(rotated))]:
        return None
    return "leaves every fourth layer without positions", f"no_rope_layers {config['no_rope_layers']}"


def _deep_head_norms(gguf: GgufFamily, config: Config) -> Said:
    layers, norms = size_of(gguf, config, "block_count"), bool(config.get("use_qk_norm"))
    if norms == (layers >= 64):
        return None
    return "has norms on heads from 64 layers on", f"use_qk_norm {str(norms).lower()} with {layers} layers"


def _experts_everywhere(gguf: GgufFamily, config: Config) -> Said:
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if step == 1 and not dense:
        return None
    return "has experts in every layer", f"decoder_sparse_step {step} and mlp_only_layers {dense}"


def _sum_to_one(gguf: GgufFamily, config: Config) -> Said:
    norm = bool(config.get("norm_topk_prob"))
    return None if norm else ("makes the chosen experts' weights sum to one", "norm_topk_prob false")


def _as_they_come(gguf: GgufFamily, config: Config) -> Said:
    norm = bool(config.get("norm_topk_prob"))
    return ("takes the chosen experts' weights as they come", "norm_topk_prob true") if norm else None


def _no_cross_attention(gguf: GgufFamily, config: Config) -> Said:
    return ("has no cross-attention", "add_cross_attention") if config.get("add_cross_attention") else None


LIMITS: dict[str, Callable[[GgufFamily, Config], Said]] = {
    "heads fill": _heads_fill,
    "both caps": _both_caps,
    "no score cap": _no_score_cap,
    "causal": _causal,
    "every fourth without positions": _every_fourth,
    "head norms from 64 layers on": _deep_head_norms,
    "experts in every layer": _experts_everywhere,
    "expert weights sum to one": _sum_to_one,
    "expert weights as they come": _as_they_come,
    "no cross-attention": _no_cross_attention,
}
