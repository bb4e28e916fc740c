"""Opens regular files only, and says what a file is that is not what its name promises."""

import stat
from pathlib import Path
from typing import BinaryIO

from quantkit.errors import BadInputError, DiskError, NotFoundError

MAX_SMALL_BYTES = 25_000_000  # of a header or a JSON file; the limit of the Hub
LONGEST_MESSAGE = 200  # bytes: a server's answer that was saved as a file is no longer
_AGAIN = "fetch the file again"
_POINTER = "run `git lfs pull` in its folder, or download the checkpoint with `hf download`"
_OTHER_FORMAT = "start from the safetensors or .bin files of the checkpoint"
# How a file begins (in lower case), what it is then, what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer instead of the file itself", _POINTER),
    (b"# xet version", "a Xet pointer instead of the file itself", _POINTER),
    (b"<!doctype html", "a web page", _AGAIN),
    (b"<html", "a web page", _AGAIN),
    (b"<?xml", "an XML page, as servers answer with", _AGAIN),
    (b'{"error', "a server's error message", _AGAIN),
    (b"gguf", "a GGUF file", _OTHER_FORMAT),
    (b"pk\x03\x04", "a zip file, such as torch.save writes", "weights of torch.save belong under pytorch_model.bin"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
)
_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading; what could block or never end is refused unopened.

    Raises:
        NotFoundError: there is no such file, or a link leads nowhere.
        BadInputError: a folder, a pipe, a socket or a device.
        DiskError: the disk refuses to read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_type, name in _TYPES if is_type(mode)), "something else")
            raise BadInputError(f"{path} is {kind}, expected a file")
        return path.open("rb")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise NotFoundError(f"{path} is a link to a file that is not there", _AGAIN) from error
        raise NotFoundError(f"no such file: {path}") from error
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error


def read_small(path: Path) -> bytes:
    """A small file's bytes.

    Raises:
        BadInputError: more than 25 MB, or no regular file.
        NotFoundError: there is no such file.
        DiskError: the disk refuses to read.
    """
    with open_regular(path) as file:
        try:
            raw = file.read(MAX_SMALL_BYTES + 1)
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_SMALL_BYTES:
        raise BadInputError(f"{path}: found {path.stat().st_size} bytes, expected at most {MAX_SMALL_BYTES}")
    return raw


def foreign_kind(raw: bytes, file_size: int) -> tuple[str, str] | None:
    """What a file is instead of what it should be, and a hint; None where its first bytes do not tell.

    Args:
        raw: the beginning of the file.
        file_size: bytes of the whole file.
    """
    if not file_size:
        return "an empty file", _AGAIN
    start = raw[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, kind, hint in _KINDS:
        if start.startswith(magic):
            return kind, hint
    text = raw[:LONGEST_MESSAGE].decode("ascii", "replace").strip()
    if file_size <= LONGEST_MESSAGE and text.isprintable() and text.isascii() and text[:1] not in "{[":
        return f"the text {text[:60]!r}", _AGAIN
    return None


def short(text: str) -> str:
    """At most a hundred characters of a text that a file chose."""
    return text if len(text) <= 100 else text[:97] + "..."
