"""What a conversion to GGUF will cost: memory, disk and time."""

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.plan.gguf_rows import GgufRow

SLAB_WEIGHTS = 2**20  # worked on at once by a thread, unless a row is longer
CODE_BYTES = 60 * 2**20  # compiled encoders, what the allocator keeps
DEQUANTIZED_BYTES = 14  # per weight of a tensor that is dequantized while the one before it is still encoded; measured
READ_RATE, WRITE_RATE = 1e9, 500e6  # bytes per second, of a common disk
CONVERSIONS = {"BF16": 800e6, "F16": 800e6, "F32": 800e6}  # weights per second and core
# Weights per second and core of our encoders, or of ggml's, without and with an importance matrix.
ENCODERS: dict[str, tuple[float, float]] = {
    "F32": (800e6, 800e6), "F16": (500e6, 500e6), "BF16": (800e6, 800e6),
    "Q4_0": (400e6, 60e6), "Q4_1": (400e6, 60e6), "Q5_0": (300e6, 60e6), "Q5_1": (300e6, 60e6), "Q8_0": (400e6, 400e6),
    "Q2_K": (60e6, 40e6), "Q3_K": (150e6, 100e6), "Q4_K": (70e6, 45e6), "Q5_K": (70e6, 45e6), "Q6_K": (150e6, 150e6),
    "IQ4_NL": (20e6, 20e6), "IQ4_XS": (20e6, 20e6),
}  # fmt: skip
SLOWEST = 2e6  # of ggml's smallest types


@dataclass(frozen=True)
class GgufBudget:
    """Predicted costs; the run records the measured ones beside them."""

    host_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: float


def gguf_budget(
    rows: Sequence[GgufRow], types: Sequence[Sequence[str]], written: int, read: int, is_whole: bool,
    download: int, threads: int, base_bytes: int, important: bool = False,
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
            rate = ENCODERS.get(name, (SLOWEST, SLOWEST))[important]
            work += row.assembly.rows * row.assembly.columns / rate
    work += sum(row.assembly.rows * row.assembly.columns for row in rows) / CONVERSIONS["BF16"]
    return GgufBudget(
        host_bytes=host,
        disk_bytes=written + download,
        download_bytes=download,
        seconds=max(work / threads, read / READ_RATE) + written / WRITE_RATE,
    )
