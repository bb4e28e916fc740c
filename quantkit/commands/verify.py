"""`quantkit verify`: options to one pipeline call, and its result printed."""

import json
from typing import Annotated

import typer

from quantkit.commands.gptq import AsJson

Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="A folder, or org/name[@revision] on the Hub.")]


def verify(artifact: Artifact, as_json: AsJson = False) -> None:
    """Say whether an artifact is what its manifest says: every file hashed, every tensor read.

    Leaves with exit code 3 if anything differs.

    quantkit verify ./XVERSE-13B-Chat-GPTQ-Int4

    quantkit verify org/XVERSE-13B-Chat-GGUF@v1.0 --json
    """
    from quantkit.pipeline.verify import refuse, verify_reference
    from quantkit.progress import Shown

    with Shown() as progress:
        found = verify_reference(artifact, progress)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        from quantkit.report.verify_table import print_verification

        print_verification(found)
    refuse(found)
