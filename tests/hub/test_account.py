"""Who may write where, and the collection of a repository, asked of the loopback Hub."""

import pytest
from huggingface_hub import constants

from quantkit.errors import NetworkError, NotFoundError
from quantkit.hub.account import tokens, writer
from quantkit.hub.collection import add_to_collection

pytestmark = pytest.mark.usefixtures("hub_client")


def test_the_user_and_their_organisation(loopback):
    assert writer("tester/new") == "tester"
    assert writer("tester-lab/new") == "tester"
    assert tokens() == [loopback.token]


def test_other_namespaces(loopback):
    with pytest.raises(NotFoundError, match="tester may not write to others: they are no member of it") as caught:
        writer("others/new")
    assert caught.value.hint == "open: tester, tester-lab"


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [
        (None, "not logged in", "hf auth login"),
        ("hf_unknownToTheServer", r"does not accept this token \(HTTP 401\)", "HF_TOKEN"),
        ("hf_canaryOfTheReader", "the token of tester may read only", "/settings/tokens"),
    ],
)
def test_tokens_that_do_not_do(loopback, monkeypatch, tmp_path, token, message, hint):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(NotFoundError, match=message) as caught:
        writer("tester/new")
    assert hint in caught.value.hint
    assert "hf_" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_code == 4


def test_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set"):
        writer("tester/new")


@pytest.mark.parametrize("fault", [None, "drop", "lost_answer", 503])
@pytest.mark.parametrize(("where", "method"), [("/api/collections", "POST"), ("/items", "POST")])
def test_one_collection_with_one_item(loopback, fault, where, method):
    loopback.add_repo("tester/model", {})
    if fault:
        loopback.fail(where, fault, method=method)
    slug = add_to_collection("tester/model", "Models, quantized", private=False)
    assert loopback.faults.left == []
    assert add_to_collection("tester/model", "Models, quantized", private=False) == slug
    assert [(one.slug, one.owner, one.private) for one in loopback.collections.values()] == [(slug, "tester", False)]
    assert [item["id"] for item in loopback.collections[slug].items] == ["tester/model"]
    loopback.add_repo("tester/other", {})
    assert add_to_collection("tester/other", "Models, quantized", private=False) == slug
    assert len(loopback.collections[slug].items) == 2
