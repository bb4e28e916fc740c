"""Ranges of tensors whose files come and go: each file is held while somebody works on it, and no longer."""

from collections import Counter
from collections.abc import Callable, Iterable

from quantkit.tensors import TensorSource
from quantkit.weights.ranges import FileRanges, WholeTensors
from quantkit.weights.streamed import StreamedSource


class StreamedRanges(FileRanges):
    """As `FileRanges`, of a streamed source. One thread holds and releases; any may read what is held."""

    def __init__(self, source: StreamedSource) -> None:
        super().__init__(source.folder, source.infos)
        self._source = source
        self._users: Counter[str] = Counter()  # by file

    def expect(self, stretches: Iterable[tuple[str, ...]]) -> None:
        """Fetch the first shards already."""
        self._source.expect(name for names in stretches for name in names)

    def is_held(self, names: tuple[str, ...]) -> bool:
        """Whether their shards are on the disk or on their way."""
        return all(map(self._source.is_held, names))

    def hold(self, names: tuple[str, ...]) -> None:
        """Wait for the shards of these tensors.

        Raises:
            QuantkitError: one does not come, or is not what its header had promised.
        """
        for name in names:
            self._source.hold(name)
            self._users[self._infos[name].file] += 1

    def release(self, names: tuple[str, ...]) -> None:
        """Let the shards go that nobody works on or awaits: a file that is open keeps its place on the disk."""
        for name in names:
            file = self._infos[name].file
            self._users[file] -= 1
            if not self._users[file]:
                self._close(file)
            self._source.release(name)


class StreamedTensors(WholeTensors):
    """As `WholeTensors`, of tensors that are computed from those of a streamed source.

    Args:
        source: gives the tensors.
        streamed: what it reads from.
        stored: names what it reads for a tensor, in order.
    """

    def __init__(
        self, source: TensorSource, streamed: StreamedSource, stored: Callable[[str], tuple[str, ...]]
    ) -> None:
        super().__init__(source)
        self._streamed, self._stored = streamed, stored
        self._asked: set[str] = set()  # each tensor is read once, and its value kept
        self._held: set[str] = set()

    def expect(self, stretches: Iterable[tuple[str, ...]]) -> None:
        """Fetch the first shards already."""
        names = dict.fromkeys(name for names in stretches for name in names)
        self._streamed.expect(stored for name in names for stored in self._stored(name))

    def is_held(self, names: tuple[str, ...]) -> bool:
        """Whether the shards of what is not read yet are on the disk or on their way."""
        unread = [name for name in names if name not in self._asked]
        return all(self._streamed.is_held(stored) for name in unread for stored in self._stored(name))

    def hold(self, names: tuple[str, ...]) -> None:
        """Wait for the shards of what is not read yet.

        Raises:
            QuantkitError: one does not come, or is not what its header had promised.
        """
        for name in names:
            if name not in self._asked:
                for stored in self._stored(name):
                    self._streamed.hold(stored)
                self._asked.add(name)
                self._held.add(name)

    def release(self, names: tuple[str, ...]) -> None:
        """Let the shards go: the values are here."""
        for name in names:
            if name in self._held:
                self._held.remove(name)
                for stored in self._stored(name):
                    self._streamed.release(stored)
