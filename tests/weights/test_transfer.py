"""One file from a Hub that breaks: ridden out or refused in a sentence, and never anything but the right bytes."""

import errno
import hashlib
import random

import pytest
from loopback.faults import ALWAYS, http_date

from quantkit.errors import BadInputError, DiskError, NetworkError, NotFoundError
from quantkit.hub.repository import resolve
from quantkit.weights import ranged, transfer
from quantkit.weights.remote import RepoSnapshot, asked_wait
from quantkit.weights.transfer import fetch_file, partial_path

REPO = "some/model"
LARGE, TEXT = "model.safetensors", "tokenizer.json"
FILES = {LARGE: random.Random(1).randbytes(700_001), TEXT: b'{"model": "' + b"x" * 300_000 + b'"}'}


@pytest.fixture
def hub(loopback, hub_client, monkeypatch):
    loopback.add_repo(REPO, FILES)
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(transfer.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    return loopback


def test_a_file_comes_whole(hub, tmp_path):
    snapshot, counts = resolve(REPO), []
    for name, data in FILES.items():
        fetch_file(snapshot, name, tmp_path / name, counts.append)
        assert (tmp_path / name).read_bytes() == data
    assert sum(counts) == sum(map(len, FILES.values()))
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert hub.sent(LARGE, "cdn") == len(FILES[LARGE])


FAULTS = [
    ("reset", {"after": 100_000}),
    ("reset", {"after": 0}),
    ("close", {"after": 100_000}),
    ("stall", {"after": 100_000}),
    ("short", {"after": 100_000}),
    ("drop", {}),
    (503, {}),
    (408, {}),
    (429, {"retry_after": 0}),
    (429, {"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("kind", "details"), FAULTS, ids=lambda value: str(value))
def test_passing_faults_are_ridden_out(hub, tmp_path, name, kind, details):
    hub.fail(name, kind, times=2, method="GET", **details)
    fetch_file(resolve(REPO), name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == FILES[name]
    assert hub.faults.left == []
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("kind", ["expired", 503, 403, 404])
def test_the_storage_is_asked_again_by_a_new_address(hub, tmp_path, kind):
    hub.fail(LARGE, "reset", after=300_000, origin="cdn")
    hub.fail(lambda request: request.names(LARGE) and request.range is not None, kind, times=2, origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]
    assert len(hub.find(f"resolve/{hub.head(REPO)}/{LARGE}", origin="hub")) == 4
    assert len({request.query for request in hub.find(LARGE, origin="cdn")}) >= 3
    assert hub.sent(LARGE, "cdn") <= len(FILES[LARGE]) + 2**18


def test_what_has_come_is_not_sent_again(hub, tmp_path):
    for after in (100_000, 300_000, 50_000):
        hub.fail(LARGE, "reset", after=after, origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    starts = [request.range for request in hub.find(LARGE, origin="cdn")]
    assert starts[0] is None
    assert all(asked.startswith("bytes=") and asked.endswith(f"-{len(FILES[LARGE]) - 1}") for asked in starts[1:])
    assert [int(asked[6:].split("-")[0]) for asked in starts[1:]] == sorted(
        {int(a[6:].split("-")[0]) for a in starts[1:]}
    )


def test_an_ignored_range_costs_bytes_only(hub, tmp_path):
    hub.fail(LARGE, "close", after=400_000, origin="cdn")
    hub.fail(LARGE, "ignore_range", origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]
    assert hub.faults.left == []


@pytest.mark.parametrize("kind", ["reset", "stall", "short", "drop", 503, 429])
def test_lasting_faults_are_network_errors(hub, tmp_path, kind):
    hub.fail(LARGE, kind, times=ALWAYS, origin="cdn")
    with pytest.raises(NetworkError) as caught:
        fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    assert REPO in str(caught.value)
    assert hub.token not in f"{caught.value} {caught.value.hint}"
    assert "Signature" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")] == []


def test_a_transfer_that_moves_is_never_given_up(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
    hub.fail(LARGE, "reset", times=7, after=90_000, origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    assert hub.faults.left == []
    assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]


def test_the_server_says_how_long_to_wait(hub, tmp_path, monkeypatch):
    rests = []
    monkeypatch.setattr(transfer, "_rest", lambda seconds, received: rests.append(seconds))
    hub.fail(LARGE, 429, retry_after=70, origin="hub")
    hub.fail(LARGE, 503, retry_after=http_date(90), origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    assert rests[0] == 70
    assert 80 < rests[1] <= 90


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "12"}, 12),
        (503, {"Retry-After": "0"}, 0),
        (429, {"Retry-After": "99999"}, 600),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (429, {"Retry-After": "soon"}, 0),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:30", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (429, {"RateLimit": '"api";r=0;t=55'}, 55),
        (429, {"RateLimit": '"api";r=9;t=55'}, 0),
        (503, {"RateLimit": '"api";r=0;t=55'}, 0),
        (503, {}, 0),
    ],
)
def test_waits_that_are_asked_for(status, headers, seconds):
    class Response:
        status_code = status

    error = OSError("limited")
    assert asked_wait(error) == 0
    error.response = Response()
    error.response.headers = {"ratelimit": headers["RateLimit"]} if "RateLimit" in headers else headers
    assert asked_wait(error) == seconds


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(hub, tmp_path, name):
    """40 of 40: each is fetched once more, and then right."""
    snapshot = resolve(REPO)
    places = [*random.Random(name).sample(range(len(FILES[name])), 18), 0, len(FILES[name]) - 1]
    for place in places:
        hub.log.clear()
        hub.fail(name, "flip", after=place)
        fetch_file(snapshot, name, tmp_path / name)
        assert hub.faults.left == []
        assert (tmp_path / name).read_bytes() == FILES[name]
        assert hub.sent(name) >= 2 * len(FILES[name])
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_are_wrong_twice_are_refused(hub, tmp_path, name):
    snapshot = resolve(REPO)
    counts = []
    hub.fail(name, "flip", times=ALWAYS, after=1000)
    with pytest.raises(BadInputError) as caught:
        fetch_file(snapshot, name, tmp_path / name, counts.append)
    wrong = bytearray(FILES[name])
    wrong[1000] ^= 0xFF
    assert f"expected {snapshot.oids[name]}" in str(caught.value)
    assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert sum(counts) == 0


def test_a_partial_file_is_continued_by_another_call(hub, tmp_path):
    snapshot, half = resolve(REPO), len(FILES[LARGE]) // 2
    partial_path(tmp_path / LARGE, snapshot.oids[LARGE]).write_bytes(FILES[LARGE][:half])
    counts = []
    fetch_file(snapshot, LARGE, tmp_path / LARGE, counts.append)
    assert hub.sent(LARGE, "cdn") == len(FILES[LARGE]) - half
    assert sum(counts) == len(FILES[LARGE])


def test_a_damaged_or_surplus_partial_file_costs_one_transfer(hub, tmp_path):
    snapshot = resolve(REPO)
    for wrong in (bytes(1000), FILES[LARGE] + b"more"):
        hub.log.clear()
        partial_path(tmp_path / LARGE, snapshot.oids[LARGE]).write_bytes(wrong)
        fetch_file(snapshot, LARGE, tmp_path / LARGE)
        assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]
        assert hub.sent(LARGE, "cdn") < 2 * len(FILES[LARGE])


def test_partial_files_of_other_contents_are_removed(hub, tmp_path):
    snapshot = resolve(REPO)
    old = partial_path(tmp_path / LARGE, hashlib.sha256(b"older").hexdigest())
    others = [tmp_path / name for name in (f".{LARGE}.partial", f".{LARGE}.notes.partial", f".x{old.name}")]
    for path in (old, *others):
        path.write_bytes(b"older")
    (tmp_path / LARGE).write_bytes(b"older")
    fetch_file(snapshot, LARGE, tmp_path / LARGE)
    assert (tmp_path / LARGE).read_bytes() == FILES[LARGE]
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / LARGE, *others])


def test_the_token_goes_to_the_hub_alone(hub, tmp_path):
    hub.fail(LARGE, "reset", after=300_000, origin="cdn")
    fetch_file(resolve(REPO), LARGE, tmp_path / LARGE)
    cdn = [request for request in hub.requests if request.origin == "cdn"]
    assert len(cdn) == 2
    assert not any(hub.token in f"{request.headers} {request.query}" for request in cdn)
    assert all(request.authorized for request in hub.requests if request.origin == "hub")


def test_another_content_under_the_name_is_refused_at_once(hub, tmp_path):
    snapshot = resolve(REPO)
    oids = dict(snapshot.oids) | {name: "0" * len(oid) for name, oid in snapshot.oids.items()}
    other = RepoSnapshot(REPO, None, snapshot.commit, snapshot.files, oids=oids)
    for name in FILES:
        with pytest.raises(BadInputError, match=f"{name}: found the content {snapshot.oids[name]} .* expected 000"):
            fetch_file(other, name, tmp_path / name)


def test_what_cannot_be_fetched(hub, tmp_path):
    snapshot = resolve(REPO)
    with pytest.raises(NotFoundError, match=r"no file absent\.bin"):
        fetch_file(snapshot, "absent.bin", tmp_path / "absent.bin")
    unhashed = RepoSnapshot(REPO, None, snapshot.commit, snapshot.files)
    with pytest.raises(BadInputError, match=r"found no hash of tokenizer\.json"):
        fetch_file(unhashed, TEXT, tmp_path / TEXT)
    hub.fail(TEXT, 403, error_code="GatedRepo")
    with pytest.raises(NotFoundError, match="is gated"):
        fetch_file(snapshot, TEXT, tmp_path / TEXT)
    hub.fail(TEXT, 401)
    with pytest.raises(NotFoundError):
        fetch_file(snapshot, TEXT, tmp_path / TEXT)


def test_a_full_disk(hub, tmp_path, monkeypatch):
    snapshot = resolve(REPO)
    add = transfer._Partial.add

    def full(partial, block):
        if partial.done > 100_000:
            partial._file.close()
            partial._file = Full()
        add(partial, block)

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            """Closed already."""

    with monkeypatch.context() as patch:
        patch.setattr(transfer._Partial, "add", full)
        with pytest.raises(DiskError, match=r"No space left on device .*needed"):
            fetch_file(snapshot, LARGE, tmp_path / LARGE)
    hub.log.clear()
    fetch_file(snapshot, LARGE, tmp_path / LARGE)
    assert hub.sent(LARGE, "cdn") < len(FILES[LARGE]) - 100_000


def test_a_caller_ends_a_transfer_also_while_it_rests(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "WAITS", (1000.0,))
    hub.fail(LARGE, "reset", times=ALWAYS, after=200_000, origin="cdn")

    def stop_at_rest(count):
        if count == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_file(resolve(REPO), LARGE, tmp_path / LARGE, stop_at_rest)
    [left] = tmp_path.iterdir()
    assert FILES[LARGE].startswith(left.read_bytes())


def test_ranges_and_small_files_in_memory(hub):
    snapshot = resolve(REPO)
    assert ranged.read_range(snapshot, LARGE, 5, 905) == FILES[LARGE][5:905]
    assert ranged.read_verified(snapshot, TEXT, 10**6) == FILES[TEXT]
    with pytest.raises(BadInputError, match="expected at most 10"):
        ranged.read_verified(snapshot, TEXT, 10)
    hub.fail(TEXT, "flip", times=2, after=100)
    with pytest.raises(BadInputError, match=f"expected {snapshot.oids[TEXT]}, twice"):
        ranged.read_verified(snapshot, TEXT, 10**6)
    hub.fail(LARGE, "ignore_range", times=ALWAYS, origin="cdn")
    assert ranged.read_range(snapshot, LARGE, 5, 905) == FILES[LARGE][5:905]


def test_a_server_without_ranges_does_not_send_a_shard_for_a_header(hub, monkeypatch):
    monkeypatch.setattr(ranged, "SKIPPED_BYTES", 1000)
    hub.fail(LARGE, "ignore_range", times=ALWAYS, origin="cdn")
    with pytest.raises(BadInputError, match="found the whole file"):
        ranged.read_range(resolve(REPO), LARGE, 600_000, 600_010)
