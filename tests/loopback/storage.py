"""Repositories like git's: commits that never change, branches and tags that point to them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from loopback.content import Content, content_of, git_oid

REGULAR_BYTES = 10 << 20  # above this a file is kept as an LFS object, whatever its name
LFS_SUFFIXES = tuple(
    ".7z .arrow .bin .bz2 .ckpt .ftz .gguf .gz .h5 .joblib .mlmodel .model .msgpack .npy .npz .onnx .ot .parquet .pb "  # noqa: SIM905
    ".pickle .pkl .pt .pth .rar .safetensors .tar .tflite .tgz .wasm .xz .zip .zst".split()
)
ATTRIBUTES = ".gitattributes"
_TRACKED = " filter=lfs diff=lfs merge=lfs -text\n"
FIRST_ATTRIBUTES = "".join(f"*{suffix}{_TRACKED}" for suffix in LFS_SUFFIXES if suffix != ".gguf").encode()
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    content: Content
    lfs: bool

    @cached_property
    def oid(self) -> str:
        """git's name of the file: of the pointer where the content is an LFS object."""
        return git_oid(self.content.pointer) if self.lfs else self.content.blob_oid

    @property
    def etag(self) -> str:
        return self.content.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: Mapping[str, Entry]
    title: str
    message: str
    author: str
    date: datetime

    @property
    def iso_date(self) -> str:
        return self.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass
class Repo:
    """A repository; `objects` are LFS contents by sha256 that were uploaded or may be downloaded."""

    repo_id: str
    kind: str = "model"
    private: bool = False
    gated: str | bool = False
    granted: bool = True
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Content] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a full ref or 40 hex digits name."""
        for prefix, names in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            if (name := revision.removeprefix(prefix)) in names:
                return self.commits[names[name]]
        return self.commits.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file of a revision, read whole: what tests compare."""
        commit = self.find(revision)
        assert commit is not None, f"{self.repo_id} has no revision {revision}"
        return {name: entry.content.read() for name, entry in commit.files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found

    def commit(
        self, branch: str, files: Mapping[str, Entry], title: str, message: str = "", author: str = "somebody"
    ) -> Commit:
        """Puts a commit with exactly these files on top of a branch; the same steps give the same ids."""
        parent = self.branches.get(branch)
        tree = {name: files[name] for name in sorted(files)}
        date = _EPOCH + timedelta(minutes=len(self.commits))
        seed = [self.kind, self.repo_id, parent, title, message, date.isoformat()]
        listed = [[name, entry.content.size, _known_oid(entry)] for name, entry in tree.items()]
        oid = hashlib.sha1(json.dumps([seed, listed]).encode()).hexdigest()
        commit = Commit(oid, parent, tree, title, message, author, date)
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit

    def change(self, branch: str, changes: Mapping[str, Entry | None], title: str, **words: str) -> Commit:
        """A commit that sets files, and removes those that are None."""
        head = self.find(branch)
        files = dict(head.files) if head is not None else {}
        for name, entry in changes.items():
            files.pop(name, None)
            if entry is not None:
                files[name] = entry
        return self.commit(branch, track(files, changes), title, **words)


def _known_oid(entry: Entry) -> str | None:
    """A name of the content that costs no reading of a large file."""
    return entry.oid if isinstance(entry.content.data, bytes) else entry.content.claimed


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps such a file as an LFS object; an empty one never."""
    return size > 0 and (size > REGULAR_BYTES or path.endswith(LFS_SUFFIXES))


def entry_of(path: str, data: bytes | Content) -> Entry:
    content = content_of(data)
    return Entry(content, is_lfs(path, content.size))


def track(files: Mapping[str, Entry], changes: Mapping[str, Entry | None]) -> Mapping[str, Entry]:
    """The files with lines in .gitattributes, where there is one, for new LFS files that no line of it covers."""
    if ATTRIBUTES not in files:
        return files
    text = files[ATTRIBUTES].content.read().decode()
    covered = tuple(line.split()[0].removeprefix("*") for line in text.splitlines() if line.strip())
    new = [name for name, entry in changes.items() if entry and entry.lfs and not name.endswith(covered)]
    if not new:
        return files
    text += "".join(name + _TRACKED for name in sorted(new))
    return {**files, ATTRIBUTES: Entry(Content(text.encode()), lfs=False)}
