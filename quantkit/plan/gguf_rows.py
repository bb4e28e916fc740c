"""The plan of a GGUF file: a row per tensor, made from headers alone, each with what it is made of."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantkit.errors import BadInputError
from quantkit.families.family import Family
from quantkit.families.gguf_family import GgufFamily, Piece
from quantkit.families.layers import required
from quantkit.formats.gguf_transforms import Assembly, Numbers, Part, Sines
from quantkit.formats.mixtures import file_order
from quantkit.plan.gguf_limits import check_expressible
from quantkit.plan.gguf_rope import rope_tensors
from quantkit.plan.gguf_settings import SCALES, Config, experts, head_dim, size_of
from quantkit.tensors import TensorInfo

Infos = Mapping[str, TensorInfo]
# XGLM numbers its positions from here, and llama.cpp's GPT-2 from 0.
FIRST_POSITION = 2


@dataclass(frozen=True)
class GgufRow:
    """A tensor of the GGUF file."""

    name: str
    shape: tuple[int, ...]  # rows first
    assembly: Assembly


def gguf_rows(family: Family, gguf: GgufFamily, config: Config, infos: Infos) -> tuple[GgufRow, ...]:
    """Every tensor of the GGUF file of a checkpoint, in the order of llama.cpp's files.

    Args:
        family: names of the checkpoint's tensors.
        gguf: the family's row.
        config: complete (`complete_config`).
        infos: every tensor of the checkpoint, from headers.

    Raises:
        BadInputError: llama.cpp cannot express the model; a tensor is missing, too many, of an unexpected shape or
            not of a float dtype.
    """
    check_expressible(gguf, config)
    rows: list[GgufRow] = []
    for prefix, name, piece in _pieces(family, gguf, config):
        rows += _rows_of(prefix, name, piece, gguf, config, infos)
    rows += _computed(gguf, config)
    _check_surplus(family, gguf, config, infos, rows)
    return tuple(sorted(rows, key=lambda row: file_order(row.name)))


def _pieces(family: Family, gguf: GgufFamily, config: Config) -> Iterator[tuple[str, str, Piece]]:
    """Every piece with the prefix of its sources and of its name."""
    tied = bool(config.get("tie_word_embeddings"))
    for piece in gguf.outside:
        if piece.name != "output" or not tied:
            yield "", "", piece
        elif gguf.stored_head:
            yield "", "", Piece("output", (family.embedding,))
    for layer in range(size_of(gguf, config, "block_count")):
        for piece in gguf.layer:
            yield f"{family.layers}.{layer}.", f"blk.{layer}.", piece


def _rows_of(prefix: str, name: str, piece: Piece, gguf: GgufFamily, config: Config, infos: Infos) -> Iterator[GgufRow]:
    """The weight of a piece, and its bias where there is one."""
    if piece.fused and prefix + piece.fused in infos:
        yield _fused_experts(prefix + piece.fused, name, piece, config, infos)
        return
    sources = piece.sources
    if piece.also and f"{prefix}{piece.also}.weight" in infos:
        sources = (piece.also,)
    stacked = "{expert}" in sources[0]
    modules = [
        prefix + source.format(expert=expert)
        for source in sources
        for expert in range(experts(config) if stacked else 1)
    ]
    if not piece.optional or f"{modules[0]}.weight" in infos:
        yield _row(modules, name, "weight", piece, gguf, config, infos)
    biased = f"{modules[0]}.bias" in infos
    if piece.bias == "always" and not biased and config.get("use_bias") is False:
        zeros = Numbers((0.0,) * infos[f"{modules[0]}.weight"].shape[0])  # llama.cpp asks for them
        yield GgufRow(f"{name}{piece.name}.bias", (zeros.rows,), Assembly(1, (zeros,)))
    elif piece.bias == "always" or (piece.bias == "maybe" and biased):
        yield _row(modules, name, "bias", piece, gguf, config, infos)


def _row(
    modules: list[str], name: str, leaf: str, piece: Piece, gguf: GgufFamily, config: Config, infos: Infos
) -> GgufRow:
    """One tensor made of tensors of the same name in several modules, mostly one."""
    found = [_found(f"{module}.{leaf}", infos) for module in modules]
    inner = found[0].shape[1:]
    odd = next((info for info in found if len(info.shape) > 2 or info.shape[1:] != inner), None)
    if odd is not None:
        expected = str(["*", *inner]).replace("'", "")
        raise BadInputError(f"tensor {odd.name} in {odd.file} is {list(odd.shape)}, expected {expected}")
    columns = 1 if piece.flat or not inner else inner[0]
    size = _head_rows(found[0], piece, gguf, config) if piece.heads else 0
    parts = tuple(Part(info.name, info.elements // columns, head_rows=size) for info in found)
    shape = (sum(part.rows for part in parts), *(() if piece.flat else inner))
    if "{expert}" in piece.sources[0]:
        shape = (len(found), shape[0] // len(found), *inner)
        if any(info.shape != found[0].shape for info in found):
            raise BadInputError(f"experts of different shapes under {modules[0]}")
    scale = SCALES[piece.scale](gguf, config) if piece.scale else 1.0
    return GgufRow(f"{name}{piece.name}.{leaf}", shape, Assembly(columns, parts, piece.addend, scale))


def _fused_experts(source: str, name: str, piece: Piece, config: Config, infos: Infos) -> GgufRow:
    """One tensor out of a stack of experts, whose rows may be those of two matrices."""
    info, count = _found(source, infos), experts(config)
    halves = 2 if piece.half else 1
    if len(info.shape) != 3 or info.shape[0] != count or info.shape[1] % halves:
        raise BadInputError(
            f"tensor {source} in {info.file} is {list(info.shape)}, expected [{count}, *, *] for {count} experts"
        )
    rows, columns = info.shape[1] // halves, info.shape[2]
    offset = rows if piece.half == "second" else 0
    parts = tuple(Part(source, rows, expert * info.shape[1] + offset) for expert in range(count))
    return GgufRow(f"{name}{piece.name}.weight", (count, rows, columns), Assembly(columns, parts))


def _head_rows(info: TensorInfo, piece: Piece, gguf: GgufFamily, config: Config) -> int:
    """Rows of a head, of a tensor that has as many heads as the configuration says."""
    key = "attention.head_count" + ("_kv" if piece.heads == "key" else "")
    heads, size = size_of(gguf, config, key), head_dim(gguf, config)
    if info.shape[0] != heads * size or size % 2:
        raise BadInputError(
            f"tensor {info.name} in {info.file} is {list(info.shape)}, config.json asks for "
            f"{heads} heads of {size} rows"
        )
    return size


def _found(name: str, infos: Infos) -> TensorInfo:
    info = required(infos, name)
    if not info.elements or not info.shape:
        raise BadInputError(f"tensor {name} in {info.file} is {list(info.shape)}, expected a vector or a matrix")
    return info


def _computed(gguf: GgufFamily, config: Config) -> Iterator[GgufRow]:
    """Tensors that follow from the configuration."""
    for name, numbers in rope_tensors(gguf, config).items():
        yield GgufRow(name, (numbers.rows,), Assembly(1, (numbers,)))
    if gguf.positions:
        context, width = size_of(gguf, config, "context_length"), size_of(gguf, config, "embedding_length")
        table = Sines(context, FIRST_POSITION, zero=config.get("pad_token_id"))
        yield GgufRow("position_embd.weight", (context, width), Assembly(width, (table,)))


def _check_surplus(family: Family, gguf: GgufFamily, config: Config, infos: Infos, rows: list[GgufRow]) -> None:
    """Refuse tensors that would be lost: llama.cpp has no place for them."""
    used = {source for row in rows for source in row.assembly.sources}
    if config.get("tie_word_embeddings"):
        used.add(f"{family.head}.weight")  # .bin files hold the embedding a second time
    for name in sorted(infos.keys() - used):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.dropped):
            raise BadInputError(
                f"llama.cpp's architecture {gguf.architecture} has no place for tensor {name} in {infos[name].file}"
            )
