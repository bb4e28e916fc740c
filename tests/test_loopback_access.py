"""Who may see and change what on the loopback Hub, in the genuine client's own exceptions."""

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

SHARD = "model.safetensors"
FILES = {"config.json": b"{}", SHARD: b"weights"}
BASE = "some/model"
OWN = "tester/model"


def test_what_is_closed(loopback, hub_client):
    loopback.add_repo("some/gated", FILES, gated="manual", granted=False)
    loopback.add_repo("some/open-gated", FILES, gated="auto")
    loopback.add_repo("some/private", FILES, private=True, granted=False)
    loopback.add_repo(BASE, FILES)
    assert hub_client.model_info("some/gated").gated == "manual"
    for call in (hub_client.auth_check, lambda name: hub_client.hf_hub_download(name, SHARD)):
        with pytest.raises(GatedRepoError):
            call("some/gated")
        call("some/open-gated")
    for name in ("some/private", "some/absent"):
        with pytest.raises(RepositoryNotFoundError):
            hub_client.model_info(name)
        with pytest.raises(RepositoryNotFoundError):
            hub_client.hf_hub_download(name, SHARD)
    with pytest.raises(RevisionNotFoundError):
        hub_client.hf_hub_download(BASE, SHARD, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        hub_client.hf_hub_download(BASE, "absent")
    assert [request.status for request in loopback.find("some/private/resolve")] == [404]


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_wrong", 401), ("stranger", 404)])
def test_other_tokens(loopback, hub_client, token, status):
    loopback.add_repo("some/private", FILES, private=True)
    token = loopback.stranger_token if token == "stranger" else token
    error = HfHubHTTPError if token == "hf_wrong" else RepositoryNotFoundError
    with pytest.raises(error) as caught:
        hub_client.model_info("some/private", token=token)
    assert caught.value.response.status_code == status
    assert hub_client.model_info("some/private").private


def test_who_may_write(loopback, hub_client):
    assert hub_client.whoami()["name"] == "tester"
    loopback.add_repo(BASE, FILES)
    for token, repo_id in ((loopback.read_token, OWN), (loopback.token, "some/other")):
        with pytest.raises(HfHubHTTPError, match="403"):
            hub_client.create_repo(repo_id, token=token)
    with pytest.raises(HfHubHTTPError, match="403"):
        hub_client.upload_file(repo_id=BASE, path_in_repo="x", path_or_fileobj=b"1")
    hub_client.create_repo("tester-lab/model", private=True)
    hub_client.auth_check("tester-lab/model", write=True)
    hub_client.create_repo("tester-lab/model", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        hub_client.create_repo("tester-lab/model")
    hub_client.update_repo_settings("tester-lab/model", private=False, gated="auto")
    info = hub_client.model_info("tester-lab/model")
    assert (info.private, info.gated) == (False, "auto")
    hub_client.delete_repo("tester-lab/model")
    with pytest.raises(RepositoryNotFoundError):
        hub_client.delete_repo("tester-lab/model")
