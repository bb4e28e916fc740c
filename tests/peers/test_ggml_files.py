"""GGUF files beside ggml: it writes our headers byte for byte, and refuses the damage that we refuse."""

import random
import re
import struct
import subprocess
from pathlib import Path

import gguf_bytes as by
import numpy as np
import pytest

from quantkit.errors import BadInputError
from quantkit.weights.gguf_layout import layout, split_plan
from quantkit.weights.gguf_read import read_gguf
from quantkit.weights.gguf_types import GGML_TYPES, KINDS, Value
from quantkit.weights.imatrix import Entry, Imatrix, write_imatrix

ROOT = Path(__file__).parents[2]
PEER_PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are not installed: make peers"),
]
# What we refuse and ggml takes: limits, names, a truth value, types of tensors, data that is not there.
STRICTER = re.compile(
    r"expected at most|expected <= 2\*\*48|printable|UTF-8|truth value|of ggml type|power of two up to"
    r"|for the name of tensor \d+, expected 1 to|found a file of \d+ bytes, expected at least \d+ from its header"
)


def ask(folder):
    """Files by what ggml makes of them."""
    subprocess.run([PEER_PYTHON, ROOT / "tests" / "peers" / "ggml_files.py", folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Files of ours with every kind of value and every type of tensor, one alone and one in parts."""
    folder = tmp_path_factory.mktemp("written")
    scalars = {"string": "größe", "bool": True} | {kind: 3 for kind in KINDS if kind not in ("string", "bool")}
    metadata = {f"one.{kind}": Value(kind, value) for kind, value in scalars.items()}
    metadata |= {f"some.{kind}": Value(kind, (value,) * 3) for kind, value in scalars.items()}
    metadata |= {"none": Value("string", ()), "general.architecture": Value("string", "llama")}
    stated = [(f"{name}.weight", (3, 2 * ggml.block), name) for name, ggml in GGML_TYPES.items()]
    stated += [("rank1", (7,), "F32"), ("rank4", (2, 3, 4, 32), "Q4_0")]
    parts = split_plan("m", metadata, stated, 5000)
    assert len(parts) > 2
    headers = {
        "plain": layout(metadata, stated),
        "aligned": layout(metadata, stated, 128),
        "bare": layout(metadata, []),
    }
    headers |= {part.file_name.removesuffix(".gguf"): part.header for part in parts}
    for name, header in headers.items():
        raw = bytearray(header.raw.ljust(header.total_bytes, b"\0"))
        for tensor in header.tensors:
            raw[tensor.offset : tensor.offset + tensor.nbytes] = random.Random(0).randbytes(tensor.nbytes)
        (folder / f"{name}.gguf").write_bytes(raw)
    counts = np.array([3.0, 0, 5])
    entries = {"a.weight": Entry(np.ones((1, 64)), np.ones(1)), "b.weight": Entry(np.full((3, 32), 0.5), counts)}
    write_imatrix(folder / "imatrix.gguf", Imatrix(entries, ("a.txt",), 2, 512))
    ask(folder)
    return folder


def test_ggml_writes_the_header_that_it_read_as_we_did(written):
    files = sorted(written.glob("*.gguf"))
    assert len(files) > 6
    for path in files:
        header = path.with_suffix(".header").read_bytes()
        assert path.read_bytes()[: len(header)] == header, path.name
        assert path.with_suffix(".whole").exists(), path.name
        starts = [tensor.offset for tensor in read_gguf(path).tensors.values()]
        assert len(header) == min(starts, default=path.stat().st_size)


KEYS = (
    by.key("general.architecture", by.scalar("string", "llama")),
    by.key("n", by.scalar("uint32", 2)),
    by.key("tokens", by.array("string", ["<s>", "ö", ""])),
    by.key("flags", by.array("bool", [True, False])),
    by.key("general.alignment", by.scalar("uint32", 32)),
)
TENSORS = (by.tensor("a.weight", [32, 3], by.Q8_0, 0), by.tensor("b.weight", [5], by.F32, 128))
GOOD = by.gguf(KEYS, TENSORS, bytes(160))
HEADER = len(GOOD) - 160
NUMBERS = [struct.pack("<Q", value) for value in (0, 1, 24, 64, 2**31, 2**60, 2**63, 2**64 - 1)]
NUMBERS += [struct.pack("<I", value) for value in (0, 1, 4, 5, 8, 9, 13, 2**31, 2**32 - 1)]


def damaged(count):
    """Files with a bit turned, a number put over another, a few bytes cut out, or the end cut off."""
    chance = random.Random(20)
    for _ in range(count):
        raw, at = bytearray(GOOD), chance.randrange(HEADER)
        way = chance.randrange(4)
        if way == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            piece = chance.choice(NUMBERS)
            raw[at : at + len(piece)] = piece
        elif way == 2:
            del raw[at : at + chance.randrange(1, 9)]
        else:
            del raw[at:]
        yield bytes(raw)


def test_both_refuse_the_same_damage(tmp_path):
    files = [tmp_path / f"{number}.gguf" for number in range(4000)]
    for path, raw in zip(files, damaged(len(files)), strict=True):
        path.write_bytes(raw)
    ask(tmp_path)
    taken = 0
    for path in files:
        theirs = path.with_suffix(".header").exists()
        try:
            file, refusal = read_gguf(path), ""
        except BadInputError as error:
            file, refusal = None, str(error)
        if file is None:
            assert not theirs or STRICTER.search(refusal), f"{path}: {refusal}"
        else:
            assert theirs, path
        taken += theirs and file is not None
    assert taken > 100
