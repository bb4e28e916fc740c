"""Everything that only looks: information, trees, references, commits, and the files themselves."""

from typing import Any
from urllib.parse import quote, unquote

from loopback.access import open_commit, signed_in
from loopback.answers import Answer, Call, Refused, answer_file, answer_json, answer_page, redirect, refusal
from loopback.cards import tags_of, words_of
from loopback.storage import Commit, Entry, Repo


def whoami(call: Call) -> Answer:
    account = signed_in(call)
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "admin"} for name in account.organisations]
    token = {"displayName": "loopback", "role": "write" if account.write else "read"}
    user = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "isPro": False}
    return answer_json(user | {"orgs": orgs, "auth": {"type": "access_token", "accessToken": token}})


def harnesses(_: Call) -> Answer:
    return answer_json({"standardEnvVars": [], "harnesses": {}})


def auth_check(_: Call, __: Repo) -> Answer:
    return answer_json({})


def info(call: Call, repo: Repo, revision: str = "main") -> Answer:
    commit = open_commit(repo, unquote(revision))
    first = repo.history("main")[-1]
    card = words_of(commit.files)
    data: dict[str, Any] = {
        "_id": repo.repo_id,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.repo_id.partition("/")[0],
        "sha": commit.oid,
        "lastModified": commit.iso_date,
        "createdAt": first.iso_date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(card),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card or None,
        "siblings": [_sibling(name, entry, call.flag("blobs")) for name, entry in commit.files.items()],
    }
    if wanted := call.query.get("expand"):
        data = {name: data.get(name) for name in ("_id", "id", *wanted)}
    return answer_json({name: value for name, value in data.items() if value is not None})


def _sibling(name: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    data = {"rfilename": name, "blobId": entry.oid, "size": entry.content.size}
    return data | ({"lfs": _lfs(entry) | {"sha256": entry.content.sha256}} if entry.lfs else {})


def _lfs(entry: Entry) -> dict[str, Any]:
    return {"size": entry.content.size, "pointerSize": len(entry.content.pointer)}


def tree(call: Call, repo: Repo, revision: str, path: str = "") -> Answer:
    commit = open_commit(repo, unquote(revision))
    prefix = unquote(path).strip("/") + "/" if path else ""
    inside = [name for name in commit.files if name.startswith(prefix)]
    if prefix and not inside:
        raise refusal(404, f"{prefix} does not exist on {revision!r}", "EntryNotFound")
    folders = sorted(
        {name[:at] for name in inside for at, letter in enumerate(name) if letter == "/" and at > len(prefix)}
    )
    names = sorted([*inside, *folders])
    if not call.flag("recursive"):
        names = [name for name in names if "/" not in name.removeprefix(prefix)]
    return answer_page(call, [_row(call, commit, name) for name in names], call.hub.page_items)


def _row(call: Call, commit: Commit, path: str) -> dict[str, Any]:
    entry = commit.files.get(path)
    if entry is None:
        return {"type": "directory", "oid": commit.oid, "size": 0, "path": path}
    row = {"type": "file", "oid": entry.oid, "size": entry.content.size, "path": path}
    row |= {"lfs": _lfs(entry) | {"oid": entry.content.sha256}} if entry.lfs else {}
    return row | ({"xetHash": found} if (found := _xet_hash(call, entry)) else {})


def _xet_hash(call: Call, entry: Entry) -> str | None:
    found = call.hub.xet.find(entry.content.sha256) if call.hub.xet and entry.lfs else None
    return found.name if found else None


def paths_info(call: Call, repo: Repo, revision: str) -> Answer:
    commit = open_commit(repo, unquote(revision))
    paths = [path.rstrip("/") for path in call.form.get("paths", [])]
    known = [
        path for path in paths if path in commit.files or any(name.startswith(f"{path}/") for name in commit.files)
    ]
    return answer_json([_row(call, commit, path) for path in known])


def refs(call: Call, repo: Repo) -> Answer:
    def rows(names: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid} for name, oid in names.items()]

    found = {"branches": rows(repo.branches, "heads"), "tags": rows(repo.tags, "tags"), "converts": []}
    return answer_json(found | ({"pullRequests": []} if call.flag("include_prs") else {}))


def commits(call: Call, repo: Repo, revision: str) -> Answer:
    open_commit(repo, unquote(revision))
    rows = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.iso_date,
        }
        for commit in repo.history(unquote(revision))
    ]
    return answer_page(call, rows, min(call.hub.page_items, 50))


def resolve(call: Call, repo: Repo, revision: str, path: str) -> Answer:
    """A file: LFS objects by a signed address of the CDN, all others as they are."""
    commit, name = open_commit(repo, unquote(revision)), unquote(path)
    origin = {"X-Repo-Commit": commit.oid}
    entry = commit.files.get(name)
    if entry is None:
        raise Refused(refusal(404, "Entry not found", "EntryNotFound").answer.plus(origin))
    headers = origin | {"X-Linked-Size": str(entry.content.size), "X-Linked-Etag": f'"{entry.etag}"'}
    if found := _xet_hash(call, entry):
        refresh = f"{call.hub.url}/api/{repo.kind}s/{repo.repo_id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": found, "Link": f'<{refresh}>; rel="xet-auth"'}
    if entry.lfs:
        repo.objects.setdefault(entry.content.sha256, entry.content)
        file = quote(name.rpartition("/")[2])
        disposition = f"inline; filename*=UTF-8''{file}; filename=\"{file}\";"
        url = call.hub.object_url(repo, entry.content.sha256)
        signed = call.hub.signer.sign("GET", url, **{"response-content-disposition": disposition})
        return redirect(302, signed, headers | {"Accept-Ranges": "bytes"})
    if call.hub.text_redirects and not call.target.startswith("/api/resolve-cache/"):
        cache = f"/api/resolve-cache/{repo.kind}s/{repo.repo_id}/{commit.oid}/{quote(name, safe='')}"
        return redirect(307, cache, headers | {"ETag": f'"{entry.etag}"'})
    return answer_file(call, entry.content, origin | {"ETag": f'"{entry.etag}"'})
