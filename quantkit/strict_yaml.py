"""YAML read strictly: plain data only, and fields that a pydantic model knows, or the nearest known name."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from quantkit.errors import BadInputError, DiskError

MAX_BYTES = 2**18
MAX_NESTING = 16
_Model = TypeVar("_Model", bound=BaseModel)


def read_fields(path: Path, what: str, example: str) -> dict[str, Any]:
    """The keys of a YAML file and their values, as plain data.

    Args:
        path: the file.
        what: what it should be, for messages: `recipe`.
        example: a line of such a file, for messages: `bits: 4`.

    Raises:
        BadInputError: not YAML, or not a mapping.
        DiskError: the disk refuses to read.
    """
    data = _parse(_read(path, what), path.name, what)
    if not isinstance(data, dict):
        raise BadInputError(f"{path.name}: found {type(data).__name__}, expected keys such as {example}")
    return data


def checked(model: type[_Model], fields: dict[str, Any], what: str) -> _Model:
    """Fields as a model; an unknown key is refused with the nearest known one, however deep it stands.

    Args:
        model: a pydantic model that forbids other keys.
        fields: plain data.
        what: for messages: `recipe`.

    Raises:
        BadInputError: an unknown or missing key, or a value out of range.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = first["loc"]
        where = ".".join(str(part) for part in path)
        if first["type"] == "invalid_key":
            raise BadInputError(f"{what} key {shortened(path[-1])} is not text") from error
        if first["type"] == "extra_forbidden":
            known = _model_at(model, path[:-1]).model_fields
            raise BadInputError(f"unknown {what} key {shortened(where)}", did_you_mean(path[-1], known)) from error
        if first["type"] == "missing":
            raise BadInputError(f"{what} key {where!r} is missing") from error
        reason = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list").replace("Tuple", "List")
        hint = "put it in quotes" if first["type"] == "string_type" and _is_number(first["input"]) else None
        raise BadInputError(f"{what} {where}: {reason}, found {shortened(first['input'])}", hint) from error


def did_you_mean(name: object, known: Collection[str]) -> str:
    """A hint: the known name that is nearest, or all of them."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)


def shortened(value: object) -> str:
    """A value as a file or an option has it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _StrictLoader(yaml.SafeLoader):
    """YAML without what such files have no use for.

    That is tags, a key twice, aliases (a few of them unfold without end) and deep nesting, over which
    the scanner takes time that grows with its square.
    """

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        """`[` or `{`."""
        if self.flow_level >= MAX_NESTING:
            raise yaml.scanner.ScannerError(None, None, "found brackets nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node of the document; never an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"found the alias *{event.anchor}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"found the key {shortened(key.value)} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise BadInputError(f"{path.name}: found more than {MAX_BYTES} bytes, expected a {what}")
    return raw


def _parse(raw: bytes, file_name: str, what: str) -> object:
    wrong = f"{file_name} is not YAML of a {what}:"
    try:
        return yaml.load(raw.decode("utf-8"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise BadInputError(f"{wrong}{line} {error.problem}") from error
    except RecursionError as error:
        raise BadInputError(f"{wrong} it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # dates and numbers that there are not
        raise BadInputError(f"{wrong} {' '.join(str(error).split())}") from error


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The model to which the keys at a place belong; numbers in the path are places in a list."""
    for part in path:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401
    """The model inside of `Model | None`, `tuple[Model, ...]` and their like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
