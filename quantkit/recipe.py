"""What to make: the fields of a GPTQ recipe, checked, and its fingerprint."""

import difflib
import fnmatch
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from quantkit.errors import BadInputError, UsageError
from quantkit.strict_yaml import checked, read_fields, shortened
from quantkit.tensors import Grid
from quantkit.units import parse_bytes

Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[-1, 32, 64, 128]
Runtime = Literal["transformers", "vllm", "sglang", "exllamav2", "llama.cpp", "gptqmodel"]
STRICT = ConfigDict(extra="forbid", frozen=True)
_RULE = re.compile(r"(?P<pattern>[^=]+)=(?P<setting>.+)")
_BITS = re.compile(r"([2348])bit")
_GROUP = re.compile(r"g(-1|32|64|128)")


def _size(value: str) -> str:
    parse_bytes(value)
    return value


Size = Annotated[str, AfterValidator(_size)]  # 5GB, 4.5GiB, 800M


class Calibration(BaseModel):
    """Which text the activations come from, and how much of it."""

    model_config = STRICT

    text: tuple[str, ...] = Field(
        default=("default",), description="Names of sets or mixes, files, Hub sets; NAME:WEIGHT mixes."
    )
    samples: int = Field(default=128, ge=1, strict=True, description="Sequences.")
    sequence_length: int = Field(
        default=2048, ge=1, strict=True, description="Tokens of each, at most the model's context."
    )
    seed: int = Field(default=0, strict=True, description="Order of the documents.")


class Gates(BaseModel):
    """What `quantkit check` demands of the artifact, instead of its defaults by bits."""

    model_config = STRICT

    max_ppl_increase: str | None = Field(
        default=None, pattern=r"^[0-9]+(\.[0-9]+)? ?%?$", description="Of the baseline's perplexity: 2% or 0.02."
    )
    max_kl: float | None = Field(default=None, ge=0, strict=True, description="Mean KL divergence, nats per token.")
    min_top1: float | None = Field(
        default=None, ge=0, le=1, strict=True, description="Share of tokens with the same first choice."
    )
    max_memory: Size | None = Field(default=None, description="Predicted for running the artifact, such as 10.9GB.")


class Recipe(BaseModel):
    """A GPTQ scheme: method, grid and target, without the name of a model."""

    model_config = STRICT

    method: Literal["gptq", "rtn"] = Field(default="gptq", description="gptq; or rtn: round to nearest, no data.")
    bits: Bits = Field(default=4, description="Of every linear that no rule names.")
    group_size: GroupSize = Field(default=128, description="Weights of a row that share a scale; -1: the whole row.")
    symmetric: bool = Field(default=True, strict=True, description="A grid around zero; false: with zero points.")
    act_order: Literal["none", "static", "full"] = Field(
        default="static",
        description="static: columns by decreasing diag(H), groups in natural order; full: groups follow.",
    )
    damp_percent: float = Field(
        default=0.05, gt=0, lt=1, strict=True, description="Fraction of the mean diagonal that is added to the Hessian."
    )
    scales: Literal["search", "minmax"] = Field(
        default="search", description="search: least weighted error; minmax: the range."
    )
    rules: tuple[str, ...] = Field(
        default=(),
        description="PATTERN=8bit, PATTERN=4bit,g32 or PATTERN=skip over module names; the last that matches wins.",
    )
    skip: tuple[str, ...] = Field(
        default=("lm_head",), description="Patterns of linears left in 16 bits; lm_head is one."
    )
    targets: tuple[Runtime, ...] = Field(default=("transformers",), description="Runtimes that must load the artifact.")
    dtype: Literal["auto", "float16", "bfloat16"] = Field(default="auto", description="Of the tensors left in 16 bits.")
    max_shard_size: Size = Field(default="5GB", description="Largest output file.")
    calibration: Calibration = Field(default=Calibration(), description="Which text the activations come from.")
    gates: Gates = Field(default=Gates(), description="What a check demands of the artifact.")

    @field_validator("max_shard_size")
    @classmethod
    def _is_not_empty(cls, value: str) -> str:
        if parse_bytes(value) < 1:
            raise UsageError(f"not a size: {value!r}", "write a number above 0 and a unit, such as 5GB")
        return value

    @field_validator("rules")
    @classmethod
    def _are_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for rule in value:
            Rule.parse(rule, Grid(4))
        return value

    @property
    def grid(self) -> Grid:
        """The grid of every linear that no rule names."""
        return Grid(self.bits, self.group_size, self.symmetric)

    def grid_for(self, name: str) -> Grid | None:
        """The grid of one linear by its full name, or None where it stays in 16 bits."""
        if any(matches(name, pattern) for pattern in self.skip):
            return None
        grid: Grid | None = self.grid
        for text in self.rules:
            rule = Rule.parse(text, self.grid)
            if matches(name, rule.pattern):
                grid = rule.grid
        return grid

    def patterns(self) -> tuple[str, ...]:
        """Every pattern of a rule or of `skip`."""
        return (*self.skip, *self.rule_patterns())

    def rule_patterns(self) -> tuple[str, ...]:
        """Every pattern of a rule."""
        return tuple(Rule.parse(rule, self.grid).pattern for rule in self.rules)

    def fingerprint(self) -> str:
        """sha256 over every field, for the record of the run."""
        return fingerprint_of(self)


class Rule(BaseModel):
    """`PATTERN=SETTING`: a glob over full module names, and a grid or `skip`."""

    model_config = ConfigDict(frozen=True)

    pattern: str
    grid: Any  # Grid | None

    @classmethod
    def parse(cls, text: str, default: Grid) -> "Rule":
        """Read one rule; what it does not name is taken from `default`.

        Raises:
            UsageError: not of the form.
        """
        match = _RULE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"not a rule: {text!r}",
                "write PATTERN=SETTING, such as 'model.layers.0.*=8bit' or '*.down_proj=skip'",
            )
        if match["setting"] == "skip":
            return cls(pattern=match["pattern"], grid=None)
        bits: Any = default.bits
        group_size = default.group_size
        for part in match["setting"].split(","):
            if found := _BITS.fullmatch(part):
                bits = int(found[1])
            elif found := _GROUP.fullmatch(part):
                group_size = int(found[1])
            else:
                raise UsageError(
                    f"not a setting: {part!r} in the rule {text!r}",
                    "use 2bit, 3bit, 4bit, 8bit, g32, g64, g128, g-1, skip",
                )
        return cls(pattern=match["pattern"], grid=Grid(bits, group_size, default.symmetric))


def fingerprint_of(fields: BaseModel) -> str:
    """sha256 over every field."""
    text = json.dumps(fields.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def matches(name: str, pattern: str) -> bool:
    """Whether a glob names a module or one of its parents."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """The fields of a recipe file, or of a shipped recipe by name, as plain data.

    Raises:
        BadInputError: no such recipe, or not YAML.
        DiskError: the disk refuses to read.
    """
    return read_fields(find_file(name_or_path, data_folder("recipes"), "recipe"), "recipe", "bits: 4")


def find_file(name_or_path: str, folder: Path, what: str) -> Path:
    """A YAML file by its path, or a shipped one by its name.

    Args:
        name_or_path: as a user gives it.
        folder: where the shipped ones lie.
        what: they are, for messages: `recipe`.

    Raises:
        BadInputError: there is none; the hint has the nearest name.
    """
    path = Path(name_or_path)
    if _is_file(path):
        return path
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name_or_path not in shipped:
        near = difflib.get_close_matches(name_or_path, shipped, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise BadInputError(
            f"no {what} {shortened(name_or_path)}", f"{meant}shipped: {', '.join(shipped)}; or name a file"
        )
    return shipped[name_or_path]


def make_recipe(fields: dict[str, Any]) -> Recipe:
    """A checked recipe; an unknown key is refused with the nearest known one.

    Raises:
        BadInputError: an unknown key or a value out of range; or a recipe for GGUF files.
    """
    if fields.get("method") == "gguf":
        raise BadInputError("this recipe makes GGUF files (method: gguf)", "take it with quantkit gguf --recipe")
    return checked(Recipe, fields, "recipe")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, a NUL byte
        return False


def data_folder(name: str) -> Path:
    """Where `recipes` or `calibration` lies: inside the installed package or beside it in a clone."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name
