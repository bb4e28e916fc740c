"""Conversions to GGUF in this process, and what their files hold, read by the gguf library."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
from gguf_files import Planned

from quantkit.formats.ggml.encode import encode
from quantkit.pipeline import gguf_told
from quantkit.pipeline.gguf import Result
from quantkit.pipeline.gguf_convert import ImatrixWish, convert, plan
from quantkit.pipeline.gguf_job import GgufJob, GgufOptions
from quantkit.pipeline.look import look_for_gguf
from quantkit.progress import Silent
from quantkit.weights.imatrix import Entry, Imatrix

WIDE = {"hidden_size": 256, "intermediate_size": 512}  # whole blocks of the K types
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def asked_here(question: bytes, meanwhile: Callable[[], None]) -> bytes:
    """As `gguf_told._ask`, without a process that imports torch again."""
    meanwhile()
    return gguf_told._answer(question)


def converted(
    folder: Path, out: Path, *types: str, imatrix: Path | None = None, restart: bool = False, progress: Any = None,
    **options: Any,
) -> Result:  # fmt: skip
    """`quantkit gguf FOLDER --out OUT --type …`."""
    wish = ImatrixWish(str(imatrix)) if imatrix else ImatrixWish()
    asked = GgufOptions(types, out=out, **options)
    return convert(look_for_gguf(str(folder)), asked, wish, progress or Silent(), restart=restart)


def planned_job(folder: Path, out: Path, *types: str, imatrix: Path | None = None, **options: Any) -> GgufJob:
    """The same with `--dry-run`."""
    wish = ImatrixWish(str(imatrix)) if imatrix else ImatrixWish()
    return plan(look_for_gguf(str(folder)), GgufOptions(types, out=out, **options), wish)


def files_of(result: Result) -> list[Path]:
    """Every GGUF file of a run."""
    return [result.folder / name for record in result.records for name in record["files"]]


def content(*paths: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape with the rows first and bytes of every tensor, in the order of the files."""
    found = {}
    for path in paths:
        for tensor in gguf.GGUFReader(path).tensors:
            shape = tuple(int(size) for size in reversed(tensor.shape))
            assert tensor.name not in found
            found[tensor.name] = (tensor.tensor_type.name, shape, tensor.data.tobytes())
    return found


def encoded(planned: Planned, row: Any, kind: str, imatrix: Imatrix | None = None) -> bytes:
    """A tensor of the plan, assembled and encoded whole, matrix by matrix."""
    values = planned.tensor(row)
    matrices = values.reshape(-1, *values.shape[-2:]) if values.ndim > 1 else values.reshape(1, 1, -1)
    shares: list[np.ndarray | None] = [None] * len(matrices)
    if imatrix is not None and row.name in imatrix.entries:
        found = imatrix.importance(row.name, values.shape[-1])
        shares = [found[number if len(found) > 1 else 0] for number in range(len(matrices))]
    parts = zip(matrices, shares, strict=True)
    return b"".join(encode(kind, np.ascontiguousarray(one), share).tobytes() for one, share in parts)


def assert_is_the_plan(folder: Path, paths: list[Path], imatrix: Imatrix | None = None) -> set[str]:
    """Every tensor of a model's files is what the plan's row encodes to; returns the types that occur."""
    planned, found = Planned(folder), content(*paths)
    assert list(found) == [row.name for row in planned.rows]
    for row in planned.rows:
        kind, shape, data = found[row.name]
        assert shape == row.shape, row.name
        assert data == encoded(planned, row, kind, imatrix), row.name
    return {kind for kind, _, _ in found.values()}


def give_tokenizer(folder: Path) -> Path:
    """The tokenizer of tests/tiny.py beside a model that has none."""
    (folder / TOKENIZER[0]).write_text(tiny.tokenizer_json(), encoding="utf-8")
    tiny.write_json(folder / TOKENIZER[1], {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    return folder


def random_imatrix(planned: Planned, seed: int = 0) -> Imatrix:
    """An importance for every matrix of a layer; of experts one each, and none for the first."""
    generator = np.random.default_rng(seed)
    entries = {}
    for row in planned.rows:
        if row.name.startswith("blk.") and len(row.shape) > 1:
            matrices = row.shape[0] if len(row.shape) == 3 else 1
            sums = generator.chisquare(2, (matrices, row.shape[-1])).astype(np.float32) * 64
            counts = np.full(matrices, 64, np.float32)
            if matrices > 1:
                sums[0], counts[0] = 0, 0
            entries[row.name] = Entry(sums, counts)
    return Imatrix(entries, ("random",), 1, 64)


def copy_model(source: Path, target: Path) -> Path:
    """A model's folder under the same name elsewhere, to be changed."""
    return Path(shutil.copytree(source, target))
