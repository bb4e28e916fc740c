"""Versions of what decides the bytes of an artifact."""

import functools
import importlib.metadata
import platform

LIBRARIES = ("quantkit", "torch", "transformers", "numba", "numpy", "safetensors")


def version() -> str:
    """Quantkit's own version."""
    return _installed("quantkit")


def newest(*numbers: str) -> str:
    """The highest of version numbers such as 4.51.3."""
    return max(numbers, key=lambda number: tuple(int(part) for part in number.split(".")))


def versions() -> dict[str, str]:
    """Python and the libraries by name."""
    return {"python": platform.python_version()} | {name: _installed(name) for name in LIBRARIES}


@functools.cache
def _installed(name: str) -> str:
    """A library's version; its metadata take milliseconds to read, and a run states them several times."""
    return importlib.metadata.version(name)
