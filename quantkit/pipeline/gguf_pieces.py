"""A conversion cut into pieces: tensor by tensor, or as the shards of a streamed source come."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from quantkit.formats.gguf_transforms import sources_of
from quantkit.pipeline.gguf_slabs import Piece, slabs
from quantkit.plan.gguf_rows import GgufRow

Files = Callable[[tuple[str, ...]], tuple[str, ...]]  # tensors -> their shards, in the order of the repository


def in_order_of_files(rows: Sequence[GgufRow], numbers: Iterable[int]) -> list[Piece]:
    """A piece per tensor.

    Args:
        rows: of the plan.
        numbers: of those that are to be made.
    """
    return [Piece(number, tuple(slabs(rows[number])), rows[number].assembly.sources) for number in numbers]


def in_order_of_shards(rows: Sequence[GgufRow], numbers: Iterable[int], files: Files) -> list[Piece]:
    """Pieces in an order that needs every shard in one stretch, whatever the order of the tensors in the GGUF file.

    A tensor that is put together from several shards, such as a stack of experts, becomes a piece per shard. What
    needs two shards at once comes when the second of them does, before all else that needs that one.

    Args:
        rows: of the plan.
        numbers: of those that are to be made.
        files: where tensors of the checkpoint are stored.
    """
    placed = []
    for number in numbers:
        assembly = rows[number].assembly
        told = [(slab, sources_of(assembly, slab.first, slab.end)) for slab in slabs(rows[number])]
        for shards, group in groupby(told, key=lambda one: files(one[1])):
            part = list(group)
            sources = tuple(dict.fromkeys(name for _, names in part for name in names))
            placed.append(((shards[-1:], shards), Piece(number, tuple(slab for slab, _ in part), sources)))
    return [piece for _, piece in sorted(placed, key=lambda one: one[0])]
