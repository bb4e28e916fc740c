"""Files to the loopback Hub with the genuine client: once, together, and found again whatever goes wrong."""

import pytest
from parcels import FILES, REPO, SHARDS, Told, held, parcel, titles, uploads

from quantkit.errors import BadInputError, NetworkError, NotFoundError, QuantkitError
from quantkit.hub import publish as publishing
from quantkit.hub.publish import Difference, compare, publish
from quantkit.hub.repository import resolve
from quantkit.hub.target import look, make, tag
from quantkit.weights.hashes import git_hash

pytestmark = pytest.mark.usefixtures("hub_client")


def send(hub, folder, told=None, **options):
    wanted = parcel(folder, **options)
    make(look(wanted.repo_id, wanted.branch), None)
    return publish(wanted, told or Told())


def test_one_commit_holds_everything(loopback, tmp_path):
    told = Told()
    there = send(loopback, tmp_path / "a", told)
    assert held(loopback) == FILES
    assert titles(loopback) == ["Weights and card", "initial commit"]
    assert there.commit == loopback.head(REPO)
    assert told.lines == [f"{what} {name}" for name in SHARDS for what in ("sending", "sent")]
    assert told.bytes == {name: len(FILES[name]) for name in SHARDS}
    assert len(uploads(loopback)) == 2


def test_repeating_it_changes_nothing(loopback, tmp_path):
    first = send(loopback, tmp_path / "a")
    loopback.log.clear()
    assert send(loopback, tmp_path / "a").commit == first.commit
    assert {request.method for request in loopback.requests} == {"GET"}
    assert len(loopback.requests) == 3


def test_only_what_differs_is_sent_and_what_is_stale_is_removed(loopback, tmp_path):
    send(loopback, tmp_path / "a")
    loopback.commit(REPO, {"notes.txt": b"of the owner", "model-00003-of-00003.safetensors": b"old"})
    changed = FILES | {SHARDS[0]: b"other", "config.json": b'{"b": 2}'}
    loopback.log.clear()
    send(loopback, tmp_path / "a", files=changed)
    assert held(loopback) == changed | {"notes.txt": b"of the owner"}
    assert titles(loopback)[0] == "Weights and card"
    assert len(titles(loopback)) == 4
    assert len(uploads(loopback)) == 1


def test_more_files_than_a_commit_takes(loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "FILES_PER_COMMIT", 2)
    loopback.add_repo(REPO, {"model-00009-of-00009.safetensors": b"old"})
    publish(parcel(tmp_path / "a"), Told())
    assert held(loopback) == FILES
    assert titles(loopback) == ["Weights and card"] * 3 + ["Change files"]
    last = loopback.repo(REPO).history()[1].files
    assert "config.json" not in last
    assert "model-00009-of-00009.safetensors" in last


def test_a_large_object_goes_in_parts(loopback, tmp_path):
    loopback.part_bytes = 2000
    told = Told()
    send(loopback, tmp_path / "a", told)
    assert held(loopback) == FILES
    assert told.bytes == {name: len(FILES[name]) for name in SHARDS}
    assert len(uploads(loopback)) == 6


def test_a_branch_of_its_own_begins_without_main(loopback, tmp_path):
    send(loopback, tmp_path / "a")
    other = {"model.safetensors": b"of the variant", "config.json": b"{}"}
    send(loopback, tmp_path / "b", files=other, branch="gptq-8bit--1g-actorder_True")
    assert held(loopback) == FILES
    assert held(loopback, branch="gptq-8bit--1g-actorder_True") == other
    assert titles(loopback, branch="gptq-8bit--1g-actorder_True") == ["Weights and card", "initial commit"]


# Where each request of a first push may go wrong; the order is that of the requests.
REQUESTS = (
    ("/refs", "GET"), ("/api/repos/create", "POST"), ("/revision/", "GET"), ("/preupload/", "POST"),
    ("/lfs/objects/batch", "POST"), ("/repos/models/", "PUT"), ("/lfs/objects/verify", "POST"),
    ("/api/validate-yaml", "POST"), ("/commit/", "POST"),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["drop", "lost_answer", 503])
@pytest.mark.parametrize(("where", "method"), REQUESTS)
def test_a_passing_fault_is_not_seen(loopback, tmp_path, quick, where, method, kind):
    loopback.fail(where, kind, method=method)
    send(loopback, tmp_path / "a")
    assert loopback.faults.left == [] or (where, kind) == ("/refs", "lost_answer")  # a 404 is never lost
    assert held(loopback) == FILES
    assert titles(loopback) == ["Weights and card", "initial commit"]
    assert len(set(uploads(loopback))) == 2


@pytest.mark.parametrize("kind", ["drop", 500])
@pytest.mark.parametrize(("where", "method"), [request for request in REQUESTS if "verify" not in request[0]])
def test_a_lasting_fault_is_reported_and_the_next_push_goes_on(loopback, tmp_path, quick, where, method, kind):
    loopback.fail(where, kind, times=100, method=method)
    with pytest.raises(NetworkError) as caught:
        send(loopback, tmp_path / "a")
    assert loopback.token not in f"{caught.value} {caught.value.hint}"
    loopback.faults.clear()
    kept = len(set(uploads(loopback)))
    loopback.log.clear()
    send(loopback, tmp_path / "a")
    assert held(loopback) == FILES
    assert titles(loopback) == ["Weights and card", "initial commit"]
    assert len(uploads(loopback)) == 2 - kept


def test_what_is_there_without_being_verified_is_not_sent_again(loopback, tmp_path, quick):
    loopback.fail("/lfs/objects/verify", 500, times=100)
    send(loopback, tmp_path / "a")
    assert len(uploads(loopback)) == 2
    assert held(loopback) == FILES


def test_signed_addresses_are_not_logged(loopback, tmp_path, quick, caplog):
    loopback.fail("/repos/models/", 503, method="PUT")
    send(loopback, tmp_path / "a")
    assert "PUT" in caplog.text
    assert "?" not in caplog.text


def test_what_came_before_a_reset_is_kept(loopback, tmp_path, quick):
    loopback.fail("/repos/models/", "reset", times=100, after=10, method="PUT", skip=1)
    with pytest.raises(NetworkError):
        send(loopback, tmp_path / "a")
    loopback.faults.clear()
    send(loopback, tmp_path / "a")
    assert len(uploads(loopback)) == 2
    assert held(loopback) == FILES


def test_two_pushes_at_once(loopback, tmp_path, monkeypatch):
    """Another push comes between look and commit; it is noticed, and nothing of it is lost."""
    loopback.add_repo(REPO, {})
    real, meetings = publishing.compare, iter([{"other.txt": b"theirs"}, {"more.txt": b"too"}, FILES])

    def compare_late(snapshot, wanted):
        found = real(snapshot, wanted)
        if (files := next(meetings, None)) is not None:
            loopback.commit(REPO, files)
        return found

    monkeypatch.setattr(publishing, "compare", compare_late)
    publish(parcel(tmp_path / "a"), Told())
    assert held(loopback) == FILES | {"other.txt": b"theirs", "more.txt": b"too"}
    assert "Weights and card" not in titles(loopback)  # the third had committed the same files


def test_pushes_without_end(loopback, tmp_path, monkeypatch):
    loopback.add_repo(REPO, {})
    loopback.fail("/commit/", 412, times=100)
    with pytest.raises(QuantkitError, match="others push to the branch main") as caught:
        publish(parcel(tmp_path / "a"), Told())
    assert caught.value.exit_code == 1


def test_a_file_that_the_hub_does_not_keep(loopback, tmp_path, monkeypatch):
    loopback.add_repo(REPO, {})
    monkeypatch.setattr(publishing, "compare", lambda _, wanted: Difference(tuple(wanted.files)))
    with pytest.raises(QuantkitError, match=r"model-00001\S+ is not on the branch as it was committed"):
        publish(parcel(tmp_path / "a"), Told())


def test_a_file_that_changes_meanwhile(loopback, tmp_path):
    loopback.add_repo(REPO, {})
    wanted = parcel(tmp_path / "a")
    (tmp_path / "a" / SHARDS[1]).write_bytes(b"another")
    with pytest.raises(BadInputError, match="has changed since the push began"):
        publish(wanted, Told())
    assert held(loopback) == {}


def test_a_card_that_the_hub_refuses(loopback, tmp_path):
    loopback.add_repo(REPO, {})
    with pytest.raises(BadInputError, match=r"refuses files for tester/model: Invalid metadata in README\.md"):
        publish(parcel(tmp_path / "a", FILES | {"README.md": b"---\nlicense: [\n---\n"}), Told())


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("where", ["/commit/", "/preupload/", "/lfs/objects/batch", "/repos/models/"])
def test_what_the_hub_refuses_is_not_tried_again(loopback, tmp_path, where, status):
    loopback.add_repo(REPO, {})
    loopback.fail(where, status, times=100)
    with pytest.raises(NotFoundError, match=rf"HTTP {status}|shows no repository"):
        publish(parcel(tmp_path / "a"), Told())
    assert len(loopback.find(where)) == 1


def test_what_the_branch_holds_is_compared_by_content(loopback, tmp_path):
    wanted = parcel(tmp_path / "a")
    same = dict(FILES)
    other = FILES | {SHARDS[0]: b"FIRST" * 1000, "config.json": b"[]"}  # of equal sizes
    loopback.add_repo(REPO, same)
    loopback.add_repo("tester/other", other)
    assert not compare(resolve(REPO), wanted)
    assert [file.name for file in compare(resolve("tester/other"), wanted).new] == [SHARDS[0], "config.json"]
    assert git_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_tags_are_read_back(loopback, tmp_path, quick):
    first = send(loopback, tmp_path / "a").commit
    for kind in ("drop", "lost_answer", 503):
        loopback.fail("/tag/", kind)
        tag(REPO, "v1", first)
        assert loopback.repo(REPO).tags == {"v1": first}
    second = send(loopback, tmp_path / "a", files=FILES | {"config.json": b"[]"}).commit
    with pytest.raises(QuantkitError, match=f"the tag v1 is on {first}, expected {second}"):
        tag(REPO, "v1", second)
