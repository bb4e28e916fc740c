"""A repository of the Hugging Face Hub: its name, the one commit that a name means, the files to take."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.hf_api import RepoSibling

from quantkit.errors import BadInputError
from quantkit.weights.remote import RepoSnapshot, ask, client
from quantkit.weights.remote_headers import weight_files

_REFERENCE = re.compile(r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
# What a quantized checkpoint is made from or must carry along, in lower case; never code.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*.jinja",
    "chat_template*.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "readme.md",
    "*license*",
    "*licence*",
    "copying*",
    "*notice*",
    "*use_policy*",
)
_NEVER = (
    "*.py",
    "*.safetensors",
    "*.bin",
    "*.index.json",
    "consolidated*",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
)


@dataclass(frozen=True)
class RepoReference:
    """A repository as a user writes it: `organisation/name`, `organisation/name@revision`."""

    repo_id: str
    revision: str | None = None


def parse_reference(text: str) -> RepoReference | None:
    """The repository that a text names, or None where it has another form."""
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo_id"]:
        return None
    return RepoReference(match["repo_id"], match["revision"])


def resolve(repo_id: str, revision: str | None = None) -> RepoSnapshot:
    """The commit that a revision means now, and its files: the one look-up of a run.

    A repository that was renamed is found under its old name, too; the snapshot has the new one. With
    HF_HUB_OFFLINE, the commit and the files that the cache holds.

    Args:
        repo_id: organisation/name.
        revision: branch, tag, pull request or commit; None for the default branch.

    Raises:
        NotFoundError: no such repository or revision, or no access.
        NetworkError: the Hub was not reached.
    """
    if constants.HF_HUB_OFFLINE:
        return _resolve_offline(repo_id, revision)
    api = client()
    info = ask(repo_id, lambda: api.model_info(repo_id, revision=revision, files_metadata=True), revision)
    if not info.sha or not re.fullmatch(r"[0-9a-f]{40,64}", info.sha):
        raise BadInputError(f"{repo_id}: found commit {info.sha!r} on the Hub, expected a hash")
    if info.id != repo_id and parse_reference(info.id) == RepoReference(info.id):
        repo_id = info.id
    siblings = info.siblings or []
    files = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    oids = {sibling.rfilename: oid for sibling in siblings if (oid := _oid(sibling))}
    return RepoSnapshot(repo_id, revision, info.sha, files, bool(info.gated), bool(info.private), oids)


def small_files(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer, chat template, licence and card of a repository, without weights."""
    return sorted(name for name in names if _matches(name, _SMALL_FILES) and not _matches(name, _NEVER))


def needed_files(names: Iterable[str]) -> list[str]:
    """The files to download: the small ones, and the weights once.

    Raises:
        NotFoundError: the repository has no weights that can be read.
    """
    names = list(names)
    return small_files(names) + weight_files(names)


def _resolve_offline(repo_id: str, revision: str | None) -> RepoSnapshot:
    api = client()
    folder = Path(
        ask(
            repo_id,
            lambda: api.snapshot_download(
                repo_id, revision=revision, allow_patterns=["config.json"], local_files_only=True
            ),
        )
    )
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    # The client names the bytes of a file by their hash, and links to them.
    oids = {name: (folder / name).readlink().name for name in files if (folder / name).is_symlink()}
    return RepoSnapshot(repo_id, revision, folder.name, files, oids=oids)


def _oid(sibling: RepoSibling) -> str | None:
    """What the file's bytes must hash to: the sha256 of an LFS file, the git blob's sha1 of another."""
    return sibling.lfs.sha256 if sibling.lfs else sibling.blob_id


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)
