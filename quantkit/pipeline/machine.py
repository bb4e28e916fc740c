"""What a prediction knows of this machine: its memory now, and measured rates."""

import psutil
import torch

from quantkit.devices import Device, measure_rate
from quantkit.memory import resident_bytes
from quantkit.plan.budget import Machine


def machine_of(device: Device) -> Machine:
    """This machine, computing on a device: its speed is measured, its memory looked at."""
    return Machine(
        compute_bytes=device.dtype.itemsize,
        on_host=device.device.type == "cpu",
        available_bytes=available_bytes(),
        base_bytes=resident_bytes(),
        product_rate=measure_rate(device.device, device.dtype),
        exact_rate=measure_rate(device.device, torch.float32),
    )


def available_bytes() -> int:
    """Host memory that this process may use, its own included."""
    return psutil.virtual_memory().available + resident_bytes()
