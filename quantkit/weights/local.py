"""The lazy tensors of a checkpoint folder: a table from the file headers, bytes when asked for."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.tensors import TensorInfo
from quantkit.weights.archive import read_records
from quantkit.weights.header import MAX_HEADER_BYTES, parse_object, read_header
from quantkit.weights.regular import read_small, short

if TYPE_CHECKING:  # headers are read without torch, which takes seconds to load
    import torch

READ_BYTES = 64 * 2**20  # one system call
# In transformers' order of preference: one file, its index.
_SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class LocalSource:
    """A folder's tensors as a `TensorSource`: headers now, each tensor's bytes at `read`.

    No file stays open and no page is mapped: what `read` returns is memory of its own.

    Raises:
        NotFoundError: no weights in the folder, or a shard of its index is missing.
        BadInputError: an index or a header that breaks the rules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._infos = find_infos(folder)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, also those that a family does not need."""
        return self._infos

    def read(self, name: str) -> "torch.Tensor":
        """The tensor in its stored dtype.

        Raises:
            BadInputError: the checkpoint has no such tensor, or its file has become shorter.
            DiskError: the disk refuses to read.
        """
        if name not in self._infos:
            raise BadInputError(f"{self.folder}: no tensor {name!r} in this checkpoint")
        info = self._infos[name]
        return read_range(self.folder / info.file, info)

    def close(self) -> None:
        """Nothing to do; sources that hold something do it here."""


def read_range(path: Path, info: TensorInfo) -> "torch.Tensor":
    """The tensor whose bytes stand at `info.offset` of a file, in its stored dtype.

    Args:
        path: the file to read; `info.file` is not looked at.
        info: dtype, shape and offset.

    Raises:
        BadInputError: the file ends inside the tensor.
        NotFoundError: there is no such file.
        DiskError: the disk refuses to read.
    """
    import torch

    from quantkit.dtypes import DTYPES

    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    if not info.nbytes:
        return tensor
    target = byte_view(tensor)
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(info.offset)
            while done < info.nbytes:
                count = file.readinto(target[done : done + READ_BYTES])
                if not count:
                    break
                done += count
    except FileNotFoundError as error:
        raise NotFoundError(f"no such file: {path}") from error
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error
    if done < info.nbytes:
        found = f"found {done} bytes of tensor {info.name!r} at byte {info.offset}, expected {info.nbytes}"
        raise BadInputError(f"{path}: {found}", "the file has become shorter; fetch it again")
    return tensor


def byte_view(tensor: "torch.Tensor") -> memoryview:
    """The memory of a contiguous tensor on the CPU as bytes, without a copy."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def parse_index(raw: bytes, file_name: str) -> dict[str, str]:
    """The weight map of an index: tensor name -> file name, each a plain name inside the folder.

    Args:
        raw: the index's JSON text.
        file_name: `model.safetensors.index.json`: its shards end as the part before `.index.json`.

    Raises:
        BadInputError: not such a map, or a file name that leads elsewhere or is not of a shard.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise BadInputError(f"{file_name}: found {len(raw)} bytes, expected at most {MAX_HEADER_BYTES}")
    weight_map = parse_object(raw, file_name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{file_name}: found no weight_map, expected tensor names with file names")
    suffix = Path(file_name.removesuffix(".index.json")).suffix
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard) or not shard.endswith(suffix):
            found = f"found file {short(repr(shard))} for tensor {short(repr(name))}"
            raise BadInputError(f"{file_name}: {found}, expected the name of a {suffix} file inside the folder")
    return weight_map


def _is_plain(name: str) -> bool:
    outside = name in ("", ".", "..") or any(mark in name for mark in "/\\:")
    return not outside and name.isprintable() and len(name) <= 255


def read_shard(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, safetensors or `.bin`, by name.

    Raises:
        BadInputError: it breaks the rules of its format.
        DiskError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        return read_header(path)
    read_records(path)  # a damaged file is refused before torch is loaded for its pickle
    from quantkit.weights.pickled import read_pickled_header

    return read_pickled_header(path)


def find_infos(folder: Path, read_shard: Callable[[Path], dict[str, TensorInfo]] = read_shard) -> dict[str, TensorInfo]:
    """Every tensor of a folder's weight files.

    Args:
        folder: of a checkpoint.
        read_shard: reads one file.

    Raises:
        NotFoundError: no weights in the folder, or a shard of its index is missing.
        BadInputError: an index or a header that breaks the rules.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no such folder: {folder}")
    for single, index in _SINGLE_AND_INDEX:
        if os.path.lexists(folder / single):
            return read_shard(folder / single)
        if os.path.lexists(folder / index):
            return _read_indexed(folder, index, read_shard)
        others = sorted(folder.glob(f"*{Path(single).suffix}"))
        if len(others) == 1 and single.endswith(".safetensors"):
            return read_shard(others[0])
        if others and single.endswith(".safetensors"):
            names = ", ".join(path.name for path in others[:3])
            raise BadInputError(f"{folder}: found {len(others)} safetensors files ({names}) but no {index}")
    raise NotFoundError(
        f"{folder}: found no weights, expected model.safetensors or an index with its shards",
        "name the folder of a Hugging Face checkpoint",
    )


def _read_indexed(
    folder: Path, index: str, read_shard: Callable[[Path], dict[str, TensorInfo]]
) -> dict[str, TensorInfo]:
    weight_map = parse_index(read_small(folder / index), index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise NotFoundError(
            f"{folder}: {len(missing)} of {len(shards)} shards of {index} are missing: {names}",
            "finish the download",
        )
    return join_shards(weight_map, {shard: read_shard(folder / shard) for shard in shards}, index)


def join_shards(
    weight_map: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorInfo]], index: str
) -> dict[str, TensorInfo]:
    """The tensors of all shards in one table.

    Args:
        weight_map: tensor name -> shard, as the index has it.
        shards: the headers, by shard.
        index: the file name of the index, for messages.

    Raises:
        BadInputError: a shard lacks a tensor of the index, or two shards hold one that it forgot.
    """
    infos: dict[str, TensorInfo] = {}
    for shard, header in shards.items():
        for name, info in header.items():
            # Like transformers, take what stands in a shard although the index forgot it.
            if weight_map.get(name, shard) != shard:
                continue
            if name in infos:
                raise BadInputError(f"{index}: found {name!r} in {infos[name].file} and {shard}, not in the index")
            infos[name] = info
    absent = [name for name in weight_map if name not in infos]
    if absent:
        found = f"found {absent[0]!r} in {weight_map[absent[0]]}, which does not hold it"
        raise BadInputError(f"{index}: {found} ({len(absent)} such tensors)")
    return infos
