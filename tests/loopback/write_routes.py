"""Everything that changes a repository: create, settings, branches, tags, commits."""

import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from loopback.access import WRITE, may_write, open_commit, open_repo
from loopback.answers import Answer, Call, answer_json, refusal
from loopback.cards import problems
from loopback.content import Content
from loopback.storage import ATTRIBUTES, FIRST_ATTRIBUTES, REGULAR_BYTES, Commit, Entry, Repo, is_lfs


@dataclass(frozen=True)
class _Target:
    """What a commit's operations change."""

    call: Call
    repo: Repo
    head: Commit


def create_repo(call: Call) -> Answer:
    asked = call.json
    owner = asked.get("organization") or getattr(call.account, "name", "")
    repo_id, kind = f"{owner}/{asked['name']}", asked.get("type") or "model"
    account = may_write(call, repo_id)
    where = {"url": f"{call.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}", "name": repo_id}
    if (kind, repo_id) in call.hub.repos:
        raise refusal(409, f"You already created this {kind} repo: {repo_id}", **where)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repo = Repo(repo_id, kind, private)
    entry = Entry(Content(FIRST_ATTRIBUTES), lfs=False)
    repo.commit("main", {ATTRIBUTES: entry}, "initial commit", author=account.name)
    call.hub.repos[kind, repo_id] = repo
    call.hub.moved.pop((kind, repo_id), None)
    return answer_json(where)


def delete_repo(call: Call) -> Answer:
    asked = call.json
    kind = asked.get("type") or "model"
    owner = asked.get("organization") or getattr(call.account, "name", "")
    repo = open_repo(call, kind, f"{owner}/{asked['name']}", WRITE)
    del call.hub.repos[kind, repo.repo_id]
    return answer_json({})


def move_repo(call: Call) -> Answer:
    asked = call.json
    kind, target = asked.get("type") or "model", asked["toRepo"]
    repo = open_repo(call, kind, asked["fromRepo"], WRITE)
    may_write(call, target)
    if (kind, target) in call.hub.repos:
        raise refusal(409, f"{target} exists already")
    call.hub.rename(repo.repo_id, target, kind)
    return answer_json({})


def settings(call: Call, repo: Repo) -> Answer:
    asked = call.json
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repo.gated = asked.get("gated", repo.gated)
    return answer_json({"private": repo.private, "gated": repo.gated})


def create_branch(call: Call, repo: Repo, branch: str) -> Answer:
    name = unquote(branch)
    if name in repo.branches:
        raise refusal(409, f"Reference already exists: refs/heads/{name}")
    repo.branches[name] = open_commit(repo, call.json.get("startingPoint") or "main").oid
    return answer_json({}, 201)


def delete_branch(_: Call, repo: Repo, branch: str) -> Answer:
    return _delete_reference(repo.branches, unquote(branch))


def create_tag(call: Call, repo: Repo, revision: str) -> Answer:
    name = call.json["tag"]
    if name in repo.tags:
        raise refusal(409, f"Tag reference exists already: refs/tags/{name}")
    repo.tags[name] = open_commit(repo, unquote(revision)).oid
    return answer_json({}, 201)


def delete_tag(_: Call, repo: Repo, tag: str) -> Answer:
    return _delete_reference(repo.tags, unquote(tag))


def _delete_reference(names: dict[str, str], name: str) -> Answer:
    if name not in names:
        raise refusal(404, f"Reference not found: {name}", "RevisionNotFound")
    if name == "main":
        raise refusal(403, "Cannot delete the branch main")
    del names[name]
    return answer_json({})


def validate_yaml(call: Call) -> Answer:
    errors, warnings = problems(call.json["content"])
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return answer_json(found, 400 if errors else 200)


def preupload(call: Call, repo: Repo, revision: str) -> Answer:
    """How each file is to be uploaded, and what the repository holds under its name."""
    commit = open_commit(repo, unquote(revision))

    def row(asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        mode = "lfs" if is_lfs(path, asked["size"]) else "regular"
        held = {"oid": commit.files[path].etag} if path in commit.files else {}
        return {"path": path, "uploadMode": mode, "shouldIgnore": False} | held

    return answer_json({"files": [row(asked) for asked in call.json["files"]], "commitOid": commit.oid})


def commit(call: Call, repo: Repo, revision: str) -> Answer:
    """Applies a list of operations, all or none. As on the Hub, one that changes nothing is a commit, too."""
    branch = unquote(revision)
    if branch not in repo.branches or call.flag("create_pr"):
        raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head = open_commit(repo, branch)
    rows = [json.loads(line) for line in call.body.read().splitlines() if line.strip()]
    header = next(row["value"] for row in rows if row["key"] == "header")
    if header.get("parentCommit") not in (None, head.oid):
        raise refusal(412, "A commit has happened since. Please refresh and try again.")
    target, changes = _Target(call, repo, head), dict[str, Entry | None]()
    for row in rows:
        changes |= _OPERATIONS[row["key"]](target, row["value"])
    done = repo.change(
        branch,
        changes,
        header["summary"],
        message=header.get("description") or "",
        author=call.account.name if call.account else "",
    )
    url = f"{call.hub.url}/{repo.repo_id}/commit/{done.oid}"
    return answer_json({"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": ""})


def _put_file(_: _Target, value: dict[str, Any]) -> dict[str, Entry | None]:
    data = base64.b64decode(value["content"])
    if len(data) > REGULAR_BYTES:
        raise refusal(400, f"{value['path']} is larger than {REGULAR_BYTES} bytes and must be an LFS file")
    if value["path"] == "README.md" and (errors := problems(data.decode())[0]):
        raise refusal(400, f"Invalid metadata in README.md: {errors[0]}")
    return {value["path"]: Entry(Content(data), lfs=False)}


def _put_object(target: _Target, value: dict[str, Any]) -> dict[str, Entry | None]:
    content, hub = target.repo.objects.get(value["oid"]), target.call.hub
    if content is None and hub.xet is not None:
        content = hub.xet.get(value["oid"], hub.new_file())
    if content is None or content.sha256 != value["oid"]:
        raise refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']} {value['oid']}")
    return {value["path"]: Entry(content, lfs=True)}


def _delete(target: _Target, value: dict[str, Any]) -> dict[str, Entry | None]:
    if value["path"] not in target.head.files:
        raise refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
    return {value["path"]: None}


def _delete_folder(target: _Target, value: dict[str, Any]) -> dict[str, Entry | None]:
    prefix = value["path"].rstrip("/") + "/"
    gone: dict[str, Entry | None] = {name: None for name in target.head.files if name.startswith(prefix)}
    if not gone:
        raise refusal(404, f"A folder with this name doesn't exist: {prefix}", "EntryNotFound")
    return gone


_OPERATIONS: dict[str, Any] = {
    "header": lambda _, __: {},
    "file": _put_file,
    "lfsFile": _put_object,
    "deletedFile": _delete,
    "deletedFolder": _delete_folder,
}
