"""LFS objects: who may upload what, the CDN that takes and gives them, and parts that become one object."""

import hashlib
import itertools
import math
from dataclasses import dataclass, field

from loopback.answers import Answer, Call, answer_file, answer_json, refusal
from loopback.content import CHUNK_BYTES, Content
from loopback.storage import Repo

_NUMBERS = itertools.count(1)


@dataclass
class Parts:
    """An upload in parts, before it is complete."""

    repo: Repo
    oid: str
    size: int
    contents: dict[int, Content] = field(default_factory=dict)


def batch(call: Call, repo: Repo) -> Answer:
    """What to do for each object: nothing where it is there, one PUT, or a PUT for each part."""
    multipart = "multipart" in call.json.get("transfers", ["basic"])
    rows = [_actions(call, repo, asked["oid"], asked["size"], multipart) for asked in call.json["objects"]]
    chosen = "multipart" if any("chunk_size" in str(row) for row in rows) else "basic"
    return answer_json({"transfer": chosen, "objects": rows, "hash_algo": "sha256"})


def _actions(call: Call, repo: Repo, oid: str, size: int, multipart: bool) -> dict:
    row = {"oid": oid, "size": size, "authenticated": True}
    if oid in repo.objects:
        return row
    hub = call.hub
    url, verify = hub.object_url(repo, oid), {"href": f"{hub.url}{call.target.replace('/batch', '/verify')}"}
    if not multipart or size <= hub.part_bytes:
        return row | {"actions": {"upload": {"href": hub.signer.sign("PUT", url)}, "verify": verify}}
    number = str(next(_NUMBERS))
    hub.parts[number] = Parts(repo, oid, size)
    header = {"chunk_size": str(hub.part_bytes)}
    for part in range(1, math.ceil(size / hub.part_bytes) + 1):
        header[f"{part:05}"] = hub.signer.sign("PUT", url, uploadId=number, partNumber=str(part))
    complete = hub.signer.sign("POST", f"{hub.url}/api/complete_multipart", uploadId=number)
    return row | {"actions": {"upload": {"href": complete, "header": header}, "verify": verify}}


def verify(call: Call, repo: Repo) -> Answer:
    content = repo.objects.get(call.json["oid"])
    if content is None or content.size != call.json["size"]:
        raise refusal(404, f"Object not found: {call.json['oid']}")
    return answer_json({"message": "ok"})


def complete(call: Call) -> Answer:
    """Joins the parts of an object; the signed address is all the right that it takes."""
    parts = call.hub.parts.get(call.value("uploadId"))
    if parts is None or not call.hub.signer.holds("POST", call.target, call.raw_query):
        raise refusal(403, "Request has expired")
    hashed, target = hashlib.sha256(), call.hub.new_file()
    with target.open("wb") as file:
        for row in call.json["parts"]:
            part = parts.contents.get(row["partNumber"])
            if part is None or row["etag"].strip('"') != part.sha256:
                raise refusal(400, f"One or more of the specified parts could not be found: {row['partNumber']}")
            for start in range(0, part.size, CHUNK_BYTES):
                data = part.read(start, min(CHUNK_BYTES, part.size - start))
                hashed.update(data)
                file.write(data)
    _keep(parts.repo, parts.oid, Content(target, hashed.hexdigest()), parts.size)
    return answer_json({"success": True})


def _keep(repo: Repo, oid: str, content: Content, size: int | None = None) -> None:
    if content.sha256 != oid or size not in (None, content.size):
        raise refusal(400, "The SHA256 you specified did not match what we received")
    repo.objects[oid] = content


def get_object(call: Call, kind: str, repo_id: str, oid: str) -> Answer:
    repo = _signed(call, kind, repo_id)
    if oid not in repo.objects:
        raise refusal(404, "The specified key does not exist.")
    return answer_file(call, repo.objects[oid], {"ETag": f'"{oid}"'})


def put_object(call: Call, kind: str, repo_id: str, oid: str) -> Answer:
    repo = _signed(call, kind, repo_id)
    if number := call.value("uploadId"):
        call.hub.parts[number].contents[int(call.value("partNumber"))] = call.body
    else:
        _keep(repo, oid, call.body)
    return Answer(200, {"ETag": f'"{call.body.sha256}"'})


def _signed(call: Call, kind: str, repo_id: str) -> Repo:
    """The repository of an address that was signed: who has it needs no account."""
    if not call.hub.signer.holds(call.request.method, call.target, call.raw_query):
        raise refusal(403, "Request has expired")
    repo = call.hub.repos.get((kind, repo_id))
    if repo is None:
        raise refusal(404, "The specified key does not exist.")
    return repo
