"""The metadata of a GGUF file, its vocabulary aside: what a runtime needs to compute the model, and what it is."""

from collections.abc import Mapping
from typing import Any

from quantkit.families.gguf_family import GgufFamily
from quantkit.plan.gguf_card import Naming, card_values
from quantkit.plan.gguf_rope import rope_settings
from quantkit.plan.gguf_settings import Config, head_dim, value_of, windowed_layers
from quantkit.weights.gguf_types import Value

# Of ggml's block formats; it has been 2 since May 2023.
QUANTIZATION_VERSION = 2


def metadata(
    gguf: GgufFamily,
    config: Config,
    naming: Naming,
    file_type: int,
    card: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Value]:
    """Every key outside of `tokenizer.` and `split.`, in the order of the file.

    Args:
        gguf: the family's row.
        config: complete (`complete_config`), and expressible.
        naming: what the model is called.
        file_type: llama.cpp's number of the file type.
        card: front matter of the checkpoint's card (`basecard.front_matter`).
        sampling: generation_config.json.
    """
    general = {
        "architecture": Value("string", gguf.architecture),
        "type": Value("string", "model"),
        **card_values(naming, card or {}, sampling),
        "quantization_version": Value("uint32", QUANTIZATION_VERSION),
        "file_type": Value("uint32", file_type),
    }
    told = {f"general.{key}": value for key, value in general.items()}
    return told | {f"{gguf.architecture}.{key}": value for key, value in hyperparameters(gguf, config).items()}


def hyperparameters(gguf: GgufFamily, config: Config) -> dict[str, Value]:
    """Keys behind `<architecture>.`.

    Args:
        gguf: the family's row.
        config: complete, and expressible.
    """
    told: dict[str, Value] = {}
    windowed = windowed_layers(gguf, config)
    for setting in gguf.settings:
        found = value_of(config, setting)
        unused = setting.key == "attention.sliding_window" and gguf.window_every and not any(windowed)
        if found is not None and not unused:
            told[setting.key] = Value(setting.kind, found)
    if gguf.rope:
        width = Value("uint32", head_dim(gguf, config))
        told |= {"attention.key_length": width, "attention.value_length": width}
        told |= {f"rope.{key}": value for key, value in rope_settings(gguf, config).items()}
    if gguf.window_every and any(windowed) and windowed != _usual(gguf.window_every, len(windowed)):
        told["attention.sliding_window_pattern"] = Value("bool", windowed)
    return told


def _usual(every: int, layers: int) -> tuple[bool, ...]:
    """Which layers see a window only where no key says it."""
    return tuple((layer + 1) % every != 0 for layer in range(layers))
