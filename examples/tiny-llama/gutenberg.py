"""Read a Project Gutenberg text file: the book without the wrapping, and where it came from."""

import hashlib
import re
from pathlib import Path


def book_text(path: Path) -> str:
    """The book without Project Gutenberg's header, footer, credits and carriage returns."""
    text = path.read_text(encoding="utf-8-sig")
    body = re.split(r"^\*\*\* ?(?:START|END) OF TH.*$", text, flags=re.MULTILINE)[1]
    return re.sub(r"(?:Produced by|End of (?:the )?Project Gutenberg).*\n", "", body).strip() + "\n"


def source_of(path: Path) -> dict[str, str]:
    """Title, Gutenberg number and sha256 of the whole file, header included."""
    raw = path.read_bytes()
    head = raw[:4000].decode("utf-8-sig", errors="replace")
    fields = {"title": r"Title: (.*?)\r?\n", "gutenberg_number": r"(?i)\[ebook #(\d+)\]"}
    found = {name: re.search(pattern, head) for name, pattern in fields.items()}
    named = {name: match[1] if match else "unknown" for name, match in found.items()}
    return named | {"sha256": hashlib.sha256(raw).hexdigest()}
