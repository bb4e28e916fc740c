"""What the genuine client does about each fault, and which of them it leaves to its callers."""

import hashlib
import json
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants, file_download, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http
from loopback.faults import ALWAYS, KINDS, Fault, http_date
from loopback.log import Request

SHARD = "model.safetensors"
WEIGHTS = bytes(range(256)) * 4096
CUT = 700_000
BASE = "some/model"
OWN = "tester/model"


@pytest.fixture
def waits(monkeypatch):
    """What the client would have waited, in seconds; it does not."""
    seconds = []
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    return seconds


@pytest.fixture
def download(loopback, hub_client, waits):
    """Downloads a shard of a repository that is there; the file."""
    loopback.add_repo(BASE, {SHARD: WEIGHTS, "config.json": b"{}"})
    return lambda: Path(hub_client.hf_hub_download(BASE, SHARD))


def left_over():
    """Files in the cache that hold content, whole or not."""
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if path.is_file()]


@pytest.mark.parametrize("kind", ["close", "stall"])
def test_a_body_that_ends_is_continued(loopback, download, kind):
    loopback.fail(SHARD, kind, after=CUT)
    assert download().read_bytes() == WEIGHTS
    first, second = loopback.find(SHARD, origin="cdn")
    assert (first.range, first.sent) == (None, CUT)
    begin = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert CUT - (1 << 16) < begin <= CUT
    assert (second.status, second.sent) == (206, len(WEIGHTS) - begin)


def test_a_reset_is_not_continued(loopback, download):
    loopback.fail(SHARD, "reset", after=CUT)
    with pytest.raises(httpx2.ReadError):
        download()
    assert left_over() == []
    assert [request.sent for request in loopback.find(SHARD, origin="cdn")] == [CUT]


def test_503_of_the_hub_is_retried_and_not_of_the_cdn(loopback, download):
    loopback.fail(SHARD, 503, origin="hub")
    loopback.fail(SHARD, 503, origin="cdn")
    with pytest.raises(HfHubHTTPError, match="503"):
        download()
    assert [(request.method, request.status) for request in loopback.find(SHARD)] == [
        ("HEAD", 503),
        ("HEAD", 302),
        ("GET", 503),
    ]


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(7, [8.0]), (http_date(7), [1]), (None, [1])], ids=["seconds", "date", "nothing"]
)
def test_429_is_retried_and_a_date_is_not_read(loopback, download, waits, retry_after, wait):
    loopback.fail(SHARD, 429, origin="cdn", retry_after=retry_after)
    assert download().read_bytes() == WEIGHTS
    assert waits == wait


def test_an_address_that_expires_in_between_is_not_renewed(loopback, download):
    loopback.fail(SHARD, "close", after=CUT)
    loopback.fail(SHARD, "expired", method="GET")
    with pytest.raises(HfHubHTTPError, match="403"):
        download()
    assert left_over() == []
    assert [request.status for request in loopback.find(SHARD, origin="cdn")] == [200, 403]
    assert download().read_bytes() == WEIGHTS


def test_a_flipped_byte_is_not_seen(loopback, download, hub_client):
    loopback.fail(SHARD, "flip", after=CUT)
    damaged = download().read_bytes()
    assert [(at, data) for at, data in enumerate(damaged) if data != WEIGHTS[at]] == [(CUT, WEIGHTS[CUT] ^ 1)]
    assert [row["path"] for row in hub_client.verify_repo_checksums(BASE).mismatches] == [SHARD]


def test_a_byte_is_flipped_where_it_passes(loopback, hub_client):
    loopback.add_repo(BASE, {SHARD: WEIGHTS})
    loopback.fail(SHARD, "flip", after=CUT)
    url = hf_hub_url(BASE, SHARD)
    before = get_session().get(url, headers={"Range": f"bytes=0-{CUT - 1}"}).content
    beyond = get_session().get(url, headers={"Range": f"bytes={CUT}-"}).content
    assert before == WEIGHTS[:CUT]
    assert beyond == bytes([WEIGHTS[CUT] ^ 1]) + WEIGHTS[CUT + 1 :]


def test_a_short_body_is_refused(loopback, download):
    loopback.fail(SHARD, "short", after=CUT)
    with pytest.raises(OSError, match="Consistency check failed"):
        download()
    assert left_over() == []


def test_a_whole_body_in_place_of_a_range(loopback, download):
    loopback.fail(SHARD, "close", after=CUT)
    loopback.fail(SHARD, "ignore_range")
    assert download().read_bytes() == WEIGHTS
    assert [request.status for request in loopback.find(SHARD, origin="cdn")] == [200, 200]


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("/api/repos/create", lambda api: api.create_repo("tester/new")),
        ("/revision/", lambda api: api.model_info(OWN, revision="main")),
        ("/refs", lambda api: api.list_repo_refs(OWN)),
        ("/tag/", lambda api: api.create_tag(OWN, tag="v1")),
        ("/commit/", lambda api: api.upload_file(repo_id=OWN, path_in_repo="x", path_or_fileobj=b"1")),
        ("/api/collections", lambda api: api.create_collection("Some", namespace="tester")),
    ],
)
def test_calls_that_are_not_retried(loopback, hub_client, waits, where, call):
    hub_client.create_repo(OWN)
    loopback.log.clear()
    loopback.fail(where, 503)
    with pytest.raises(HfHubHTTPError, match="503"):
        call(hub_client)
    assert [request.status for request in loopback.find(where)] == [503]
    assert waits == []
    call(hub_client)


@pytest.mark.parametrize("where", ["/preupload/", "/objects/batch", "/objects/verify", "/repos/models/tester/model/"])
@pytest.mark.parametrize("kind", [503, "drop"])
def test_calls_of_an_upload_that_are_retried(loopback, hub_client, waits, where, kind):
    hub_client.create_repo(OWN)
    loopback.fail(where, kind)
    hub_client.upload_file(repo_id=OWN, path_in_repo=SHARD, path_or_fileobj=WEIGHTS)
    assert loopback.repo(OWN).files()[SHARD] == WEIGHTS
    assert [request.status for request in loopback.find(where)] == [503 if kind == 503 else 0, 200]
    assert waits == [1]


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_uploads_that_are_cut_are_sent_again(loopback, hub_client, waits, kind):
    hub_client.create_repo(OWN)
    loopback.fail("/repos/", kind, after=CUT, method="PUT")
    hub_client.upload_file(repo_id=OWN, path_in_repo=SHARD, path_or_fileobj=WEIGHTS)
    assert loopback.repo(OWN).files()[SHARD] == WEIGHTS
    assert [request.received for request in loopback.find("", "PUT")] == [CUT, len(WEIGHTS)]


def test_an_upload_that_is_not_read_on_waits_for_the_client(loopback, hub_client):
    hub_client.create_repo(OWN)
    url = put_address(loopback, WEIGHTS * 32)
    loopback.fail("/repos/", "stall", after=CUT)
    with pytest.raises(httpx2.TimeoutException):
        get_session().put(url, content=WEIGHTS * 32, timeout=0.3)
    assert [request.received for request in loopback.find("", "PUT")] == [CUT]
    assert get_session().put(url, content=WEIGHTS * 32).status_code == 200


def test_what_an_upload_must_be(loopback, hub_client):
    hub_client.create_repo(OWN)
    url = put_address(loopback, WEIGHTS)
    answer = get_session().put(url, content=WEIGHTS[1:])
    assert (answer.status_code, "did not match" in answer.text) == (400, True)
    header = {"key": "header", "value": {"summary": "x"}}
    file = {"key": "lfsFile", "value": {"path": SHARD, "oid": hashlib.sha256(WEIGHTS).hexdigest()}}
    commit = {
        "url": f"{loopback.url}/api/models/{OWN}/commit/main",
        "content": f"{json.dumps(header)}\n{json.dumps(file)}",
        "headers": {"Authorization": f"Bearer {loopback.token}"},
    }
    answer = get_session().post(**commit)
    assert (answer.status_code, "does not exist" in answer.text) == (400, True)
    assert get_session().put(url, content=WEIGHTS).status_code == 200
    assert get_session().post(**commit).status_code == 200
    assert loopback.repo(OWN).files()[SHARD] == WEIGHTS


def put_address(hub, data):
    """Where an object of OWN is to be put."""
    oid = hashlib.sha256(data).hexdigest()
    asked = {"operation": "upload", "objects": [{"oid": oid, "size": len(data)}]}
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = get_session().post(f"{hub.url}/{OWN}.git/info/lfs/objects/batch", json=asked, headers=headers)
    return answer.json()["objects"][0]["actions"]["upload"]["href"]


def test_a_commit_whose_answer_is_lost(loopback, hub_client):
    hub_client.create_repo(OWN)
    loopback.fail("/commit/", "lost_answer")
    push = {"repo_id": OWN, "path_in_repo": SHARD, "path_or_fileobj": WEIGHTS}
    with pytest.raises(httpx2.NetworkError):
        hub_client.upload_file(**push)
    assert len(loopback.repo(OWN).history()) == 2
    again = hub_client.upload_file(**push)
    assert again.oid == loopback.head(OWN)
    assert len(loopback.repo(OWN).history()) == 2


def test_no_connection_where_it_is_dropped(loopback, hub_client):
    loopback.add_repo(BASE, {"config.json": b"{}"})
    loopback.fail("/api/models", "drop", times=2)
    for _ in range(2):
        with pytest.raises(httpx2.NetworkError):
            hub_client.model_info(BASE)
    assert hub_client.model_info(BASE).id == BASE
    assert [request.status for request in loopback.requests] == [0, 0, 200]


def test_answers_of_the_hub_itself_are_cut(loopback, hub_client):
    loopback.add_repo(BASE, {"config.json": b"{}"})
    for kind, error in (("reset", httpx2.ReadError), ("close", httpx2.RemoteProtocolError)):
        loopback.fail("/api/models", kind, after=20)
        with pytest.raises(error):
            hub_client.model_info(BASE)
    assert [request.sent for request in loopback.requests] == [20, 20]


def test_which_requests_a_fault_strikes(loopback, hub_client):
    loopback.add_repo(BASE, {SHARD: WEIGHTS})
    loopback.fail(lambda request: request.range is not None, 500, times=2, skip=1, error_code="Odd")
    seen = []
    for asked in (None, "bytes=0-1", "bytes=2-3", None, "bytes=4-5", "bytes=6-7"):
        headers = {"Range": asked} if asked else {}
        answer = get_session().get(hf_hub_url(BASE, SHARD), headers=headers, follow_redirects=False)
        seen.append((answer.status_code, answer.headers.get("X-Error-Code")))
    assert seen == [(302, None), (302, None), (500, "Odd"), (302, None), (500, "Odd"), (302, None)]
    assert loopback.faults.left == []
    loopback.fail("nothing", "reset", times=ALWAYS)
    assert len(loopback.faults.left) == 1
    loopback.faults.clear()
    assert loopback.faults.left == []


def test_there_is_no_other_fault():
    for kind in (*KINDS, 400, 599):
        assert Fault("", kind).fits(Request("GET", "hub", "/x", "", {}))
    for kind in ("rest", 200, 399, 600):
        with pytest.raises(ValueError, match=f"no fault {kind!r}, expected a status or one of drop, "):
            Fault("", kind)


def test_many_requests_at_once(loopback, hub_client):
    loopback.add_repo(BASE, {SHARD: WEIGHTS})
    url = hf_hub_url(BASE, SHARD)

    def read(number):
        headers = {"Range": f"bytes={number * 100}-{number * 100 + 99}"}
        return get_session().get(url, headers=headers).content

    with ThreadPoolExecutor(16) as pool:
        pieces = list(pool.map(read, range(500)))
    assert b"".join(pieces) == WEIGHTS[:50_000]
    assert loopback.sent(SHARD, origin="cdn") == 50_000
    assert len(loopback.requests) == 1000
