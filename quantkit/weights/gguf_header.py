"""The GGUF header: bounded, validated, and nothing of the file believed before it is checked."""

import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from quantkit.errors import BadInputError
from quantkit.weights.gguf_types import ALIGNMENT, ARRAY, GGML_TYPES, KINDS, GgufTensor, Value
from quantkit.weights.regular import foreign_kind, short

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 * 2**20  # the largest vocabularies take 20 MB
MAX_ITEMS = 2**22  # of all arrays together; a vocabulary of 262,144 tokens and its merges are 1.3 million
MAX_KEYS = 2**16
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 2**16 - 1
MAX_RANK = 4
MAX_ELEMENTS = 2**48
MAX_ALIGNMENT = 2**16
FIRST_BYTES = 2**16  # one read; each further one doubles what is there
_COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_KIND_OF = {number: kind for kind, (number, _) in KINDS.items()}
_TYPE_OF = {ggml.number: name for name, ggml in GGML_TYPES.items()}
_BEFORE_GGUF = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
_DAMAGED = "the file is damaged or incomplete; fetch it again"
_TOO_OLD = "make the file anew with a current converter"
_TOO_NEW = "quantkit does not know this type; requantize the tensor"


@dataclass(frozen=True)
class GgufHeader:
    """What a header says, its offsets counted from the first byte of the file."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]  # in the order of the file
    alignment: int


def parse_gguf(file: BinaryIO, size: int, name: str) -> GgufHeader:
    """The header of one GGUF file, of version 2 or 3 and little-endian.

    Follows docs/gguf.md of ggml, but for arrays of arrays, which llama.cpp refuses as well.

    Args:
        file: at its first byte, read as far as the header goes.
        size: bytes of the whole file.
        name: its name, kept in every `GgufTensor`.

    Raises:
        BadInputError: a rule of the format is broken, the file is shorter than its header says, or
            it is another kind of file.
        OSError: the disk refuses to read.
    """
    cursor = _Cursor(file, size, name)
    version, tensor_count, key_count = cursor.counts()
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(cursor, metadata)
    return GgufHeader(version, metadata, _tensors(cursor, tensor_count, alignment), alignment)


class _Cursor:
    """The beginning of a file, read as far as needed, and a place in it.

    Attributes:
        part: what is being read, for messages.
    """

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self.size, self.name = size, name
        self.part = "the header"
        self.at = 0
        self._file = file
        self._raw = b""

    def bad(self, found: str, hint: str = _DAMAGED) -> BadInputError:
        """The error that refuses the file."""
        return BadInputError(f"{self.name}: found {found}", hint)

    def reach(self, end: int) -> bytes:
        """The file's first bytes, at least up to `end`."""
        if end > len(self._raw):
            if end > self.size:
                raise self.bad(f"a file of {self.size} bytes, expected at least {end} from {self.part}")
            if end > MAX_HEADER_BYTES:
                raise self.bad(f"{self.part} up to byte {end}, expected a header of at most {MAX_HEADER_BYTES} bytes")
            wanted = max(end, 2 * len(self._raw), FIRST_BYTES)
            self._raw += self._file.read(wanted - len(self._raw))
            if len(self._raw) < end:
                raise self.bad(f"{len(self._raw)} bytes in {self.part}, expected {self.size}: it became shorter")
        return self._raw

    def numbers(self, letter: str, count: int = 1) -> tuple[int | float | bool, ...]:
        """The next numbers, of struct's type `letter`."""
        layout = f"<{count}{letter}"
        end = self.at + struct.calcsize(layout)
        raw = self.reach(end)
        if letter == "?" and max(raw[self.at : end], default=0) > 1:
            raise self.bad(f"a truth value of {max(raw[self.at : end])} in {self.part}, expected 0 or 1")
        values = struct.unpack_from(layout, raw, self.at)
        self.at = end
        return values

    def number(self, letter: str) -> int:
        """The next number, a whole one."""
        return int(self.numbers(letter)[0])

    def texts(self, count: int) -> tuple[str, ...]:
        """The next texts, each behind its length."""
        # A vocabulary is half a million of them: no call for each but the two that it needs.
        length_of = struct.Struct("<Q").unpack_from
        raw, at = self._raw, self.at
        found = []
        try:
            for _ in range(count):
                start = at + 8
                if start > len(raw):
                    raw = self.reach(start)
                at = start + length_of(raw, at)[0]
                if at > len(raw):
                    raw = self.reach(at)
                found.append(raw[start:at].decode())
        except UnicodeDecodeError as error:
            raise self.bad(f"a text in {self.part} that is not UTF-8 ({error.reason})") from error
        self.at = at
        return tuple(found)

    def name_of(self, what: str) -> str:
        """The next text as a name of its own, and from now on the part that is being read."""
        self.part = f"the name of {what}"
        length = self.number("Q")
        if not 1 <= length <= MAX_NAME_BYTES:
            raise self.bad(f"{length} bytes for {self.part}, expected 1 to {MAX_NAME_BYTES}")
        self.at -= 8
        (name,) = self.texts(1)
        if not name.isprintable():
            raise self.bad(f"{self.part} {short(repr(name))}, expected printable characters")
        self.part = f"{what.partition(' ')[0]} {short(name)!r}"
        return name

    def counts(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of keys: the first 24 bytes."""
        raw = self.reach(min(self.size, _COUNTS.size))
        if raw[:4] != MAGIC:
            if raw[:4] in _BEFORE_GGUF:
                raise self.bad(f"a {_BEFORE_GGUF[raw[:4]]} file from before GGUF, expected GGUF", _TOO_OLD)
            foreign = foreign_kind(raw, self.size)
            if foreign and foreign[0] != "a GGUF file":
                raise BadInputError(f"{self.name}: found {foreign[0]}, expected a GGUF file", foreign[1])
            raise self.bad(f"a file that begins with {raw[:4]!r}, expected {MAGIC!r}")
        _, version, tensors, keys = _COUNTS.unpack_from(self.reach(_COUNTS.size))
        if version == 1:
            raise self.bad("GGUF version 1, expected 2 or 3", _TOO_OLD)
        if version and not version & 0xFFFF:
            raise self.bad("a big-endian GGUF file, expected a little-endian one", "convert the model for this machine")
        if version not in VERSIONS:
            raise self.bad(f"GGUF version {version}, expected 2 or 3")
        for count, most, what in ((tensors, MAX_TENSORS, "tensors"), (keys, MAX_KEYS, "metadata keys")):
            if count > most:
                raise self.bad(f"{count} {what}, expected at most {most}")
        self.at = _COUNTS.size
        return version, tensors, keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    items = 0
    for place in range(count):
        key = cursor.name_of(f"key {place}")
        if key in metadata:
            raise cursor.bad(f"{cursor.part} twice, expected each key once")
        metadata[key] = value = _value(cursor, MAX_ITEMS - items)
        if value.is_array:
            items += len(value.value)  # type: ignore[arg-type]
    return metadata


def _value(cursor: _Cursor, most: int) -> Value:
    number, count = cursor.number("I"), None
    if number == ARRAY:
        number, count = cursor.number("I"), cursor.number("Q")
        if number == ARRAY:
            raise cursor.bad(f"an array of arrays in {cursor.part}, expected one of numbers or texts")
    if number not in _KIND_OF:
        raise cursor.bad(f"{cursor.part} of type {number}, expected one of {sorted([ARRAY, *_KIND_OF])}")
    kind = _KIND_OF[number]
    letter = KINDS[kind][1]
    if count is None:
        return Value(kind, (cursor.texts(1) if kind == "string" else cursor.numbers(letter))[0])
    if count > most:
        raise cursor.bad(f"{count} values in {cursor.part}, expected at most {most} more")
    cursor.reach(cursor.at + count * struct.calcsize(f"<{letter}"))  # no list is grown that the file cannot fill
    values = cursor.texts(count) if kind == "string" else cursor.numbers(letter, count)
    return Value(kind, values)


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    cursor.part = "general.alignment"
    value = metadata.get(cursor.part, Value("uint32", ALIGNMENT))
    found = value.value
    if value.kind != "uint32" or not isinstance(found, int):
        raise cursor.bad(f"{cursor.part} of another type than uint32")
    if not 1 <= found <= MAX_ALIGNMENT or found & (found - 1):
        raise cursor.bad(f"{cursor.part} {found}, expected a power of two up to {MAX_ALIGNMENT}")
    return found


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    """The tensors, each where the one before and its padding ended: ggml takes no others."""
    stated: dict[str, GgufTensor] = {}
    end = padded = 0
    for place in range(count):
        tensor = _tensor(cursor, place)
        if tensor.name in stated:
            raise cursor.bad(f"{cursor.part} twice, expected each name once")
        if tensor.offset != padded:
            raise cursor.bad(f"{cursor.part} at byte {tensor.offset} of the data, expected {padded}")
        stated[tensor.name] = tensor
        end = padded + tensor.nbytes
        padded = -(-end // alignment) * alignment
    data_start = -(-cursor.at // alignment) * alignment
    if count and data_start + end > cursor.size:
        expected = f"expected at least {data_start + end} from its header"
        raise cursor.bad(f"a file of {cursor.size} bytes, {expected}")
    return {
        name: replace(tensor, file=cursor.name, offset=data_start + tensor.offset) for name, tensor in stated.items()
    }


def _tensor(cursor: _Cursor, place: int) -> GgufTensor:
    """One tensor as the header states it, its offset from the first byte of the data."""
    name = cursor.name_of(f"tensor {place}")
    rank = cursor.number("I")
    if rank > MAX_RANK:
        raise cursor.bad(f"{cursor.part} of {rank} sizes, expected up to {MAX_RANK}")
    sizes = [int(size) for size in cursor.numbers("Q", rank)]
    elements = 1
    for size in sizes:
        # A zero must not hide that the other sizes overflow when strides are computed.
        elements *= max(size, 1)
    if elements > MAX_ELEMENTS:
        raise cursor.bad(f"{cursor.part} of sizes {sizes}, expected <= 2**48 weights")
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in _TYPE_OF:
        raise cursor.bad(f"{cursor.part} of ggml type {number}, expected one of {sorted(_TYPE_OF)}", _TOO_NEW)
    ggml = GGML_TYPES[_TYPE_OF[number]]
    columns = sizes[0] if sizes else 1
    if columns % ggml.block:
        expected = f"expected a multiple of {ggml.block} for {ggml.name}"
        raise cursor.bad(f"{cursor.part} with rows of {columns} weights, {expected}")
    return GgufTensor(name, tuple(reversed(sizes)), ggml.name, offset=offset)
