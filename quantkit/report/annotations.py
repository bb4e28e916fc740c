"""What GitHub Actions shows of a release: an annotation for each variant, a table in the job's summary.

The form is that of GitHub's workflow commands: `::notice title=T::text`, on a line of stderr or stdout.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.report.release_table import markdown

SUMMARY = "GITHUB_STEP_SUMMARY"  # names the file that GitHub shows, set by the runner


def annotate(record: Mapping[str, Any]) -> None:
    """Print the annotations of release.json on stderr, and append its table to the job's summary."""
    for one in record["variants"]:
        if one["failed"]:
            line = f"::error title={_property(one['name'] + ' did not pass')}::{_text('; '.join(one['failed']))}"
        else:
            line = f"::notice title={_property(one['name'])}::{_text(one['url'] or one['status'])}"
        print(line, file=sys.stderr, flush=True)
    if place := os.environ.get(SUMMARY):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(f"## {record['base']['name']}\n\n{markdown(record)}\n")


def _text(text: str) -> str:
    """As GitHub's own toolkit escapes what stands behind the colons."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """The same inside of a property."""
    return _text(text).replace(":", "%3A").replace(",", "%2C")
