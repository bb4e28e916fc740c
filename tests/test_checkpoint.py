"""Opening by name: a local folder, a repository, the cache alone."""

import os
import subprocess
import sys

import hub_files
import pytest
from hub_files import FILES, FIRST, REPO, SMALL, TENSORS, assert_reads
from huggingface_hub import constants
from safetensors.torch import save

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError, NetworkError, NotFoundError
from quantkit.hub.repository import RepoReference, needed_files, parse_reference

server = hub_files.server
COMMIT = "1" * 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", RepoReference("org/name")),
        ("Org-1/na.me_2@main", RepoReference("Org-1/na.me_2", "main")),
        ("org/name@refs/pr/3", RepoReference("org/name", "refs/pr/3")),
        ("org/name@" + COMMIT, RepoReference("org/name", COMMIT)),
    ],
)
def test_references(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "/org/name",
        "./org/name",
        "~/org/name",
        "a/b/c",
        "a/b@",
        "a/../b",
        "a/b@../c",
        "a/b--c",
        "a/b\n",
        "é/b",
    ],
)
def test_other_texts_are_no_references(text):
    assert parse_reference(text) is None


def test_opens_a_repository(server):
    planned, commit = open_checkpoint(f"{REPO}@main", headers_only=True), server.head(REPO)
    assert (planned.repo_id, planned.commit, planned.config) == (REPO, commit, {"model_type": "llama"})
    assert planned.download_bytes == sum(len(FILES[name]) for name in needed_files(FILES))
    assert set(planned.source.infos) == set(TENSORS)
    assert not any(name.name == FIRST for name in planned.folder.iterdir())
    opened = open_checkpoint(REPO)
    assert (opened.repo_id, opened.commit, opened.download_bytes) == (REPO, commit, 0)
    assert opened.files == planned.files
    assert_reads(opened.source)
    assert_reads(open_checkpoint(REPO, headers_only=True).source)


def test_offline_the_cache_is_enough(server, monkeypatch):
    commit = open_checkpoint(REPO).commit
    before = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for reference in (REPO, f"{REPO}@main", f"{REPO}@{commit}"):
        opened = open_checkpoint(reference)
        assert opened.commit == commit
        assert_reads(opened.source)
    assert len(server.requests) == before
    with pytest.raises(NetworkError, match="not complete in the cache"):
        open_checkpoint("some/other")


def test_a_local_path_goes_first(server, tmp_path):
    folder = tmp_path / REPO
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(SMALL["config.json"])
    (folder / "model.safetensors").write_bytes(save(TENSORS))
    opened = open_checkpoint(REPO)
    assert (opened.repo_id, opened.commit, opened.download_bytes) == (None, None, 0)
    assert opened.files == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert_reads(opened.source)
    assert server.requests == []


def test_what_cannot_be_opened(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    for reference, error, message in [
        ("./absent/x/y", NotFoundError, "no such folder"),
        ("file", NotFoundError, "is a file"),
        ("empty", NotFoundError, "no config.json"),
        ("list", BadInputError, "expected an object"),
        ("some/absent", NotFoundError, "no repository"),
    ]:
        with pytest.raises(error, match=message):
            open_checkpoint(reference)


def test_the_environment_chooses_the_server(server, tmp_path):
    code = f"""
from quantkit.checkpoint import open_checkpoint
print(open_checkpoint({REPO!r}).source.read("a").sum().item())
"""
    environment = os.environ | server.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.stdout == "15.0\n", ran.stderr
    assert server.token not in ran.stderr
