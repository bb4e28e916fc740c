"""What a run costs: time and peak memory, over all the legs of a run that was continued."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quantkit.memory import peak_resident_bytes

if TYPE_CHECKING:
    import torch

Cost = dict[str, float]


class Meter:
    """Time since the last reading, and the most memory since `devices.reset_peak`."""

    def __init__(self, device: "torch.device | None" = None) -> None:
        self._device = device
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        """What was spent since the last reading."""
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        spent = seconds - self._seconds, cpu_seconds - self._cpu_seconds
        self._seconds, self._cpu_seconds = seconds, cpu_seconds
        return {
            "seconds": round(spent[0], 3),
            "cpu_seconds": round(spent[1], 3),
            "host_bytes": peak_resident_bytes(),
            "device_bytes": _device_peak(self._device),
        }


def _device_peak(device: "torch.device | None") -> int:
    if device is None or device.type != "cuda":
        return 0
    import torch

    return torch.cuda.max_memory_allocated(device)


def total(costs: Sequence[Mapping[str, float]]) -> Cost:
    """Times added, peaks compared. Work that was lost with an interrupted leg is in no cost and not counted."""

    def column(name: str) -> list[float]:
        return [cost.get(name, 0) for cost in costs]

    return {
        "host_bytes": max(column("host_bytes")),
        "device_bytes": max(column("device_bytes")),
        "seconds": round(sum(column("seconds")), 1),
        "cpu_seconds": round(sum(column("cpu_seconds")), 1),
    }
