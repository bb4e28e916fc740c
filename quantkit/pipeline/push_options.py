"""What a user asks of a push, and whether the repository allows it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.hub.publish import Difference
from quantkit.hub.repository import parse_reference
from quantkit.hub.target import Target
from quantkit.manifest import read_manifest
from quantkit.pipeline.push_files import Artifact, read_record
from quantkit.rundir import RUN_FILE

AUTO = "auto"  # a branch named by its variant
MAX_REPO_ID, MAX_TITLE = 96, 60  # letters, as the Hub has it
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")


@dataclass(frozen=True)
class PushOptions:
    """What a user may ask of a push.

    Attributes:
        branch: None: main; `auto`: what `branch_name` gives.
        private: of a new repository; None: private where the base model is gated, else what the namespace has chosen.
        force: publish without a check that counts; the card says so.
        collection: title of a collection of the namespace to list the repository in.
        tag: to give to the commit.
        siblings: folders of other variants of the base, for the card's table, each with its address or nothing.
    """

    branch: str | None = None
    private: bool | None = None
    force: bool = False
    collection: str | None = None
    tag: str | None = None
    siblings: Mapping[Path, str] = field(default_factory=dict)


def check_names(repo_id: str, options: PushOptions) -> None:
    """Refuse names that the Hub does not take.

    Raises:
        UsageError: one of them.
    """
    reference = parse_reference(repo_id)
    if reference is None or reference.revision is not None or len(repo_id) > MAX_REPO_ID or repo_id[-1] in ".-":
        hint = "such as my-organisation/Model-GPTQ-Int4; a branch is named by --branch"
        raise UsageError(f"{repo_id!r} is no repository name, expected organisation/name", hint)
    for option, name in (("--branch", options.branch), ("--tag", options.tag)):
        if name is not None and (not _REF.fullmatch(name) or ".." in name or name.endswith((".lock", "/", "."))):
            raise UsageError(f"{option}: {name!r} is no name that git takes", "letters, digits, and ._-/ between them")
    title = options.collection
    if title is not None and not 0 < len(title.strip()) < MAX_TITLE:
        raise UsageError(f"--collection: found a title of {len(title)} letters", f"1 to {MAX_TITLE - 1} are possible")


def with_branch(options: PushOptions, artifact: Artifact) -> PushOptions:
    """The options with the branch's own name in place of `auto`.

    Raises:
        UsageError: `auto` for another artifact than a GPTQ checkpoint.
    """
    if options.branch != AUTO:
        return options
    if artifact.kind != "gptq":
        raise UsageError("--branch auto is for GPTQ checkpoints", "GGUF variants are files beside one another")
    return replace(options, branch=branch_name(read_record(artifact.folder, RUN_FILE)))


def branch_name(record: Mapping[str, Any]) -> str:
    """What users call the branch of a GPTQ variant, such as `gptq-4bit-32g-actorder_True`.

    Args:
        record: run.json of the run.
    """
    recipe = record["recipe"]
    ordered = recipe["act_order"] != "none"
    return f"gptq-{recipe['bits']}bit-{recipe['group_size']}g-actorder_{ordered}"


def is_gated(artifact: Artifact) -> bool:
    """Whether the Hub asks people before it shows them the base model."""
    manifest = read_manifest(artifact.folder)
    return manifest is not None and bool(manifest.base.gated)


def privacy(artifact: Artifact, target: Target, options: PushOptions) -> bool | None:
    """Whether a new repository is private; None: what its namespace has chosen.

    Raises:
        UsageError: the repository is public and should be private.
    """
    gated = is_gated(artifact)
    private = True if options.private is None and gated else options.private
    if private and target.exists and not target.private:
        reason = "--private was given" if options.private else "the base model is gated"
        raise UsageError(
            f"{target.repo_id} is public, and {reason}",
            f"make it private in its settings, or push with --public{' if the licence allows that' * gated}",
        )
    return private


def check_tag(tag: str | None, target: Target, difference: Difference) -> None:
    """Refuse a tag that is on another commit than the push will end with.

    Raises:
        UsageError: it is.
    """
    found = target.tags.get(tag) if tag else None
    if found is None:
        return
    head = target.snapshot.commit if target.snapshot else None
    if difference or found != head:
        raise UsageError(
            f"{target.repo_id} has the tag {tag} on another commit, {found[:12]}",
            "a tag is never moved; choose another",
        )
