"""Memory of this process: what it holds, the most that it has held, and giving freed pages back."""

import ctypes
import sys

import psutil


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most RAM that this process has held since `reset_peak`, or since its start."""
    if sys.platform == "linux":
        try:
            with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
                line = next(line for line in status if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            pass
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak() -> None:
    """Forget earlier peaks, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("5")
    except OSError:
        pass


def release_pages() -> None:
    """Give freed pages back to the system, so that the peak of one step is not carried into the next."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)  # what the process is linked with; musl has no malloc_trim
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
