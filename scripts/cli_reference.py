"""docs/cli.md: what `quantkit --help` and `quantkit COMMAND --help` print, 100 columns wide, without colours.

Usage: python scripts/cli_reference.py [PATH], where PATH defaults to docs/cli.md.
"""

import os
import sys
from pathlib import Path

import typer

WIDTH = 100
HEAD = """# Command line

Made by `make docs` from the help texts; a test compares. Results go to stdout and everything else
to stderr; [errors.md](errors.md) lists the exit codes.
"""


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "cli.md"
    path.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole page."""
    from quantkit.cli import app

    group = typer.main.get_command(app)
    top = group.make_context("quantkit", [], **plain(), resilient_parsing=True)
    parts = [HEAD, section("quantkit", group.get_help(top))]
    for name in sorted(group.commands):
        command = group.commands[name]
        context = command.make_context(name, [], parent=top, **plain(), resilient_parsing=True)
        parts.append(section(f"quantkit {name}", command.get_help(context)))
    return "\n".join(parts)


def plain() -> dict[str, int]:
    """A context that asks no terminal for its width."""
    return {"terminal_width": WIDTH, "max_content_width": WIDTH}


def section(title: str, text: str) -> str:
    """A heading and the text as it is printed."""
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## {title}\n\n```\n{lines}\n```\n"


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    main()
