"""Where an artifact runs: weights, KV cache and what a runtime needs beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.units import GIB

# What a process takes before any weight: CUDA context, libraries, work space (0.8 GiB on the GPUs
# below; the same is counted on a CPU).
RUNTIME_OVERHEAD = int(0.8 * GIB)
KV_BYTES = 2  # 16-bit keys and values


@dataclass(frozen=True)
class Machine:
    """A common machine by the memory that is left for a model."""

    name: str
    usable_bytes: int


MACHINES = (
    Machine("T4 16 GB", int(14.7 * GIB)),
    Machine("L4 24 GB", int(22.0 * GIB)),
    Machine("A100 40 GB", int(39.4 * GIB)),
    Machine("A100 80 GB", int(79.1 * GIB)),
    Machine("CPU, 12.7 GB of RAM", int(12.7e9 - 1.0 * GIB)),  # a free Colab machine, system aside
    Machine("CPU, 32 GB of RAM", int(30.0 * GIB)),
)


def kv_cache_bytes(config: Mapping[str, Any], context: int) -> int:
    """Bytes of keys and values for one sequence of `context` tokens.

    Args:
        config: config.json: layers, key-value heads, head size.
        context: tokens.
    """
    layers = int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return 2 * layers * kv_heads * head_dim * KV_BYTES * context


def dequantized_mlp_bytes(config: Mapping[str, Any]) -> int:
    """Work space of runtimes that expand whole matrices before multiplying: one MLP in 16 bits.

    XVERSE's and ChatGLM's own INT8/INT4 do so; GPTQ kernels (Marlin, ExLlama) do not.
    """
    return 3 * int(config["hidden_size"]) * int(config["intermediate_size"]) * 2


def runtime_bytes(config: Mapping[str, Any], weight_bytes: int, context: int, *, expands_matrices: bool = False) -> int:
    """Memory that running a checkpoint takes.

    Args:
        config: config.json.
        weight_bytes: bytes of all its tensors.
        context: tokens of the KV cache.
        expands_matrices: the runtime dequantizes whole matrices, see `dequantized_mlp_bytes`.
    """
    work = dequantized_mlp_bytes(config) if expands_matrices else 0
    return weight_bytes + kv_cache_bytes(config, context) + RUNTIME_OVERHEAD + work


def machine_table(config: Mapping[str, Any], weight_bytes: int, context: int) -> list[dict[str, Any]]:
    """For every machine: bytes needed, bytes usable, and whether that fits."""
    needed = runtime_bytes(config, weight_bytes, context)
    return [
        {
            "machine": machine.name,
            "needed_bytes": needed,
            "usable_bytes": machine.usable_bytes,
            "fits": needed <= machine.usable_bytes,
        }
        for machine in MACHINES
    ]
