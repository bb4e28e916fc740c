"""From a config.json to its family, or to a sentence that says why there is none."""

import difflib
from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadInputError
from quantkit.families import FAMILIES
from quantkit.families.family import Family
from quantkit.versions import newest

BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
# Keys by which configurations of mixture-of-experts models name the number of experts.
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Parts of configurations of models that read more than text.
OTHER_INPUTS = {"vision_config": "images", "audio_config": "sound"}
# Settings that older versions of transformers overlook without a word: (key, what they knew instead) -> since.
SETTINGS_SINCE = {("rope_parameters", "rope_theta"): "5.0"}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint.

    Args:
        config: config.json as data; `auto_map` is not looked at.

    Raises:
        BadInputError: no architecture is named, it is not in the table, it has experts, it reads more
            than text, or the checkpoint is quantized already.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BadInputError(
            "config.json names no architecture",
            'it needs a line such as "architectures": ["LlamaForCausalLM"]',
        )
    name = architectures[0]
    family = BY_ARCHITECTURE.get(name)
    if family is None:
        raise _unknown(name, config)
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else quantized
        raise BadInputError(
            f"this checkpoint is already quantized ({method})",
            "start from the 16-bit checkpoint it was made from",
        )
    return family


def first_transformers(family: Family, config: Mapping[str, Any]) -> str:
    """The oldest version of transformers whose own classes compute a checkpoint as its config.json says."""
    needed = [
        since for (key, before), since in SETTINGS_SINCE.items() if config.get(key) and config.get(before) is None
    ]
    return newest(family.first_transformers, *needed)


def artifact_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the artifact, before its quantization_config: the source's, remapped.

    Raises:
        BadInputError: the rotary settings stand in remote code that is not known here.
    """
    kept = {key: value for key, value in config.items() if key not in family.config_drop}
    return kept | dict(family.config_set) | dict(_rope_settings(family, config))


def _unknown(name: str, config: Mapping[str, Any]) -> BadInputError:
    """Why an architecture is not in the table, as far as its configuration tells."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for part in parts:
        for key in EXPERT_KEYS:
            if part.get(key):
                return BadInputError(f"{name} is a mixture of experts ({key}: {part[key]}); not supported yet")
    for key, inputs in OTHER_INPUTS.items():
        if config.get(key):
            return BadInputError(
                f"{name} also reads {inputs} ({key}); only text models are supported yet",
                "take a checkpoint of its language model alone, if one is published",
            )
    near = difflib.get_close_matches(name, BY_ARCHITECTURE, n=1, cutoff=0.8)
    guess = f"; the nearest is {near[0]}" if near else ""
    return BadInputError(
        f"architecture {name} is not one quantkit knows{guess}",
        "known: " + ", ".join(sorted(BY_ARCHITECTURE)),
    )


def _rope_settings(family: Family, config: Mapping[str, Any]) -> Mapping[str, object]:
    context = config.get("max_position_embeddings")
    unstated = not any(key in config for key in ("rope_theta", "rope_scaling", "rope_parameters"))
    if (
        family.rope_stated_to is None
        or not isinstance(context, int)
        or context <= family.rope_stated_to
        or not unstated
    ):
        return {}
    if context not in family.rope_by_context:
        raise BadInputError(
            f"config.json has a context of {context} tokens and no rope_theta",
            "its remote code sets the rotary embedding; write rope_theta and rope_scaling into config.json",
        )
    return family.rope_by_context[context]
