"""Ways in which a GPTQ file can be wrong without anything failing to load."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def spoil(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Change the tensors of a single-file artifact in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def foreign(folder: Path) -> None:
    """Make an artifact look as another tool's: nothing says what its files were when they were written."""
    run = folder / "run.json"
    record = json.loads(run.read_text("utf-8"))
    record.pop("files", None)
    run.write_text(json.dumps(record), encoding="utf-8")


def shifted_zero_points(linear: str, bits: int) -> Callable[[Tensors], None]:
    """Every zero point of a linear one higher, as in the oldest confusion about qzeros."""
    ones = sum(1 << shift for shift in range(0, 32, bits))

    def change(tensors: Tensors) -> None:
        tensors[f"{linear}.qzeros"] += ones if ones < 2**31 else ones - 2**32

    return change


def swapped_rows(linear: str, first: int, second: int) -> Callable[[Tensors], None]:
    """Two output features in each other's place."""

    def change(tensors: Tensors) -> None:
        for suffix in ("qweight", "scales"):
            matrix = tensors[f"{linear}.{suffix}"]
            matrix[:, [first, second]] = matrix[:, [second, first]]

    return change


def larger_scales(linear: str, factor: float = 1.05) -> Callable[[Tensors], None]:
    """The scales of a linear off by a few percent."""

    def change(tensors: Tensors) -> None:
        tensors[f"{linear}.scales"] *= factor

    return change


def one_larger_scale(linear: str, factor: float = 1.05) -> Callable[[Tensors], None]:
    """A single group's scale off by a few percent."""

    def change(tensors: Tensors) -> None:
        tensors[f"{linear}.scales"][0, 0] *= factor

    return change


def permuted_heads(linear: str, heads: int) -> Callable[[Tensors], None]:
    """The rows of q or k as llama.cpp orders them: rotary pairs side by side instead of half a head apart."""

    def change(tensors: Tensors) -> None:
        for suffix in ("qweight", "scales"):
            matrix = tensors[f"{linear}.{suffix}"]
            rows = matrix.shape[1]
            pairs = matrix.view(matrix.shape[0], heads, 2, rows // heads // 2)
            tensors[f"{linear}.{suffix}"] = pairs.transpose(2, 3).reshape(matrix.shape)

    return change
