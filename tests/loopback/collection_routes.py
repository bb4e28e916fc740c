"""Collections: lists of repositories that a user or an organisation shows."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from loopback.access import may_write
from loopback.answers import Answer, Call, answer_json, answer_page, refusal

LAST_UPDATED = "2026-01-01T00:00:00.000Z"


@dataclass
class Collection:
    slug: str
    title: str
    owner: str
    private: bool = False
    description: str | None = None
    theme: str = "orange"
    position: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As the Hub tells it."""
        rows = [item | {"position": place} for place, item in enumerate(self.items)]
        named = ("slug", "title", "owner", "private", "description", "theme", "position")
        told = {name: getattr(self, name) for name in named}
        return told | {"items": rows, "upvotes": 0, "lastUpdated": LAST_UPDATED, "gating": False}


def create(call: Call) -> Answer:
    asked = call.json
    owner, title = asked["namespace"], asked["title"]
    may_write(call, owner)
    if len(title) >= 60:
        raise refusal(400, "title must have less than 60 characters")
    if len(asked.get("description") or "") > 150:
        raise refusal(400, "description must have at most 150 characters")
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{owner}/{words}-{hashlib.sha256(f'{owner}/{title}'.encode()).hexdigest()[:24]}"
    if slug in call.hub.collections:
        raise refusal(409, "This collection already exists", slug=slug)
    made = Collection(slug, title, owner, bool(asked.get("private")), asked.get("description"))
    call.hub.collections[slug] = made
    return answer_json(made.told())


def listed(call: Call) -> Answer:
    """Collections by owner or by an item of theirs; as on the Hub, four items of each are shown."""
    owners, wanted = call.query.get("owner"), call.query.get("item")
    rows = []
    for made in call.hub.collections.values():
        names = {f"{item['type']}s/{item['id']}" for item in made.items}
        if _visible(call, made) and (not owners or made.owner in owners) and (not wanted or names & set(wanted)):
            told = made.told()
            del told["position"]
            rows.append(told | {"items": told["items"][:4]})
    return answer_page(call, rows, call.hub.page_items)


def get(call: Call, slug: str) -> Answer:
    return answer_json(_open(call, slug).told())


def update(call: Call, slug: str) -> Answer:
    made = _own(call, slug)
    for name in ("title", "description", "private", "theme", "position"):
        setattr(made, name, call.json.get(name, getattr(made, name)))
    return answer_json({"success": True, "data": made.told()})


def delete(call: Call, slug: str) -> Answer:
    del call.hub.collections[_own(call, slug).slug]
    return answer_json({"success": True})


def add_item(call: Call, slug: str) -> Answer:
    made, asked = _own(call, slug), call.json["item"]
    if asked["type"] in ("model", "dataset", "space") and (asked["type"], asked["id"]) not in call.hub.repos:
        raise refusal(404, f"{asked['type']} {asked['id']} not found", "RepoNotFound")
    if any((item["type"], item["id"]) == (asked["type"], asked["id"]) for item in made.items):
        raise refusal(409, f"{asked['id']} is in this collection already")
    number = hashlib.sha256(f"{slug} {asked['type']} {asked['id']}".encode()).hexdigest()[:24]
    item = {"_id": number, "id": asked["id"], "type": asked["type"], "repoType": asked["type"]}
    made.items.append(item | _note(call.json))
    return answer_json(made.told())


def update_item(call: Call, slug: str, item: str) -> Answer:
    made = _own(call, slug)
    found = _item(made, item)
    found |= _note(call.json)
    if "position" in call.json:
        made.items.remove(found)
        made.items.insert(call.json["position"], found)
    return answer_json({"success": True})


def delete_item(call: Call, slug: str, item: str) -> Answer:
    made = _own(call, slug)
    made.items.remove(_item(made, item))
    return answer_json({"success": True})


def _open(call: Call, slug: str) -> Collection:
    made = call.hub.collections.get(slug)
    if made is None or not _visible(call, made):
        raise refusal(404, "Collection not found")
    return made


def _own(call: Call, slug: str) -> Collection:
    made = _open(call, slug)
    may_write(call, made.owner)
    return made


def _visible(call: Call, made: Collection) -> bool:
    return not made.private or (call.account is not None and call.account.owns(made.owner))


def _item(made: Collection, number: str) -> dict[str, Any]:
    for item in made.items:
        if item["_id"] == number:
            return item
    raise refusal(404, "Item not found")


def _note(asked: dict[str, Any]) -> dict[str, Any]:
    return {"note": {"text": asked["note"], "html": asked["note"]}} if asked.get("note") else {}
