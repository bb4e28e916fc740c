"""The bytes in front of the tensors of a GGUF file, and where each tensor will stand: known before any weight."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.errors import BadInputError, UsageError
from quantkit.weights.gguf_types import ALIGNMENT, ARRAY, GGML_TYPES, KINDS, GgufTensor, Value

VERSION = 3
MAX_NAME_BYTES = 63  # of a tensor: ggml keeps a zero byte behind them
MAX_RANK = 4
MAX_PARTS = 2**16 - 1  # split.count is a uint16
_COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"
Stated = tuple[str, Sequence[int], str]  # name, sizes with the rows first, ggml type


@dataclass(frozen=True)
class Header:
    """Everything of a GGUF file but its tensors' bytes."""

    raw: bytes  # up to the first tensor
    tensors: tuple[GgufTensor, ...]  # in the order of the file, offsets from its first byte
    total_bytes: int


@dataclass(frozen=True)
class Part:
    """One file of a model."""

    file_name: str
    header: Header


def layout(
    metadata: Mapping[str, Value], tensors: Sequence[Stated], alignment: int = ALIGNMENT, file_name: str = ""
) -> Header:
    """The header of a GGUF file of version 3, the very bytes that gguf-py's GGUFWriter writes.

    Args:
        metadata: in the order in which it is written, but `general.architecture` comes first;
            `general.alignment` is added where it is not 32.
        tensors: in the order of the file.
        alignment: bytes; every tensor begins at a multiple, and the file ends at one.
        file_name: kept in every `GgufTensor`.

    Raises:
        BadInputError: a text that is not Unicode, a name that llama.cpp would not load, rows that are
            not whole blocks.
        ValueError: a name twice, an unknown type or kind, an alignment that is no power of two or not
            the one of the metadata.
    """
    keys = _pack_metadata(_ordered(metadata, alignment))
    infos, relative = [], []
    end = 0
    for name, shape, ggml_type in tensors:
        tensor = GgufTensor(name, tuple(shape), ggml_type, file_name, end)
        infos.append(_pack_tensor(tensor))
        relative.append(tensor)
        end += _padded(tensor.nbytes, alignment)
    if len({tensor.name for tensor in relative}) < len(relative):
        raise ValueError("a tensor name occurs twice")
    raw = _COUNTS.pack(b"GGUF", VERSION, len(infos), len(keys)) + b"".join([*keys, *infos])
    raw += bytes(-len(raw) % alignment)
    placed = (GgufTensor(row.name, row.shape, row.type, file_name, len(raw) + row.offset) for row in relative)
    return Header(raw, tuple(placed), len(raw) + end)


def split_plan(
    stem: str,
    metadata: Mapping[str, Value],
    tensors: Sequence[Stated],
    max_bytes: int | None = None,
    alignment: int = ALIGNMENT,
) -> tuple[Part, ...]:
    """The files of a model: `STEM.gguf`, or as many parts as the limit asks for.

    Parts are named and keyed as by llama-gguf-split and gguf-py; the first has all the metadata. They
    count the tensors' bytes for the limit, this counts the file's.

    Args:
        stem: file name without `.gguf`.
        metadata: of the model, without split keys.
        tensors: in order.
        max_bytes: of a file; only one that holds a single tensor may be larger. None: one file.
        alignment: as for `layout`.

    Raises:
        UsageError: more parts than `split.count` can say.
        BadInputError, ValueError: as for `layout`.
    """
    whole = layout(metadata, tensors, alignment, f"{stem}.gguf")
    if max_bytes is None or whole.total_bytes <= max_bytes:
        return (Part(f"{stem}.gguf", whole),)
    aligned = {_ALIGNMENT: Value("uint32", alignment)} if alignment != ALIGNMENT else {}
    groups = _grouped(metadata, aligned, tensors, max_bytes, alignment)
    if len(groups) == 1:
        return (Part(f"{stem}.gguf", whole),)
    if len(groups) > MAX_PARTS:
        raise UsageError(f"found {len(groups)} parts of at most {max_bytes} bytes, expected up to {MAX_PARTS}")
    parts = []
    for number, group in enumerate(groups):
        name = f"{stem}-{number + 1:05d}-of-{len(groups):05d}.gguf"
        keys = {**(aligned if number else metadata), **_split_keys(number, len(groups), len(tensors))}
        parts.append(Part(name, layout(keys, group, alignment, name)))
    return tuple(parts)


def _grouped(
    metadata: Mapping[str, Value],
    aligned: Mapping[str, Value],
    tensors: Sequence[Stated],
    max_bytes: int,
    alignment: int,
) -> list[list[Stated]]:
    """The tensors of each part: as many as fit beside its header."""
    keys = _split_keys(0, 0, 0)
    every = {**_ordered(metadata, alignment), **keys}, {**aligned, **keys}
    bases = [_COUNTS.size + sum(map(len, _pack_metadata(part))) for part in every]
    groups: list[list[Stated]] = [[]]
    head, data = bases[0], 0
    for stated in tensors:
        name, shape, ggml_type = stated
        tensor = GgufTensor(name, tuple(shape), ggml_type)
        info, size = len(_pack_tensor(tensor)), _padded(tensor.nbytes, alignment)
        if groups[-1] and _padded(head + info, alignment) + data + size > max_bytes:
            groups.append([])
            head, data = bases[1], 0
        groups[-1].append(stated)
        head, data = head + info, data + size
    return groups


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    return {
        "split.no": Value("uint16", number),
        "split.count": Value("uint16", count),
        "split.tensors.count": Value("int32", tensors),
    }


def _ordered(metadata: Mapping[str, Value], alignment: int) -> dict[str, Value]:
    """The metadata in the order in which it is written."""
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment}, expected a power of two")
    stated = metadata.get(_ALIGNMENT, Value("uint32", ALIGNMENT))
    if _ALIGNMENT in metadata and stated != Value("uint32", alignment):
        raise ValueError(f"{_ALIGNMENT} {stated.value} in the metadata, expected the uint32 {alignment}")
    first = {_ARCHITECTURE: metadata[_ARCHITECTURE]} if _ARCHITECTURE in metadata else {}
    added = {_ALIGNMENT: Value("uint32", alignment)} if alignment != ALIGNMENT and _ALIGNMENT not in metadata else {}
    return {**first, **added, **metadata}


def _pack_metadata(metadata: Mapping[str, Value]) -> list[bytes]:
    return [_pack_texts([key], key) + _pack_value(key, value) for key, value in metadata.items()]


def _pack_value(key: str, value: Value) -> bytes:
    if value.kind not in KINDS:
        raise ValueError(f"{key} of kind {value.kind!r}, expected one of {list(KINDS)}")
    number, letter = KINDS[value.kind]
    items: Sequence[object] = value.value if value.is_array else [value.value]  # type: ignore[assignment]
    wanted = {"string": str, "bool": bool}.get(value.kind)
    if wanted and not all(isinstance(item, wanted) for item in items):
        raise ValueError(f"{key} of kind {value.kind} with values of another type")
    try:
        data = _pack_texts(items, key) if value.kind == "string" else struct.pack(f"<{len(items)}{letter}", *items)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{key}: a value that is no {value.kind} ({error})") from error
    return (struct.pack("<IIQ", ARRAY, number, len(items)) if value.is_array else struct.pack("<I", number)) + data


def _pack_texts(texts: Iterable[object], key: str) -> bytes:
    """Texts, each behind its length."""
    length = struct.Struct("<Q").pack
    packed: list[bytes] = []
    try:
        for text in texts:
            raw = str(text).encode()
            packed += (length(len(raw)), raw)
    except UnicodeEncodeError as error:
        raise BadInputError(f"{key}: found a text with half of a surrogate pair, expected Unicode") from error
    return b"".join(packed)


def _pack_tensor(tensor: GgufTensor) -> bytes:
    """A tensor's entry; its offset counts from the first tensor."""
    if tensor.type not in GGML_TYPES:
        raise ValueError(f"tensor {tensor.name!r} of type {tensor.type!r}, expected one of {list(GGML_TYPES)}")
    name = _pack_texts([tensor.name], tensor.name)
    if not 1 <= len(name) - 8 <= MAX_NAME_BYTES:
        raise BadInputError(f"found tensor name {tensor.name!r}, expected 1 to {MAX_NAME_BYTES} bytes")
    rank = len(tensor.shape)
    if not 1 <= rank <= MAX_RANK:
        raise BadInputError(f"found tensor {tensor.name!r} of {rank} sizes, expected 1 to {MAX_RANK}")
    sizes = struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
    return name + sizes + struct.pack("<IQ", GGML_TYPES[tensor.type].number, tensor.offset)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
