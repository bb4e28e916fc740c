"""What a family's tensors and settings are called in GGUF: names, orders and types, no code."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Piece:
    """A tensor of a GGUF file, and the modules of the checkpoint whose rows it is made of.

    Names stand without `.weight` and `.bias`, which go the same way, and without the layer's prefix. What is not
    said is taken as it is: one module, its rows in their order, no arithmetic.
    """

    name: str
    sources: tuple[str, ...]  # {expert} stands for 0, 1, 2 ...
    bias: Literal["never", "maybe", "always"] = "never"  # whether llama.cpp has a place for it, or asks for it
    heads: Literal["", "query", "key"] = ""  # within each head the halves of the rows are interleaved
    scale: str = ""  # a name of plan/gguf_rows.py's SCALES
    addend: float = 0.0
    optional: bool = False  # checkpoints of some configurations do not have it
    flat: bool = False  # one row, written as a vector
    also: str = ""  # the module's name in checkpoints that transformers 5 wrote as it computes
    fused: str = ""  # transformers 5 may store the experts as one tensor of this name, which has no `.weight`
    half: Literal["", "first", "second"] = ""  # which of the rows of each fused expert


@dataclass(frozen=True)
class Setting:
    """A value of the metadata, `<architecture>.<key>`, and where a configuration has it."""

    key: str
    kind: Literal["uint32", "float32"]
    names: tuple[str, ...]  # in transformers' complete configuration; the first that is there and not null
    default: float | None = None  # None: the key is left out where no name is there


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp knows a family."""

    family: str  # name of the Family
    architecture: str  # general.architecture
    outside: tuple[Piece, ...]  # of the decoder layers
    layer: tuple[Piece, ...]
    settings: tuple[Setting, ...]
    stored_head: bool = False  # the head must be there, even if it is the embedding
    activation: str = "silu"  # the only one that llama.cpp computes for it
    near_activation: str = ""  # one that it computes as `activation`, with errors of a few in ten thousand
    # The kinds of rotary embedding that it computes; none: it has none.
    rope: tuple[str, ...] = ("default", "linear", "yarn", "dynamic")
    positions: bool = False  # a table of sines is stored, as rows of an embedding of positions
    partial_rope: bool = False  # whether a part of each head may be rotated
    window_every: int = 0  # every n-th layer sees everything, the others a window; 0: windows are overlooked
    # Its largest model, known by its layers, divides scores by the square root of hidden_size / heads, not of head_dim.
    layers_of_largest: int = 0
    limits: tuple[str, ...] = ()  # names of plan/gguf_limits.py's LIMITS
    also: tuple[str, ...] = ()  # architectures of other tools' files with the same tensors
