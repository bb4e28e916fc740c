"""Which function answers which request: the table of both origins."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from loopback import collection_routes, object_routes, read_routes, write_routes, xet
from loopback.access import FILES, READ, WRITE, open_repo
from loopback.answers import Answer, Call, Refused, refusal

_API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
_PLAIN = r"/((?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"
_REVISION, _PATH = r"(?P<revision>[^/]+)", r"(?P<path>.+)"
_COLLECTION = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
_OBJECT = r"/repos/(?P<kind>\w+)s/(?P<repo_id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"


@dataclass(frozen=True)
class Route:
    """A method and a path; with `level`, the repository in the path is opened first."""

    method: str
    pattern: re.Pattern[str]
    answer: Callable[..., Answer]
    level: str | None = None


HUB = tuple(
    Route(method, re.compile(pattern), answer, level)
    for method, pattern, answer, level in (
        ("GET", r"/api/whoami-v2", read_routes.whoami, None),
        ("GET", r"/api/agent-harnesses", read_routes.harnesses, None),
        ("POST", r"/api/validate-yaml", write_routes.validate_yaml, None),
        ("POST", r"/api/complete_multipart", object_routes.complete, None),
        ("POST", r"/api/repos/create", write_routes.create_repo, None),
        ("DELETE", r"/api/repos/delete", write_routes.delete_repo, None),
        ("POST", r"/api/repos/move", write_routes.move_repo, None),
        ("GET", _API, read_routes.info, READ),
        ("GET", _API + f"/revision/{_REVISION}", read_routes.info, READ),
        ("GET", _API + "/auth-check", read_routes.auth_check, FILES),
        ("GET", _API + "/auth-check/write", read_routes.auth_check, WRITE),
        ("GET", _API + f"/tree/{_REVISION}(/{_PATH})?", read_routes.tree, READ),
        ("POST", _API + f"/paths-info/{_REVISION}", read_routes.paths_info, READ),
        ("GET", _API + "/refs", read_routes.refs, READ),
        ("GET", _API + f"/commits/{_REVISION}", read_routes.commits, READ),
        ("GET", _PLAIN + f"/resolve/{_REVISION}/{_PATH}", read_routes.resolve, FILES),
        ("GET", _API.replace("/api/", "/api/resolve-cache/") + f"/{_REVISION}/{_PATH}", read_routes.resolve, FILES),
        ("PUT", _API + "/settings", write_routes.settings, WRITE),
        ("POST", _API + "/branch/(?P<branch>[^/]+)", write_routes.create_branch, WRITE),
        ("DELETE", _API + "/branch/(?P<branch>[^/]+)", write_routes.delete_branch, WRITE),
        ("POST", _API + f"/tag/{_REVISION}", write_routes.create_tag, WRITE),
        ("DELETE", _API + "/tag/(?P<tag>[^/]+)", write_routes.delete_tag, WRITE),
        ("POST", _API + f"/preupload/{_REVISION}", write_routes.preupload, WRITE),
        ("POST", _API + f"/commit/{_REVISION}", write_routes.commit, WRITE),
        ("GET", _API + f"/xet-(?P<access>read)-token/{_REVISION}", xet.token, FILES),
        ("GET", _API + f"/xet-(?P<access>write)-token/{_REVISION}", xet.token, WRITE),
        ("POST", _PLAIN + r"\.git/info/lfs/objects/batch", object_routes.batch, WRITE),
        ("POST", _PLAIN + r"\.git/info/lfs/objects/verify", object_routes.verify, WRITE),
        ("POST", r"/api/collections", collection_routes.create, None),
        ("GET", r"/api/collections", collection_routes.listed, None),
        ("GET", _COLLECTION, collection_routes.get, None),
        ("PATCH", _COLLECTION, collection_routes.update, None),
        ("DELETE", _COLLECTION, collection_routes.delete, None),
        ("POST", _COLLECTION + "/items", collection_routes.add_item, None),
        ("PATCH", _COLLECTION + "/items/(?P<item>[^/]+)", collection_routes.update_item, None),
        ("DELETE", _COLLECTION + "/items/(?P<item>[^/]+)", collection_routes.delete_item, None),
    )
)
CDN = tuple(
    Route(method, re.compile(_OBJECT), answer)
    for method, answer in (("GET", object_routes.get_object), ("PUT", object_routes.put_object))
)


def route(call: Call) -> Answer:
    """The answer to a request, a refusal included."""
    method = "GET" if call.request.method == "HEAD" else call.request.method
    for row in HUB if call.request.origin == "hub" else CDN:
        match = row.pattern.fullmatch(call.target) if row.method == method else None
        if match is None:
            continue
        words = {name: value for name, value in match.groupdict().items() if value is not None}
        try:
            if row.level is None:
                return row.answer(call, **words)
            repo = open_repo(call, words.pop("kind", "model"), words.pop("repo_id"), row.level)
            return row.answer(call, repo, **words)
        except Refused as refused:
            return refused.answer
    return refusal(404, f"Sorry, we can't find the page you are looking for: {call.target}").answer
