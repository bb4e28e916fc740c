"""A repository's tensors by the headers of its files, without their weights."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from quantkit.errors import NotFoundError
from quantkit.tensors import TensorInfo
from quantkit.weights.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_length, parse_header
from quantkit.weights.local import join_shards, parse_index
from quantkit.weights.ranged import read_range, read_verified
from quantkit.weights.remote import RepoSnapshot
from quantkit.weights.remote_pickled import fetch_pickled_header

FIRST_BYTES = 100_000  # holds most headers
PARALLEL_HEADERS = 8
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")


class RemoteHeaders:
    """The tensors of a snapshot by their headers alone; a `TensorSource` that cannot read.

    Attributes:
        weight_map: tensor name -> file. All that is known where `.bin` files are bare pickles, as torch wrote
            before 1.6, whose headers cannot be had without a download (empty for a single one).
        total_size: bytes of all tensors, or of the files where the headers are not known.

    Raises:
        BadInputError: an index or a header that breaks the rules.
        NotFoundError: no weights in the repository, or no access.
        NetworkError: the Hub was not reached.
    """

    def __init__(self, snapshot: RepoSnapshot) -> None:
        self.snapshot = snapshot
        files = weight_files(snapshot.files)
        index = next((name for name in files if name.endswith(".index.json")), None)
        weights = [name for name in files if name != index]
        self.weight_map: Mapping[str, str] = {}
        if index is not None:
            self.weight_map = parse_index(read_verified(snapshot, index, MAX_HEADER_BYTES), index)
            weights = sorted(set(self.weight_map.values()))
        if absent := [name for name in weights if name not in snapshot.files]:
            raise NotFoundError(f"{snapshot.repo_id}: {index} names {absent[0]}, which is not there")
        self._infos: dict[str, TensorInfo] = {}
        self.total_size = sum(snapshot.files[name] for name in weights)
        with ThreadPoolExecutor(PARALLEL_HEADERS) as pool:
            headers = dict(zip(weights, pool.map(self._read_header, weights), strict=True))
        known = {name: header for name, header in headers.items() if header is not None}
        if len(known) == len(headers):
            self._infos = join_shards(self.weight_map, known, index or weights[0])
            self.weight_map = {name: info.file for name, info in self._infos.items()}
            self.total_size = sum(info.nbytes for info in self._infos.values())

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name; empty where only the `weight_map` is known."""
        return self._infos

    def read(self, name: str) -> NoReturn:
        """Never a tensor: weights need a download.

        Raises:
            NotFoundError: always.
        """
        raise NotFoundError(f"{self.snapshot.repo_id}: {name!r} was not downloaded, only its header")

    def close(self) -> None:
        """Nothing to do."""

    def _read_header(self, name: str) -> dict[str, TensorInfo] | None:
        if not name.endswith(".safetensors"):
            return fetch_pickled_header(self.snapshot, name)
        size = self.snapshot.files[name]
        raw = read_range(self.snapshot, name, 0, min(FIRST_BYTES, size))
        end = LENGTH_BYTES + header_length(raw, size, name)
        if end > len(raw):
            raw = read_range(self.snapshot, name, 0, end)
        return parse_header(raw, size, name)


def weight_files(names: Iterable[str]) -> list[str]:
    """The files that hold a repository's weights once: its index and shards, or one file.

    safetensors go before `.bin`; other copies of the weights (other frameworks, `consolidated`,
    variants) are left out.

    Raises:
        NotFoundError: there are none, or several and no index.
    """
    plain = sorted(name for name in names if "/" not in name and not name.startswith("consolidated"))
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = stem + suffix, f"{stem}{suffix}.index.json"
        if single in plain:
            return [single]
        files = [name for name in plain if name.endswith(suffix)]
        if index in plain:
            shards = [name for name in files if _SHARD.fullmatch(name)]
            return [index, *([name for name in shards if name.startswith(f"{stem}-")] or shards or files)]
        if len(files) == 1 and suffix == ".safetensors":
            return files
    raise NotFoundError(
        "no weights in this repository, expected model.safetensors or an index with its shards",
        "GGUF, ONNX and adapter repositories are made from a checkpoint: name that one",
    )
