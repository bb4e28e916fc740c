"""`quantkit push`: options to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of quantkit gptq or quantkit gguf.")]
Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hub; made if absent.")]
Branch = Annotated[
    str | None,
    typer.Option("--branch", help="A branch, made if absent; auto: one named by the variant. [default: main]"),
]
Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="Of a new repository. [default: private where the base model is gated]"),
]
CollectionTitle = Annotated[
    str | None,
    typer.Option("--collection", help="List it in the collection of this title, made if absent."),
]
Tag = Annotated[str | None, typer.Option("--tag", help="Give the commit a tag. A tag that exists is never moved.")]
Force = Annotated[bool, typer.Option("--force", help="Publish without a check that counts; the card says so.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print files, target and card, and change nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def push(
    folder: Folder, repo_id: Repository, branch: Branch = None, private: Private = None,
    collection: CollectionTitle = None, tag: Tag = None, force: Force = False, dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish a checked artifact with its card, in one commit. Repeating it changes nothing.

    quantkit push ./XVERSE-13B-Chat-GPTQ-Int4 my-org/XVERSE-13B-Chat-GPTQ-Int4

    quantkit push ./Int4-g32 my-org/XVERSE-13B-Chat-GPTQ --branch auto --tag v1.0

    quantkit push ./XVERSE-13B-Chat-GGUF my-org/XVERSE-13B-Chat-GGUF --dry-run
    """
    from quantkit.pipeline.push import PushOptions, description, prepare, run
    from quantkit.progress import Shown
    from quantkit.report.push_table import print_plan, print_result

    options = PushOptions(branch, private, force, collection, tag)
    if dry_run:
        job = prepare(folder, repo_id, options, dry_run=True)
        plan = description(job) | {"card": job.card}
        print(json.dumps(plan, ensure_ascii=False)) if as_json else print_plan(plan)
        return
    with Shown() as progress:
        job = prepare(folder, repo_id, options)
        for line in job.notes:
            progress.say(line)
        record = run(job, progress)
    print(json.dumps(record, ensure_ascii=False)) if as_json else print_result(record)
