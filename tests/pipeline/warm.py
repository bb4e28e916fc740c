"""Imported by the process that commands are forked from: libraries loaded, kernels compiled, no thread running."""

import gc
import tempfile
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from numba import njit

import quantkit.pipeline.push  # noqa: F401 - forked from here, too
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import make_recipe


@njit("uint64(int64)", nogil=True)
def spin(rounds):
    """Native code that hears of no signal until it returns; random numbers, for which there is no short cut."""
    x = np.uint64(67)
    for _ in range(rounds):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    return x


def _warm() -> None:
    torch.set_num_threads(1)
    processes.quicken(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as folder:
        source = processes.tiny_source(Path(folder) / "source")
        run(prepare(str(source), make_recipe(processes.FIELDS), output=Path(folder) / "out", device="cpu"))
    gc.collect()
    gc.freeze()  # forked processes would copy every page that the collector marks


_warm()
