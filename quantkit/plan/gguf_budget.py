"""What a conversion to GGUF will cost: memory, disk and time."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.plan.gguf_rows import GgufRow

SLAB_WEIGHTS = 2**20  # worked on at once by a thread, unless a row is longer
CODE_BYTES = 60 * 2**20  # compiled encoders, what the allocator keeps
DEQUANTIZED_BYTES = 14  # per weight of a tensor that is dequantized while the one before it is still encoded; measured
READ_RATE, WRITE_RATE = 1e9, 500e6  # bytes per second, of a common disk
WIDENED = 2500e6  # bfloat16 weights to float32, per second and core; measured, as what follows
# Weights per second and core that are encoded, in millions, without and with an importance matrix.
ENCODERS: dict[str, tuple[float, float]] = {
    "F32": (2900, 2900), "F16": (1831, 1831), "BF16": (2526, 2526),
    "Q4_0": (501, 112), "Q4_1": (505, 57), "Q5_0": (410, 151), "Q5_1": (375, 54), "Q8_0": (996, 996),
    "Q2_K": (102, 51), "Q3_K": (296, 167), "Q4_K": (104, 59), "Q5_K": (115, 62), "Q6_K": (168, 143),
    "IQ4_NL": (55, 60), "IQ4_XS": (62, 62),
}  # fmt: skip
GGML_ENCODER = (2.0, 2.0)  # millions per second of the types that ggml itself encodes: between 1 and 4


@dataclass(frozen=True)
class GgufBudget:
    """Predicted costs; the run records the measured ones beside them."""

    host_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: float


def gguf_budget(
    rows: Sequence[GgufRow], types: Sequence[Sequence[str]], written: int, read: int, is_whole: bool,
    download: int, threads: int, base_bytes: int, important: bool = False, held: int | None = None,
) -> GgufBudget:  # fmt: skip
    """Predict the costs of a conversion.

    Args:
        rows: tensors of the files.
        types: of every row, for every file.
        written: bytes of all files.
        read: bytes of the source.
        is_whole: the source gives whole tensors only, as one that is quantized.
        download: bytes that must be fetched first.
        threads: that work at once.
        base_bytes: resident memory of the process before the run.
        important: whether there is an importance matrix.
        held: bytes of the download that are on the disk at a time, where it is streamed; None: all of them.
    """
    longest = max(row.assembly.columns for row in rows)
    largest = max(row.assembly.rows * row.assembly.columns for row in rows)
    slab = max(min(SLAB_WEIGHTS, largest), longest)
    # In float32, as it stands in the file, and encoded; heads that are interleaved are read beside their place.
    host = base_bytes + CODE_BYTES + threads * slab * (4 + 4 + 4 + 4)
    if is_whole:
        host += DEQUANTIZED_BYTES * largest
    work = 0.0
    for chosen in types:
        for row, name in zip(rows, chosen, strict=True):
            rate = ENCODERS.get(name, GGML_ENCODER)[important]
            work += row.assembly.rows * row.assembly.columns / (rate * 1e6)
    work += sum(row.assembly.rows * row.assembly.columns for row in rows) / WIDENED
    return GgufBudget(
        host_bytes=host,
        disk_bytes=written + (download if held is None else held),
        download_bytes=download,
        seconds=max(work / threads, read / READ_RATE) + written / WRITE_RATE,
    )
