"""A repository read through a small disk: shards come in the order of use, verified, and go after their last use."""

import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import BadInputError
from quantkit.tensors import TensorInfo
from quantkit.weights.local import read_range, read_shard
from quantkit.weights.source import Checkpoint

if TYPE_CHECKING:  # a GGUF conversion streams without torch
    import torch

HELD_SHARDS = 2  # the one at work and the next
SHARD_FOLDER = ".source.partial"  # beside the artifact: on the disk that was looked at


class Stopped(Exception):
    """Ends a fetch whose source was closed; what has come stays."""


class StreamedSource:
    """A `TensorSource` of which at most two shards are on the disk at a time.

    `expect` says in which order tensors will be read. A shard is fetched while the one before it is at work, and
    deleted once the last read that was expected of it is over. What nobody expected can be read too: its shard
    comes, and goes when its room is needed.

    Args:
        infos: every tensor, by the headers of the repository.
        folder: where shards stand while they are needed. Those that an earlier run left there are used again.
        fetch: brings a file to a path, whole and verified, or not at all.
        say: told of every shard that is fetched.

    Attributes:
        folder: as given.
        say: as given; may be set before the first read.
    """

    def __init__(
        self,
        infos: Mapping[str, TensorInfo],
        folder: Path,
        fetch: Callable[[str, Path], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.say = folder, say
        self._infos, self._fetch = infos, fetch
        self._files = sorted({info.file for info in infos.values()})
        # Of each shard, the reads to come: their places in the order, by tensor.
        self._awaited: dict[str, dict[int, str]] = {}
        self._coming: dict[str, Future[None]] = {}  # on the disk, or on their way
        self._in_use: dict[str, int] = {}  # shards whose path somebody holds
        self._lock = threading.RLock()
        self._fetcher = ThreadPoolExecutor(1, "fetch")
        self._closed = False

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._infos

    def expect(self, names: Iterable[str]) -> None:
        """Say in which order tensors will be read from now on, each as often as it is named; begin with the first."""
        with self._lock:
            self._awaited.clear()
            for place, name in enumerate(names):
                self._awaited.setdefault(self._infos[name].file, {})[place] = name
            self._remove_strangers()
            self._fetch_ahead()

    def read(self, name: str) -> "torch.Tensor":
        """The tensor in its stored dtype, as soon as its shard is there.

        Raises:
            QuantkitError: the shard does not come, or is not what its header had promised.
        """
        path = self.hold(name)
        try:
            return read_range(path, self._infos[name])
        finally:
            self.release(name)

    def hold(self, name: str) -> Path:
        """The shard of a tensor, which stays until `release` is called as often as this.

        Raises:
            QuantkitError: the shard does not come, or is not what its header had promised.
        """
        if name not in self._infos:
            raise BadInputError(f"no tensor {name!r} in this checkpoint")
        file = self._infos[name].file
        with self._lock:
            self._in_use[file] = self._in_use.get(file, 0) + 1
            if file not in self._coming:
                self._make_room()
                self._begin(file)
            coming = self._coming[file]
        try:
            coming.result()
        except BaseException:
            with self._lock:  # the next read may try again
                self._coming.pop(file, None)
                self._in_use[file] -= 1
            raise
        with self._lock:
            self._fetch_ahead()
        return self.folder / file

    def release(self, name: str) -> None:
        """A read that was held for is over."""
        with self._lock:
            file = self._infos[name].file
            self._in_use[file] -= 1
            awaited = self._awaited.get(file, {})
            place = next((place for place, awaits in awaited.items() if awaits == name), None)
            if place is not None:
                del awaited[place]
                if not awaited:
                    del self._awaited[file]
            self._drop_finished()
            self._fetch_ahead()

    def is_held(self, name: str) -> bool:
        """Whether a tensor's shard is on the disk or on its way."""
        with self._lock:
            return self._infos[name].file in self._coming

    def go_on(self, count: int) -> None:
        """Told by `fetch` of bytes as they come.

        Raises:
            Stopped: nobody waits for them any more.
        """
        if self._closed:
            raise Stopped

    def close(self) -> None:
        """End a fetch that is on its way; what was fetched stays for the next run."""
        with self._lock:
            self._closed = True
            self._awaited.clear()
        self._fetcher.shutdown(cancel_futures=True)

    def remove(self) -> None:
        """Close, and delete every shard that is still there."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # shared with another commit's
            self.folder.parent.rmdir()

    def _begin(self, file: str) -> None:
        self._coming[file] = self._fetcher.submit(self._bring, file)

    def _bring(self, file: str) -> None:
        path = self.folder / file
        number = f"shard {self._files.index(file) + 1} of {len(self._files)}"
        if not path.exists():
            self.say(f"fetching {number}: {file}")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._fetch(file, path)
        # Headers were read before without a proof; the file is proven now.
        found = read_shard(path)
        promised = {name: info for name, info in self._infos.items() if info.file == file}
        if differing := [name for name, info in promised.items() if found.get(name) != info]:
            path.unlink()
            raise BadInputError(
                f"{file}: found {differing[0]!r} as {_told(found.get(differing[0]))}, "
                f"expected {_told(promised[differing[0]])}, which its header on the Hub said",
                "what the Hub sends for this file differs from time to time; try again",
            )

    def _fetch_ahead(self) -> None:
        """Fetch the shard that is needed next and is not here, where there is room for it."""
        if self._closed:
            return
        for file in sorted(self._awaited, key=lambda file: next(iter(self._awaited[file]))):
            if len(self._coming) >= HELD_SHARDS:
                return
            if file not in self._coming:
                self._begin(file)

    def _make_room(self) -> None:
        """Let go of the shard whose next use is the farthest, unless somebody holds its path."""
        while len(self._coming) >= HELD_SHARDS:
            idle = [file for file in self._coming if not self._in_use.get(file)]
            if not idle:
                return
            self._drop(max(idle, key=self._next_use))

    def _next_use(self, file: str) -> float:
        awaited = self._awaited.get(file)
        return next(iter(awaited)) if awaited else float("inf")

    def _drop_finished(self) -> None:
        """Delete shards that nobody awaits, as long as others are awaited."""
        if self._awaited:
            for file in [file for file in self._coming if file not in self._awaited and not self._in_use.get(file)]:
                self._drop(file)

    def _drop(self, file: str) -> None:
        coming = self._coming.pop(file)
        if not coming.cancel():
            coming.exception()  # its end
            (self.folder / file).unlink(missing_ok=True)

    def _remove_strangers(self) -> None:
        """Delete what nobody awaits, also files of an earlier run."""
        for file in [file for file in self._coming if file not in self._awaited and not self._in_use.get(file)]:
            self._drop(file)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            wanted = any(path.name == file or path.name.startswith(f".{file}.") for file in self._awaited)
            if path.is_file() and not wanted:
                path.unlink()


def streamed(checkpoint: Checkpoint, folder: Path, say: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """A checkpoint of which only headers are here, with a source that fetches its shards as they are read.

    Args:
        checkpoint: as opened with `headers_only`; one that is here already is returned as it is.
        folder: where shards stand while they are needed.
        say: told of every shard that is fetched.

    Raises:
        BadInputError: its headers cannot be read without a download.
    """
    from quantkit.weights.remote_headers import RemoteHeaders
    from quantkit.weights.transfer import fetch_file

    headers = checkpoint.source
    if not isinstance(headers, RemoteHeaders):
        return checkpoint
    if not headers.infos:
        raise BadInputError(
            f"{checkpoint.repo_id} cannot be streamed: the headers of its weights are known only after a download",
            "give --no-stream",
        )

    def fetch(file: str, path: Path) -> None:
        fetch_file(headers.snapshot, file, path, source.go_on)

    own = folder / headers.snapshot.commit  # another commit's shards have the same names
    source = StreamedSource(headers.infos, own, fetch, say)
    return replace(checkpoint, source=source)


def streamed_bytes(checkpoint: Checkpoint) -> int:
    """Disk that a streamed checkpoint takes: its two largest shards."""
    sizes = {info.file: checkpoint.files[info.file] for info in checkpoint.source.infos.values()}
    return sum(sorted(sizes.values())[-HELD_SHARDS:])


def _told(info: TensorInfo | None) -> str:
    return "nothing" if info is None else f"{info.dtype} {list(info.shape)} at byte {info.offset}"
