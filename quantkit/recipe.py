"""What to make: a recipe's fields, read strictly from YAML, and its fingerprint."""

import difflib
import fnmatch
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from quantkit.errors import BadInputError, UsageError
from quantkit.strict_yaml import checked, read_fields, shortened
from quantkit.tensors import Grid
from quantkit.units import parse_bytes

Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[-1, 32, 64, 128]
_RULE = re.compile(r"(?P<pattern>[^=]+)=(?P<setting>.+)")
_BITS = re.compile(r"([2348])bit")
_GROUP = re.compile(r"g(-1|32|64|128)")


class Calibration(BaseModel):
    """Which text the activations come from, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: tuple[str, ...] = ("default",)  # names of sets or mixes, files, Hub sets; `NAME:WEIGHT` mixes
    samples: int = Field(default=128, ge=1)
    sequence_length: int = Field(default=2048, ge=1)  # tokens
    seed: int = 0


class Gates(BaseModel):
    """What `quantkit check` demands of the artifact, instead of its defaults by bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_ppl_increase: str | None = Field(default=None, pattern=r"^[0-9]+(\.[0-9]+)? ?%?$")  # 2%, 0.02
    max_kl: float | None = Field(default=None, ge=0)  # mean, nats per token
    min_top1: float | None = Field(default=None, ge=0, le=1)  # share of tokens
    max_memory: str | None = None  # 10.9GB, predicted for running it

    @field_validator("max_memory")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value


class Recipe(BaseModel):
    """One scheme: method, grid and target, without the name of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["gptq", "rtn"] = "gptq"
    bits: Bits = 4
    group_size: GroupSize = 128
    symmetric: bool = True
    act_order: Literal["none", "static", "full"] = "static"
    damp_percent: float = Field(default=0.05, gt=0, lt=1)
    scales: Literal["search", "minmax"] = "search"
    rules: tuple[str, ...] = ()  # `PATTERN=8bit`, `PATTERN=4bit,g32`; the last that matches wins
    skip: tuple[str, ...] = ("lm_head",)  # patterns of linears left in 16 bits
    targets: tuple[Literal["transformers", "vllm", "sglang", "exllamav2", "llama.cpp", "gptqmodel"], ...] = (
        "transformers",
    )
    dtype: Literal["auto", "float16", "bfloat16"] = "auto"  # of the tensors that stay in 16 bits
    max_shard_size: str = "5GB"
    calibration: Calibration = Calibration()
    gates: Gates = Gates()

    @field_validator("max_shard_size")
    @classmethod
    def _is_size(cls, value: str) -> str:
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
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


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


def matches(name: str, pattern: str) -> bool:
    """Whether a glob names a module or one of its parents."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """The fields of a recipe file, or of a shipped recipe by name, as plain data.

    Raises:
        BadInputError: no such recipe, or not YAML.
    """
    path = Path(name_or_path)
    if not _is_file(path):
        shipped = {file.stem: file for file in sorted(data_folder("recipes").glob("*.yaml"))}
        if name_or_path not in shipped:
            near = difflib.get_close_matches(name_or_path, shipped, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise BadInputError(
                f"no recipe {shortened(name_or_path)}", f"{meant}shipped: {', '.join(shipped)}; or name a file"
            )
        path = shipped[name_or_path]
    return read_fields(path, "recipe", "bits: 4")


def make_recipe(fields: dict[str, Any]) -> Recipe:
    """A checked recipe; an unknown key is refused with the nearest known one.

    Raises:
        BadInputError: an unknown key or a value out of range.
    """
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
