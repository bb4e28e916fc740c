"""Where to compute and in which dtype, with the reason; how fast that is; memory given back."""

import time
from dataclasses import dataclass

import torch

from quantkit.errors import UsageError
from quantkit.memory import release_pages
from quantkit.memory import reset_peak as reset_host_peak


@dataclass(frozen=True)
class Device:
    """A device with the dtype that activations are computed in."""

    device: torch.device
    dtype: torch.dtype
    reason: str  # why this dtype

    @property
    def label(self) -> str:
        """For people: `cpu, bfloat16 (AMX tiles)`."""
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')} ({self.reason})"


def choose_device(wish: str) -> Device:
    """Resolve `auto`, `cpu`, `cuda[:n]` or `mps`.

    Raises:
        UsageError: no such device here.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise UsageError(f"no device {wish!r}", "use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"no {wish} here: torch sees {torch.cuda.device_count()} CUDA devices", "use --device cpu")
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return Device(device, torch.bfloat16, f"compute capability {major}.{minor} multiplies bfloat16")
        return Device(device, torch.float32, f"compute capability {major}.{minor} has no bfloat16 units")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("no mps here", "use --device cpu")
        return Device(device, torch.float32, "float32 is the safe choice on Apple GPUs")
    if device.type != "cpu":
        raise UsageError(f"no device {wish!r}", "use auto, cpu, cuda, cuda:N or mps")
    # Private names: torch offers no public ones. Absent ones only cost speed.
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return Device(device, torch.bfloat16, "AMX tiles multiply bfloat16")
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return Device(device, torch.bfloat16, "AVX-512 multiplies bfloat16")
    return Device(device, torch.float32, "this CPU has no bfloat16 units")


def measure_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product, from a fraction of a second."""
    size = 1024 if device.type == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        (a @ a.T)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def reset_peak() -> None:
    """Forget earlier peaks of host and device, where the system can."""
    reset_host_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def release_memory() -> None:
    """Give freed memory of host and device back, so that the peak of one layer is not carried into the next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_pages()
