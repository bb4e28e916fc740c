"""What a release makes of which base: the fields of a release file, checked against recipes and names."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from quantkit.errors import BadInputError, QuantkitError
from quantkit.recipe import STRICT, Gates, data_folder, find_file
from quantkit.scheme import GgufRecipe, Scheme, load_scheme
from quantkit.strict_yaml import checked, read_fields, shortened

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"  # as the Hub names users and repositories
_REPOSITORY = re.compile(f"{_WORD}/{_WORD}")
_FOLDER = re.compile(r"(?:[./~]|[A-Za-z]:\\).*", re.DOTALL)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
LONGEST_NAME = 96  # of a repository, without its organisation


def is_repository(text: str) -> bool:
    """Whether a text has the form of a repository's name on the Hub: `organisation/name`."""
    odd = "--" in text or ".." in text or text.endswith(".git") or len(text.rpartition("/")[2]) > LONGEST_NAME
    return _REPOSITORY.fullmatch(text) is not None and not odd


def is_folder(text: str) -> bool:
    """Whether a text is written as a folder: it begins with `.`, `/` or `~`."""
    return _FOLDER.fullmatch(text) is not None


def _base(value: str) -> str:
    if "@" in value and is_repository(value.partition("@")[0]):
        raise ValueError("expected organisation/name, and what follows @ under the key revision")
    if not is_folder(value) and not is_repository(value):
        raise ValueError("expected organisation/name, or a folder that begins with ./")
    return value


def _revision(value: str) -> str:
    if not _REVISION.fullmatch(value) or ".." in value:
        raise ValueError("expected a commit, tag or branch")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or ".." in value:
        raise ValueError("expected letters, digits, `.`, `_`, `-`")
    return value


def _namespace(value: str) -> str:
    if not is_repository(f"{value}/x"):
        raise ValueError("expected a user or an organisation of the Hub")
    return value


class Variant(BaseModel):
    """One artifact, or one GGUF file, of the base."""

    model_config = STRICT

    recipe: str = Field(min_length=1, description="A shipped recipe by name, or a .yaml file beside the release file.")
    name: Annotated[str, AfterValidator(_name)] | None = Field(
        default=None, description="Of the variant, in the table of variants; by default the recipe's."
    )
    gates: Gates | None = Field(default=None, description="Gates that replace those of the recipe, one by one.")


class Check(BaseModel):
    """On which text the variants are held against their base."""

    model_config = STRICT

    text: tuple[str, ...] = Field(
        default=("default",), min_length=1, description="Names of sets or mixes, files, Hub sets."
    )
    context: int | None = Field(
        default=None, ge=2, strict=True, description="Tokens of a window; by default as quantkit check has it."
    )


class Push(BaseModel):
    """Where the variants are published."""

    model_config = STRICT

    namespace: Annotated[str, AfterValidator(_namespace)] = Field(description="User or organisation on the Hub.")
    gptq: Literal["repositories", "branches"] = Field(
        default="repositories", description="A repository for each GPTQ variant, or one with a branch for each."
    )
    private: bool | None = Field(
        default=None, strict=True, description="Whether repositories are private; by default where the base is gated."
    )
    collection: str | None = Field(default=None, min_length=1, description="Title of a collection to which they go.")
    tag: Annotated[str, AfterValidator(_name)] | None = Field(default=None, description="Tag of the version.")


class ReleaseFile(BaseModel):
    """What to make of one base checkpoint, how to check it, where to publish it."""

    model_config = STRICT

    base: Annotated[str, AfterValidator(_base)] = Field(
        description="organisation/name on the Hub, or a folder that begins with ./"
    )
    revision: Annotated[str, AfterValidator(_revision)] | None = Field(
        default=None, description="Commit or tag of the base; by default the commit that the first run finds."
    )
    stream: Literal["auto", "always", "never"] = Field(
        default="auto", description="Fetch and delete the base's shards as they are used; auto: where the disk asks it."
    )
    variants: tuple[Variant, ...] = Field(min_length=1, description="What to make, in this order.")
    check: Check = Field(default=Check(), description="On which text the variants are held against their base.")
    push: Push | None = Field(default=None, description="Where to publish; nowhere if it is left out.")

    @model_validator(mode="after")
    def _folder_has_no_revision(self) -> "ReleaseFile":
        if self.revision and is_folder(self.base):
            raise BadInputError(f"the base {self.base} is a folder, which has no revision", "leave out revision")
        return self


def load_release(name_or_path: str | Path) -> ReleaseFile:
    """A release file, or a shipped one by its name.

    Every variant has a name; the recipes and the base that are files or folders have absolute paths, whatever the
    working directory (they are for opening them, and belong into no record).

    Raises:
        BadInputError: no such file, not YAML, an unknown key or recipe, a name that there cannot be, or a name twice.
        DiskError: the disk refuses to read.
    """
    path = find_file(str(name_or_path), data_folder("recipes") / "releases", "release file")
    fields = read_fields(path, "release", "base: organisation/name")
    try:
        return make_release(fields, path.parent)
    except QuantkitError as error:
        raise BadInputError(f"{path.name}: {error}", error.hint) from error


def make_release(fields: dict[str, Any], folder: Path) -> ReleaseFile:
    """A checked release from plain data.

    Args:
        fields: as in a file.
        folder: of that file: paths in it start here.

    Raises:
        BadInputError: as `load_release`.
    """
    release = checked(ReleaseFile, fields, "release")
    variants = tuple(_complete(variant, folder, place) for place, variant in enumerate(release.variants))
    _refuse_twins(variants)
    base = _path(folder, release.base) if is_folder(release.base) else release.base
    return release.model_copy(update={"base": base, "variants": variants})


def scheme_of(variant: Variant) -> Scheme:
    """The recipe of a variant, with the variant's own gates.

    Raises:
        BadInputError: it has changed since the release file was read.
    """
    made = load_scheme(variant.recipe)
    own = variant.gates.model_dump(exclude_none=True) if variant.gates else {}
    return made.model_copy(update={"gates": made.gates.model_copy(update=own)})


def _complete(variant: Variant, folder: Path, place: int) -> Variant:
    """A variant with its name, and its recipe wherever the working directory is; the recipe is read once."""
    recipe, where = variant.recipe, f"variants.{place}.recipe:"
    if is_file_name := Path(recipe).suffix in (".yaml", ".yml"):
        recipe = _path(folder, recipe)
        if not os.path.isfile(recipe):  # noqa: PTH113 (pathlib raises for names that cannot be)
            raise BadInputError(f"{where} no file {shortened(variant.recipe)}", "paths start at the release file")
    try:
        load_scheme(recipe)
    except BadInputError as error:
        raise BadInputError(f"{where} {error}", error.hint) from error
    name = variant.name or (Path(recipe).stem if is_file_name else recipe)
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"variants.{place}: {shortened(name)} cannot be a name", "give the variant a name of its own"
        )
    return variant.model_copy(update={"recipe": recipe, "name": name})


def _path(folder: Path, text: str) -> str:
    """A path of a release file, absolute; nothing is asked of the disk."""
    return os.path.abspath(folder / os.path.expanduser(text))  # noqa: PTH100, PTH111 (the same)


def _refuse_twins(variants: tuple[Variant, ...]) -> None:
    """No two variants of one name, whatever its case, and no two GGUF files of one type."""
    names = Counter((variant.name or "").casefold() for variant in variants)
    if twice := next((variant.name for variant in variants if names[(variant.name or "").casefold()] > 1), None):
        raise BadInputError(f"two variants are called {twice!r}", "give one of them another name")
    seen: dict[str, str | None] = {}
    for variant in variants:
        scheme = load_scheme(variant.recipe)
        kind = scheme.type if isinstance(scheme, GgufRecipe) else None
        if kind in seen:
            raise BadInputError(
                f"the variants {seen[kind]} and {variant.name} both make {kind} files", "their names would be the same"
            )
        if kind:
            seen[kind] = variant.name
