"""Versions of what decides the bytes of an artifact."""

import importlib.metadata
import platform

LIBRARIES = ("quantkit", "torch", "transformers", "numba", "numpy", "safetensors")


def version() -> str:
    """Quantkit's own version."""
    return importlib.metadata.version("quantkit")


def newest(*numbers: str) -> str:
    """The highest of version numbers such as 4.51.3."""
    return max(numbers, key=lambda number: tuple(int(part) for part in number.split(".")))


def versions() -> dict[str, str]:
    """Python and the libraries by name."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}
