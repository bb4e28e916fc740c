"""`quantkit download`: options to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.commands.gptq import AsJson

Repository = Annotated[str, typer.Argument(metavar="REPOSITORY", help="org/name or org/name@revision on the Hub.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="A folder for the files. [default: the Hugging Face cache]")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print files, sizes and what is missing; fetch nothing.")]


def download(repository: Repository, out: Out = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Fetch a checkpoint from the Hub at one commit, every file verified.

    What is here already is not fetched again; an interrupted download continues.

    quantkit download xverse/XVERSE-13B-Chat

    quantkit download xverse/XVERSE-13B-Chat@main --out ./xverse-13b-chat

    quantkit download Xwin-LM/Xwin-LM-70B-V0.1 --dry-run
    """
    from quantkit.pipeline.download import prepare, run

    job = prepare(repository, out)
    if dry_run:
        _show(job.as_dict(), as_json)
        return
    from quantkit.progress import Shown

    with Shown() as progress:
        record = run(job, progress)
    _show(record, as_json)


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        from quantkit.report.download_table import print_download

        print_download(record)
