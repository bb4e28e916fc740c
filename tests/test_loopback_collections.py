"""Collections of the loopback Hub, through the genuine client."""

import pytest
from huggingface_hub.errors import HfHubHTTPError

TITLE = "Llama-3.1-8B quantized"


@pytest.fixture
def made(loopback, hub_client):
    """An empty collection."""
    return hub_client.create_collection(TITLE, namespace="tester", description="All of them")


def test_created_once(loopback, hub_client, made):
    assert made.slug.startswith("tester/llama-3-1-8b-quantized-")
    assert (made.title, made.owner, made.description, made.private, made.items) == (
        TITLE,
        "tester",
        "All of them",
        False,
        [],
    )
    assert made.url == f"{loopback.url}/collections/{made.slug}"
    with pytest.raises(HfHubHTTPError, match="409"):
        hub_client.create_collection(TITLE, namespace="tester")
    assert hub_client.create_collection(TITLE, namespace="tester", exists_ok=True).slug == made.slug
    assert hub_client.create_collection(TITLE, namespace="tester-lab").slug != made.slug
    assert [found.slug for found in hub_client.list_collections(owner="tester")] == [made.slug]


def test_items_are_there_once(loopback, hub_client, made):
    for name in ("some/a", "some/b"):
        loopback.add_repo(name, {})
        hub_client.add_collection_item(made.slug, name, "model", note=f"note of {name}")
    with pytest.raises(HfHubHTTPError, match="409"):
        hub_client.add_collection_item(made.slug, "some/a", "model")
    again = hub_client.add_collection_item(made.slug, "some/a", "model", exists_ok=True)
    assert [(item.item_id, item.item_type, item.position, item.note) for item in again.items] == [
        ("some/a", "model", 0, "note of some/a"),
        ("some/b", "model", 1, "note of some/b"),
    ]
    with pytest.raises(HfHubHTTPError, match="404"):
        hub_client.add_collection_item(made.slug, "some/absent", "model")
    assert [found.slug for found in hub_client.list_collections(item="models/some/a")] == [made.slug]
    assert list(hub_client.list_collections(item="models/some/c")) == []


def test_items_change_and_go(loopback, hub_client, made):
    for name in ("some/a", "some/b"):
        loopback.add_repo(name, {})
        hub_client.add_collection_item(made.slug, name, "model")
    first, second = hub_client.get_collection(made.slug).items
    hub_client.update_collection_item(made.slug, second.item_object_id, position=0, note="new")
    items = hub_client.get_collection(made.slug).items
    assert [(item.item_id, item.note) for item in items] == [("some/b", "new"), ("some/a", None)]
    hub_client.delete_collection_item(made.slug, first.item_object_id)
    hub_client.delete_collection_item(made.slug, first.item_object_id, missing_ok=True)
    assert [item.item_id for item in hub_client.get_collection(made.slug).items] == ["some/b"]


def test_changed_and_deleted(hub_client, made):
    assert hub_client.update_collection_metadata(made.slug, title="Other", private=True).title == "Other"
    hub_client.delete_collection(made.slug)
    hub_client.delete_collection(made.slug, missing_ok=True)
    with pytest.raises(HfHubHTTPError, match="404"):
        hub_client.get_collection(made.slug)


def test_who_sees_and_changes_them(loopback, hub_client, made):
    hidden = hub_client.create_collection("Hidden", namespace="tester", private=True)
    other = loopback.stranger_token
    assert hub_client.get_collection(made.slug).title == TITLE
    assert [found.slug for found in hub_client.list_collections(owner="tester", token=other)] == [made.slug]
    with pytest.raises(HfHubHTTPError, match="404"):
        hub_client.delete_collection(hidden.slug, token=other)
    with pytest.raises(HfHubHTTPError, match="403"):
        hub_client.delete_collection(made.slug, token=other)
    with pytest.raises(HfHubHTTPError, match="403"):
        hub_client.create_collection("X", namespace="tester", token=other)
    with pytest.raises(HfHubHTTPError, match="less than 60"):
        hub_client.create_collection("X" * 60, namespace="tester")
