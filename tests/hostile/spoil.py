"""How a good checkpoint is spoiled: small functions over its folder, put together in the tables of the tests."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4976698672\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>401</title></head><body>Please log in</body></html>\n" * 20
DEEP = b'{"a":' * 100_000
SMALL = ("--device", "cpu", "--group-size", "32", "--samples", "4", "--sequence-length", "32")
Spoiler = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A hostile input, and what is said about it.

    `says` are parts of the sentence: the file, what was found, what was expected. `planned`: `quantkit
    plan` refuses it as well, in the same words. `late`: refusing it needs more than headers and config.json, such
    as transformers' own model, a pickle or the tokenizer; all else is refused before torch is loaded.
    """

    name: str
    spoil: Spoiler
    says: tuple[str, ...]
    code: int = 3
    hint: str | None = None
    layout: str = "safetensors"
    options: tuple[str, ...] = ()
    architecture: str = "LlamaForCausalLM"
    planned: bool = True
    late: bool = False


def table(*cases: Case) -> pytest.MarkDecorator:
    """The cases as parameters of a test, by name."""
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def nothing(_folder: Path) -> None:
    """The checkpoint stays as it is; an option is what is wrong."""


def write(name: str, content: bytes) -> Spoiler:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Spoiler:
    """The first bytes only; a negative size cuts from the end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def append(name: str, content: bytes) -> Spoiler:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + content)


def prepend(name: str, content: bytes) -> Spoiler:
    return lambda folder: (folder / name).write_bytes(content + (folder / name).read_bytes())


def remove(*names: str) -> Spoiler:
    return lambda folder: [(folder / name).unlink() for name in names]


def become(name: str, make: Callable[[Path], object]) -> Spoiler:
    """A folder, pipe or link in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def folder_named(name: str) -> Spoiler:
    return become(name, lambda path: path.mkdir())


def pipe_named(name: str) -> Spoiler:
    return become(name, os.mkfifo)


def link_named(name: str, target: str) -> Spoiler:
    return become(name, lambda path: path.symlink_to(target))


def length(value: int, rest: bytes = b"") -> bytes:
    """A safetensors file that states this length of its header."""
    return struct.pack("<Q", value) + rest


def header(change: Callable[[dict[str, Any]], dict[str, Any] | bytes | None], name: str = WEIGHTS) -> Spoiler:
    """The same file with another header, as an object or as its text."""

    def spoil(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (size,) = struct.unpack_from("<Q", raw)
        entries = json.loads(raw[8 : 8 + size])
        changed = change(entries)
        text = changed if isinstance(changed, bytes) else json.dumps(entries if changed is None else changed).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return spoil


def entry(tensor: str, **fields: Any) -> Spoiler:
    """Fields of one tensor's entry set; a function is given the old value."""

    def change(entries: dict[str, Any]) -> None:
        for field, value in fields.items():
            old = entries[tensor][field]
            entries[tensor][field] = value(old) if callable(value) else value

    return header(change)


def tensors(change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS) -> Spoiler:
    """A valid file of other tensors."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / name)
        change(loaded)
        save_file({key: value.contiguous() for key, value in loaded.items()}, folder / name)

    return spoil


def config(**changes: Any) -> Spoiler:
    """Keys of config.json set; `...` removes one."""

    def spoil(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in settings.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def mapped(shard: object, tensor: str = "model.norm.weight", index: str = INDEX) -> Spoiler:
    """One tensor of the index in another file."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / index).read_text())
        content["weight_map"][tensor] = shard
        (folder / index).write_text(json.dumps(content))

    return spoil


def both(*spoilers: Spoiler) -> Spoiler:
    return lambda folder: [spoil(folder) for spoil in spoilers]
