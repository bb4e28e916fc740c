"""A recipe by its name: one for GPTQ or one for GGUF files, as its method says."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from quantkit.errors import BadInputError, UsageError
from quantkit.formats.mixture_tables import ALIASES, FTYPES
from quantkit.formats.mixtures import ftype_named, parse_override
from quantkit.formats.runtimes import check_targets, layout_of
from quantkit.recipe import STRICT, Calibration, Gates, Recipe, Size, fingerprint_of, load_recipe
from quantkit.strict_yaml import checked, did_you_mean, shortened


class GgufRecipe(BaseModel):
    """A GGUF scheme: one file type, or the best that fits a size, without the name of a model."""

    model_config = STRICT

    method: Literal["gguf"] = Field(description="gguf.")
    type: str | None = Field(default=None, description="A file type such as Q4_K_M; either this or target_size.")
    target_size: Size | None = Field(
        default=None, description="The best file type whose file is no larger, such as 8.0GB."
    )
    imatrix: Literal["none", "auto"] = Field(default="none", description="auto: importance from the calibration text.")
    tensor_types: tuple[str, ...] = Field(
        default=(), description="REGEX=TYPE for tensors whose name it is found in; the first that is found wins."
    )
    split_max_size: Size | None = Field(default=None, description="Largest file, such as 40GB; by default one file.")
    pre: str | None = Field(
        default=None, description="llama.cpp's pre-tokenizer, where it is not found by its expressions."
    )
    calibration: Calibration = Field(default=Calibration(), description="Which text the importance comes from.")
    gates: Gates = Field(default=Gates(), description="What a check demands of the artifact.")

    @field_validator("type")
    @classmethod
    def _is_type(cls, value: str | None) -> str | None:
        try:
            return None if value is None else ftype_named(value)
        except UsageError as error:
            raise BadInputError(str(error), did_you_mean(str(value).upper(), (*FTYPES, *ALIASES))) from error

    @field_validator("tensor_types")
    @classmethod
    def _are_overrides(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_override(text)
        return value

    @model_validator(mode="after")
    def _has_one_goal(self) -> "GgufRecipe":
        if (self.type is None) == (self.target_size is None):
            found = "neither" if self.type is None else "both"
            raise BadInputError(
                f"a recipe for GGUF files needs either type or target_size, found {found}", "such as type: Q4_K_M"
            )
        return self

    def fingerprint(self) -> str:
        """sha256 over every field, for the record of the run."""
        return fingerprint_of(self)


Scheme = Recipe | GgufRecipe
METHODS: dict[str, type[Recipe] | type[GgufRecipe]] = {"gptq": Recipe, "rtn": Recipe, "gguf": GgufRecipe}


def load_scheme(name_or_path: str) -> Scheme:
    """A shipped recipe by its name, or a recipe file.

    Raises:
        BadInputError: no such recipe, not YAML, an unknown key or type, a value out of range, or what no target loads.
        DiskError: the disk refuses to read.
    """
    fields = load_recipe(name_or_path)
    try:
        return make_scheme(fields)
    except (BadInputError, UsageError) as error:
        raise BadInputError(f"{Path(name_or_path).name}: {error}", error.hint) from error


def make_scheme(fields: dict[str, Any]) -> Scheme:
    """A checked recipe of either kind.

    Raises:
        BadInputError: an unknown method or key, or a value out of range.
        UsageError: a rule, size or type that there is not; or targets that do not load what it makes.
    """
    method = fields.get("method", "gptq")
    if not isinstance(method, str) or method not in METHODS:
        raise BadInputError(f"recipe method: found {shortened(method)}", did_you_mean(method, METHODS))
    made = checked(METHODS[method], fields, "recipe")
    if isinstance(made, Recipe):
        check_targets(made.targets, layout_of(made, {}))
    return made
