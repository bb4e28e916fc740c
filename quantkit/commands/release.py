"""`quantkit release`: a release file to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.commands.gptq import AsJson, DeviceName
from quantkit.errors import QualityError, UsageError

if TYPE_CHECKING:
    from quantkit.release_file import ReleaseFile

File = Annotated[str, typer.Argument(metavar="FILE", help="A release file, or a shipped one by name.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of everything that is made. [default: ./NAME-release]")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="User or organisation to publish under, instead of the file's.")
]
Only = Annotated[list[str] | None, typer.Option("--only", help="A variant by name. Repeatable. [default: all]")]
Push = Annotated[bool, typer.Option("--push/--no-push", help="Publish what passed, where the file says so.")]
On = Annotated[str | None, typer.Option("--on", help="github: annotations and a summary for GitHub Actions.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the whole plan and stop.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, from the commit that the base has today.")]


def release(
    file: File, out: Out = None, namespace: Namespace = None, only: Only = None, push: Push = True, on: On = None,
    device: DeviceName = "auto", restart: Restart = False, dry_run: DryRun = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make, check and publish every variant of a release file. A rerun redoes nothing that stands.

    quantkit release xverse-13b-chat --dry-run

    quantkit release ./xverse-13b-chat.yaml --namespace my-organisation

    quantkit release ./release.yaml --only gptq-int4 --no-push
    """
    if on not in (None, "github"):
        raise UsageError(f"--on {on!r} is not known", "--on github")
    from quantkit.release_file import load_release

    asked = _with_namespace(load_release(file), namespace)
    from quantkit.pipeline.release import default_folder, pinned_plan, run

    folder = out or default_folder(asked)
    if dry_run:
        plan = pinned_plan(asked, folder, only=only or (), device=device, restart=restart).as_dict()
        _show_plan(plan, as_json)
        return
    from quantkit.progress import Shown
    from quantkit.report.annotations import annotate

    with Shown() as progress:
        made = pinned_plan(asked, folder, only=only or (), device=device, restart=restart)
        record = run(made, progress, push=push, device=device, restart=restart)
    if on == "github":
        annotate(record)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        from quantkit.report.release_table import print_release

        print_release(folder, record)
    failed = [f"{one['name']}: {'; '.join(one['failed'])}" for one in record["variants"] if one["failed"]]
    if failed:
        raise QualityError(
            ". ".join(failed), f"what did not pass stays in {folder}; other limits: gates in the release file"
        )


def _with_namespace(asked: "ReleaseFile", namespace: str | None) -> "ReleaseFile":
    """The release as it is published under another namespace."""
    from quantkit.errors import BadInputError
    from quantkit.release_file import Push as PushFields
    from quantkit.strict_yaml import checked

    if namespace is None:
        return asked
    own = asked.push.model_dump() if asked.push else {}
    try:
        changed = checked(PushFields, {**own, "namespace": namespace}, "release")
    except BadInputError as error:
        raise UsageError(str(error).replace("release namespace", "option --namespace", 1), error.hint) from error
    return asked.model_copy(update={"push": changed})


def _show_plan(plan: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan, ensure_ascii=False))
    else:
        from quantkit.report.release_table import print_plan

        print_plan(plan)
