"""`quantkit init`: options to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from quantkit.commands.gptq import AsJson, Source

Out = Annotated[Path | None, typer.Option("--out", "-o", help="The release file. [default: ./NAME.yaml]")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="User or organisation on the Hub where the release is published.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def init(
    model: Source, out: Out = None, namespace: Namespace = None, force: Force = False, as_json: AsJson = False
) -> None:
    """Write a release file: the commit of today, and variants for the model's size.

    Reads headers, configuration and tokenizer only; no weights are downloaded.

    quantkit init xverse/XVERSE-13B-Chat

    quantkit init Xwin-LM/Xwin-LM-70B-V0.1 --namespace my-organisation --out xwin-70b.yaml

    quantkit init ./my-model
    """
    from quantkit.pipeline.init import write_release

    record = write_release(model, out, namespace=namespace, force=force)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        from quantkit.report.init_table import print_draft

        print_draft(record)
