"""The zip form of torch.save: its records and where their bytes stand; neither torch nor a pickle is loaded."""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.header import refuse_foreign
from quantkit.weights.regular import open_regular, short

HINT = "use the safetensors files of this checkpoint, or convert it where you trust its author"
MAX_PICKLE_BYTES = 64 * 2**20
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
FIRST_BYTES = 1024  # enough to tell a file of another kind
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record; the two lengths that end it
_DAMAGED = "the file is damaged or incomplete; fetch it again"
# What the zip reader raises on damaged or hostile files.
ZIP_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def read_records(path: Path) -> tuple[bytes, dict[str, range]]:
    """The pickle, and where each storage stands in the file, by its key.

    Raises:
        BadInputError: another form of file, or a directory that is not one of torch.save's.
        NotFoundError: there is no such file.
        DiskError: the file cannot be read.
    """
    try:
        return _read_records(path)
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror or error}") from error
    except ZIP_ERRORS as error:
        found = f"records that cannot be read ({short(str(error) or type(error).__name__)})"
        raise BadInputError(f"{path.name}: found {found}, expected those of torch.save", HINT) from error


def _read_records(path: Path) -> tuple[bytes, dict[str, range]]:
    with open_regular(path) as file:
        beginning = file.read(FIRST_BYTES)
        if not beginning.startswith(ZIP_MAGIC):
            expected = "the zip form of torch.save (torch 1.6 and later)"
            refuse_foreign(beginning, os.fstat(file.fileno()).st_size, path.name, expected)
            old = beginning.startswith(PICKLE_MAGIC)
            found = "a bare pickle, as older versions wrote it" if old else f"{beginning[: len(ZIP_MAGIC)]!r} in front"
            raise BadInputError(f"{path.name}: found {found}, expected {expected}", HINT)
        with _open_archive(file, path.name) as archive:
            records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
            if problem := _problem(records, len(archive.infolist())):
                raise BadInputError(f"{path.name}: found {problem}", HINT)
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise BadInputError(f"{path.name}: found big-endian numbers, expected little-endian", HINT)
            text = archive.read(records["data.pkl"])
        places: dict[str, range] = {}
        for name, record in records.items():
            if name.startswith("data/"):
                file.seek(record.header_offset)
                lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                start = record.header_offset + LOCAL_HEADER.size + sum(lengths)
                places[name.removeprefix("data/")] = range(start, start + record.file_size)
    return text, places


def _open_archive(file: BinaryIO, file_name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        size = os.fstat(file.fileno()).st_size
        found = f"a zip file of {size} bytes without its directory ({short(str(error))})"
        raise BadInputError(f"{file_name}: found {found}, expected it at the end of the file", _DAMAGED) from error


def _problem(records: Mapping[str, zipfile.ZipInfo], count: int) -> str | None:
    """What is wrong with the zip file's directory, if anything."""
    if len(records) < count:
        return "two records of one name in the zip file"
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        return "compressed records, expected plain ones"
    if any(record.header_offset < 0 for record in records.values()):
        return "a record that begins before the file"
    if "data.pkl" not in records or records["data.pkl"].file_size > MAX_PICKLE_BYTES:
        return f"no data.pkl of up to {MAX_PICKLE_BYTES} bytes"
    return None
