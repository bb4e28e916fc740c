"""GGUF files byte by byte, right or wrong, without the code under test."""

import struct

LETTERS = {
    "uint8": (0, "B"), "int8": (1, "b"), "uint16": (2, "H"), "int16": (3, "h"), "uint32": (4, "I"), "int32": (5, "i"),
    "float32": (6, "f"), "bool": (7, "?"), "uint64": (10, "Q"), "int64": (11, "q"), "float64": (12, "d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
F32, Q4_0, Q8_0 = 0, 2, 8


def text(value):
    """A text behind its length."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(number, raw):
    """A value behind the number of its type."""
    return struct.pack("<I", number) + raw


def scalar(kind, value):
    if kind == "string":
        return typed(STRING, text(value))
    number, letter = LETTERS[kind]
    return typed(number, struct.pack(f"<{letter}", value))


def array(kind, values):
    if kind == "string":
        return typed(ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))
    number, letter = LETTERS[kind]
    return typed(ARRAY, struct.pack(f"<IQ{len(values)}{letter}", number, len(values), *values))


def key(name, value):
    return text(name) + value


def tensor(name, sizes, number=F32, offset=0, rank=None):
    """A tensor's entry; sizes in the order of the file, columns first."""
    rank = len(sizes) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", rank, *sizes, number, offset)


def gguf(keys=(), tensors=(), data=b"", *, version=3, magic=b"GGUF", alignment=32, counts=None):
    """A file of these entries."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    raw = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join([*keys, *tensors])
    return raw + bytes(-len(raw) % alignment) + data
