"""From a config.json to the row by which llama.cpp knows its family."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadInputError
from quantkit.families.family import Family
from quantkit.families.gguf import GGUF_FAMILIES
from quantkit.families.gguf_experts import CONVERTED_ONLY, GGUF_EXPERTS
from quantkit.families.gguf_family import GgufFamily
from quantkit.families.lookup import family_of

BY_ARCHITECTURE = {name: family for family in CONVERTED_ONLY for name in family.architectures}


def gguf_family_of(config: Mapping[str, Any]) -> tuple[Family, GgufFamily]:
    """The family of a checkpoint that is to become a GGUF file, mixtures of experts included.

    Args:
        config: config.json as data.

    Raises:
        BadInputError: as `family_of`; or llama.cpp has no architecture for the family.
    """
    stated = config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else None
    if isinstance(name, str) and name in BY_ARCHITECTURE and config.get("quantization_config") is None:
        family = BY_ARCHITECTURE[name]
        return family, GGUF_EXPERTS[family.name]
    family = family_of(config)
    return family, gguf_row(family)


def gguf_row(family: Family) -> GgufFamily:
    """The row of a family.

    Raises:
        BadInputError: llama.cpp has no architecture for it.
    """
    if family.name not in GGUF_FAMILIES:
        raise BadInputError(f"llama.cpp has no architecture that computes {family.name} models")
    return GGUF_FAMILIES[family.name]
