"""The best file type whose file is no larger than a size that the user names."""

import math
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.errors import UsageError
from quantkit.formats.mixture_tables import FTYPES, is_quantized
from quantkit.formats.mixtures import Described, Override, assign, without_importance
from quantkit.units import format_bytes, parse_bytes
from quantkit.weights.gguf_types import ALIGNMENT, GGML_TYPES

# Mean KL divergence from the 16-bit model in nats per token, without and with an importance matrix: Llama 3 8B on
# wikitext-2, from the scoreboard in llama.cpp's tools/perplexity/README.md (revision f364eb6f; where it lists several
# matrices, the one of 10 million tokens). None: not measured there. A type that it does not list is never chosen:
# F32 holds no more than 16 bits did, TQ1_0 and TQ2_0 are for ternary weights, MXFP4_MOE for models trained in it.
PUBLISHED_LOSS: dict[str, tuple[float | None, float | None]] = {
    "BF16": (0.0, None),
    "Q8_0": (0.001355, None),
    "Q6_K": (0.005452, None),
    "Q5_K_M": (0.010762, None),
    "Q5_K_S": (0.016595, None),
    "Q5_1": (0.018045, None),
    "Q5_0": (0.022239, None),
    "Q4_K_M": (0.031273, 0.028152),
    "Q4_K_S": (0.043136, 0.031951),
    "IQ4_NL": (None, 0.035742),
    "IQ4_XS": (None, 0.036334),
    "Q4_1": (0.071683, None),
    "Q4_0": (0.071940, None),
    "Q3_K_L": (0.087176, 0.073077),
    "Q3_K_M": (0.101913, 0.084358),
    "IQ3_M": (None, 0.102534),
    "IQ3_S": (None, 0.111278),
    "IQ3_XS": (None, 0.138693),
    "IQ3_XXS": (None, 0.183625),
    "Q3_K_S": (0.228217, 0.199821),
    "IQ2_M": (None, 0.325989),
    "Q2_K": (0.445132, 0.332223),
    "Q2_K_S": (None, 0.403360),
    "IQ2_S": (None, 0.439197),
    "IQ2_XS": (None, 0.546290),
    "IQ2_XXS": (None, 0.812022),
    "IQ1_M": (None, 1.393084),
    "IQ1_S": (None, 2.254554),
}


@dataclass(frozen=True)
class Shape:
    """What the mixtures ask of a model besides its tensors."""

    heads: int
    kv_heads: int
    layers: int
    experts: int
    architecture: str


@dataclass(frozen=True)
class Candidate:
    """A file type that could be made."""

    ftype: str
    nbytes: int  # of the file
    loss: float  # published, of another model: it orders, it does not predict


def best_fitting(target: str, possible: Sequence[Candidate]) -> Candidate:
    """The candidate of the least published loss whose file fits; of equal ones the smaller.

    Args:
        target: the size at the most, such as 8.0GB or 7.5GiB.
        possible: what `candidates` found.

    Raises:
        UsageError: nothing that can be made is that small; it names the smallest.
    """
    limit = parse_bytes(target)
    fitting = [candidate for candidate in possible if candidate.nbytes <= limit]
    if fitting:
        return min(fitting, key=lambda candidate: (candidate.loss, candidate.nbytes))
    if not possible:
        raise UsageError("no file type can be made: an override asks for what needs an importance matrix or the extra")
    least = min(possible, key=lambda candidate: candidate.nbytes)
    more = "; with --imatrix auto and the extra quantkit[ggml] there are smaller types"
    raise UsageError(
        f"nothing fits in {format_bytes(limit)}: the smallest is {least.ftype} with {format_bytes(least.nbytes)}",
        f"raise --target-size{more if least.ftype != 'IQ1_S' else ''}",
    )


def candidates(
    tensors: Sequence[Described],
    model: Shape,
    *,
    header_bytes: int,
    encodable: Collection[str],
    important: Container[str] | None = None,
    overrides: Sequence[Override] = (),
    alignment: int = ALIGNMENT,
) -> tuple[Candidate, ...]:
    """Every file type that can be made with what there is, and the exact size of its file.

    Args:
        tensors: all of the file.
        model: its hyperparameters.
        header_bytes: metadata and tensor infos, padding included.
        encodable: the ggml types that can be made here.
        important: names of which an importance matrix tells, None without one.
        overrides: as `assign` takes them.
        alignment: bytes to which tensor data are padded.
    """
    found = []
    for ftype, loss in _losses(important is not None).items():
        if overrides and not is_quantized(FTYPES[ftype].default):
            continue
        wanted: dict[str, Any] = asdict(model)
        types = assign(tensors, ftype, **wanted, has_importance=important is not None, overrides=overrides)
        lacking = without_importance(tensors, types, ftype, important or ())
        if not lacking and set(types) <= set(encodable):
            found.append(Candidate(ftype, file_bytes(tensors, types, header_bytes, alignment), loss))
    return tuple(found)


def file_bytes(
    tensors: Sequence[Described], types: Sequence[str], header_bytes: int, alignment: int = ALIGNMENT
) -> int:
    """Bytes of a GGUF file: its header, and every tensor padded to the alignment."""
    total = header_bytes
    for tensor, chosen in zip(tensors, types, strict=True):
        size = math.prod(tensor.shape[:-1]) * GGML_TYPES[chosen].row_bytes(tensor.shape[-1])
        total += -(-size // alignment) * alignment
    return total


def _losses(importance: bool) -> Mapping[str, float]:
    """File type -> its loss; where none was measured with a matrix, the one without it."""
    known = {}
    for ftype, (without, with_matrix) in PUBLISHED_LOSS.items():
        loss = with_matrix if importance and with_matrix is not None else without
        if loss is not None:
            known[ftype] = loss
    return known
