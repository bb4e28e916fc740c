"""The genuine huggingface_hub client against the loopback Hub: nothing of it is replaced."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_session, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from loopback.content import Content, sparse_file

SHARD = "model-00001-of-00001.safetensors"
WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n# Card\n",
    SHARD: WEIGHTS,
    "sub/vocab.txt": b"a\n",
}
BASE = "some/model"
OWN = "tester/model"


@pytest.fixture
def folder(tmp_path):
    """The files of FILES on the disk."""
    for name, data in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


def read_tree(folder):
    """Every file below a folder, but for the client's own notes."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_upload_and_download(loopback, hub_client, folder, tmp_path):
    hub_client.create_repo(OWN)
    done = hub_client.upload_folder(repo_id=OWN, folder_path=folder, commit_message="All of it")
    assert done.oid == loopback.head(OWN)
    assert loopback.repo(OWN).files() == FILES | {".gitattributes": loopback.repo(OWN).files()[".gitattributes"]}
    back = hub_client.snapshot_download(OWN, ignore_patterns=".gitattributes", local_dir=tmp_path / "back")
    assert read_tree(back) == FILES
    assert [commit.title for commit in hub_client.list_repo_commits(OWN)] == ["All of it", "initial commit"]
    [put] = loopback.find(hashlib.sha256(WEIGHTS).hexdigest(), "PUT")
    assert (put.origin, put.received, put.authorized) == ("cdn", len(WEIGHTS), False)


def test_uploading_the_same_again_changes_nothing(loopback, hub_client, folder):
    hub_client.create_repo(OWN)
    first = hub_client.upload_folder(repo_id=OWN, folder_path=folder)
    again = hub_client.upload_folder(repo_id=OWN, folder_path=folder)
    assert again.oid == first.oid
    assert len(loopback.find("/commit/")) == 1
    assert len(loopback.find("", "PUT")) == 1


def test_objects_in_parts(loopback, hub_client):
    loopback.part_bytes = 300_000
    hub_client.create_repo(OWN)
    hub_client.upload_file(repo_id=OWN, path_in_repo=SHARD, path_or_fileobj=WEIGHTS)
    assert [put.received for put in loopback.find("", "PUT")] == [300_000, 300_000, 300_000, len(WEIGHTS) - 900_000]
    assert loopback.repo(OWN).files()[SHARD] == WEIGHTS


def test_a_file_without_a_known_suffix_is_tracked(loopback, hub_client):
    hub_client.create_repo(OWN)
    before = loopback.repo(OWN).files()[".gitattributes"]
    hub_client.upload_file(repo_id=OWN, path_in_repo="x-Q4_K_M.gguf", path_or_fileobj=b"GGUF")
    after = loopback.repo(OWN).files()[".gitattributes"]
    assert after == before + b"x-Q4_K_M.gguf filter=lfs diff=lfs merge=lfs -text\n"
    hub_client.upload_file(repo_id=OWN, path_in_repo="x-Q4_K_M.gguf", path_or_fileobj=b"GGUF2")
    assert loopback.repo(OWN).files()[".gitattributes"] == after


def test_commits(loopback, hub_client):
    hub_client.create_repo(OWN)
    add = CommitOperationAdd("a/b.txt", b"1")
    parent = loopback.head(OWN)
    hub_client.create_commit(OWN, [add], commit_message="one", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        hub_client.create_commit(OWN, [CommitOperationAdd("c", b"2")], commit_message="two", parent_commit=parent)
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        hub_client.create_commit(OWN, [CommitOperationDelete("none.txt")], commit_message="three")
    hub_client.create_commit(OWN, [CommitOperationDelete("a/")], commit_message="four")
    assert set(loopback.repo(OWN).files()) == {".gitattributes"}
    with pytest.raises(ValueError, match='"license" must be one of'):
        hub_client.upload_file(repo_id=OWN, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mine\n---\n")


def test_branches_and_tags(loopback, hub_client):
    hub_client.create_repo(OWN)
    hub_client.create_branch(OWN, branch="gptq/4bit")
    hub_client.create_branch(OWN, branch="gptq/4bit", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        hub_client.create_branch(OWN, branch="gptq/4bit")
    hub_client.upload_file(repo_id=OWN, path_in_repo="x", path_or_fileobj=b"1", revision="gptq/4bit")
    hub_client.create_tag(OWN, tag="v1", revision="gptq/4bit")
    hub_client.create_tag(OWN, tag="v1", exist_ok=True)
    refs = hub_client.list_repo_refs(OWN)
    assert {ref.name for ref in refs.branches} == {"main", "gptq/4bit"}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [
        ("v1", "refs/tags/v1", loopback.head(OWN, "gptq/4bit"))
    ]
    assert hub_client.file_exists(OWN, "x", revision="v1")
    assert not hub_client.file_exists(OWN, "x")
    hub_client.delete_tag(OWN, tag="v1")
    hub_client.delete_branch(OWN, branch="gptq/4bit")
    with pytest.raises(RevisionNotFoundError):
        hub_client.model_info(OWN, revision="v1")


def test_information(loopback, hub_client):
    commit = loopback.add_repo(BASE, FILES)
    info = hub_client.model_info(BASE, files_metadata=True)
    assert (info.sha, info.private, info.gated, info.card_data.license) == (commit, False, False, "mit")
    assert "license:mit" in info.tags
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert {name: row.size for name, row in files.items()} == {name: len(data) for name, data in FILES.items()}
    assert files[SHARD].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert files["config.json"].blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    pointer = subprocess.run(
        ["git", "hash-object", "--stdin"],
        input=b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
        % (files[SHARD].lfs.sha256.encode(), len(WEIGHTS)),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert files[SHARD].blob_id == pointer.strip()
    assert {row.path: row.size for row in hub_client.get_paths_info(BASE, ["sub", SHARD, "no"]) if "." in row.path} == {
        SHARD: len(WEIGHTS)
    }


def test_pages_of_a_tree(loopback, hub_client):
    loopback.page_items = 3
    loopback.add_repo(BASE, {f"{number}/file.txt": b"%d" % number for number in range(5)})
    rows = list(hub_client.list_repo_tree(BASE, recursive=True))
    assert len(rows) == 10
    assert len({row.path for row in rows}) == 10
    assert len(loopback.find("/tree/")) == 4
    assert [row.path for row in hub_client.list_repo_tree(BASE, "3")] == ["3/file.txt"]


@pytest.mark.parametrize("redirects", [False, True])
def test_files_come_from_two_origins(loopback, hub_client, redirects):
    loopback.text_redirects = redirects
    loopback.add_repo(BASE, FILES)
    for name, data in FILES.items():
        assert Path(hub_client.hf_hub_download(BASE, name)).read_bytes() == data
    assert [request.names(SHARD) for request in loopback.requests if request.origin == "cdn"] == [True]
    assert not any(request.authorized for request in loopback.requests if request.origin == "cdn")
    assert all(request.authorized for request in loopback.requests if request.origin == "hub")
    told = [str(request) + str(request.headers) for request in loopback.requests if request.origin == "cdn"]
    assert not any(loopback.token in text for text in told)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-9", WEIGHTS[:10]),
        ("bytes=1000-", WEIGHTS[1000:]),
        ("bytes=-7", WEIGHTS[-7:]),
        (f"bytes=5-{1 << 40}", WEIGHTS[5:]),
    ],
)
def test_ranges(loopback, hub_client, asked, expected):
    loopback.add_repo(BASE, FILES)
    headers = {"Range": asked, "Authorization": f"Bearer {loopback.token}"}
    answer = get_session().get(hf_hub_url(BASE, SHARD), headers=headers)
    assert (answer.status_code, answer.content) == (206, expected)
    first = len(WEIGHTS) - 7 if asked == "bytes=-7" else int(asked[6:].split("-")[0])
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(WEIGHTS)}"
    [cdn] = loopback.find(SHARD, origin="cdn")
    assert (cdn.authorized, cdn.range, cdn.sent) == (False, asked, len(expected))


def test_ranges_that_are_not_there(loopback, hub_client):
    loopback.add_repo(BASE, FILES)
    answer = get_session().get(hf_hub_url(BASE, SHARD), headers={"Range": f"bytes={len(WEIGHTS)}-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(WEIGHTS)}")


def test_signed_addresses(loopback, hub_client):
    loopback.add_repo(BASE, FILES)
    answer = get_session().get(hf_hub_url(BASE, SHARD), follow_redirects=False)
    signed = answer.headers["Location"]
    assert signed.startswith(loopback.cdn_url)
    assert get_session().get(signed).content == WEIGHTS
    assert get_session().get(signed.replace("Signature=", "Signature=0")).status_code == 403
    assert get_session().put(signed, content=b"other").status_code == 403
    assert get_session().get(signed, headers={"Authorization": "Bearer x"}).status_code == 400
    loopback.expire_urls()
    assert get_session().get(signed).status_code == 403
    assert get_session().get(hf_hub_url(BASE, SHARD)).content == WEIGHTS


def test_renamed_repositories(loopback, hub_client):
    commit = loopback.add_repo("some/old", FILES)
    loopback.rename("some/old", BASE)
    info = hub_client.model_info("some/old", files_metadata=True)
    assert (info.id, info.sha) == (BASE, commit)
    assert Path(hub_client.hf_hub_download("some/old", SHARD)).read_bytes() == WEIGHTS
    assert [request.status for request in loopback.find("some/old")][:2] == [307, 307]


def test_a_push_in_the_middle(loopback, hub_client):
    first = loopback.add_repo(BASE, FILES)
    second = loopback.commit(BASE, {SHARD: b"new", "config.json": None})
    assert Path(hub_client.hf_hub_download(BASE, SHARD, revision=first)).read_bytes() == WEIGHTS
    assert Path(hub_client.hf_hub_download(BASE, SHARD)).read_bytes() == b"new"
    assert hub_client.list_repo_files(BASE, revision=second) == ["README.md", SHARD, "sub/vocab.txt"]
    assert [commit.commit_id for commit in hub_client.list_repo_commits(BASE)] == [second, first]


def test_files_on_the_disk_are_served_without_being_read(loopback, hub_client, tmp_path):
    size, claimed = 40 << 30, "0" * 64
    path = sparse_file(tmp_path / "sparse", b"head", size)
    loopback.add_repo(BASE, {SHARD: Content(path, claimed)})
    assert hub_client.model_info(BASE, files_metadata=True).siblings[0].lfs.sha256 == claimed
    for asked, expected in (("bytes=0-5", b"head\0\0"), (f"bytes={size - 3}-", b"\0\0\0")):
        answer = get_session().get(hf_hub_url(BASE, SHARD), headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, expected)
    assert path.stat().st_blocks * 512 < 1 << 20
    loopback.add_repo("some/other", {SHARD: sparse_file(tmp_path / "small", b"head", 3 << 20)})
    found = hub_client.model_info("some/other", files_metadata=True).siblings[0].lfs.sha256
    assert found == hashlib.sha256(b"head".ljust(3 << 20, b"\0")).hexdigest()


def test_a_child_process(loopback, folder, tmp_path):
    code = """
import sys
from huggingface_hub import create_repo, upload_folder, snapshot_download
create_repo("tester/model")
upload_folder(repo_id="tester/model", folder_path=sys.argv[1])
print(snapshot_download("tester/model"))
"""
    environment = os.environ | loopback.environment(tmp_path / "home")
    ran = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert read_tree(ran.stdout.strip())[SHARD] == WEIGHTS
    assert loopback.token not in ran.stdout + ran.stderr
