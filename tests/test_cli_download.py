"""`quantkit download` as its users see it: what is printed, and each refusal in one sentence with its code."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from loopback.faults import ALWAYS

from quantkit.cli import main
from quantkit.weights import transfer

REPO = "some/model"
WEIGHTS = random.Random(3).randbytes(300_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"# [link](x)\n", "x.py": b"raise SystemExit"}
SIZE = sum(len(data) for name, data in FILES.items() if name != "x.py")


@pytest.fixture
def hub(loopback, hub_client, monkeypatch, tmp_path):
    loopback.add_repo(REPO, FILES)
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(transfer.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.chdir(tmp_path)
    return loopback


@pytest.fixture
def quantkit(hub, capsys):
    """Runs the command line; its code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["download", *arguments])
        printed = capsys.readouterr()
        assert hub.token not in printed.out + printed.err
        return caught.value.code, printed.out, printed.err

    return run


def cells(out):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def test_what_is_printed(quantkit, hub, tmp_path):
    code, out, err = quantkit(REPO, "--dry-run")
    assert (code, err) == (0, "")
    assert ["model.safetensors", "300.00 kB", "300.00 kB"] in cells(out)
    assert ["missing", "300.01 kB"] in cells(out)
    assert not hub.find("resolve/")
    code, out, err = quantkit(REPO)
    assert (code, err) == (0, "")
    assert cells(out)[:2] == [["repository", REPO], ["commit", hub.head(REPO)]]
    assert cells(out)[3:] == [["files", "3, 300.01 kB"], ["fetched", "3, 300.01 kB; every one verified"]]
    assert cells(quantkit(REPO)[1])[-1] == ["fetched", "nothing, all was here"]


def test_json(quantkit, hub, tmp_path):
    for arguments in ((REPO,), (REPO, "--out", "o")):
        plan = json.loads(quantkit(*arguments, "--dry-run", "--json")[1])
        record = json.loads(quantkit(*arguments, "--json")[1])
        common = {"schema_version": 1, "repo": REPO, "revision": None, "commit": hub.head(REPO), "bytes": SIZE}
        assert common.items() <= plan.items()
        assert common.items() <= record.items()
        assert plan["folder"] == record["folder"]
        assert [row["name"] for row in plan["files"]] == [row["name"] for row in record["files"]]
        assert set(plan) - set(record) == {"missing_bytes", "free_bytes"}
        assert set(record) - set(plan) == {"fetched"}
    assert record["fetched"] == []  # the cache had them


def test_revisions(quantkit, hub):
    first = hub.head(REPO)
    hub.commit(REPO, {"config.json": b"[]"}, "dev")
    for revision, commit in (("dev", hub.head(REPO, "dev")), (first, first), ("main", first)):
        record = json.loads(quantkit(f"{REPO}@{revision}", "--json")[1])
        assert (record["revision"], record["commit"]) == (revision, commit)


REFUSALS = [
    (["some/absent"], 4, "the Hub shows no repository some/absent"),
    (["some/gated"], 4, "some/gated is gated and not open to this user"),
    (["some/private"], 4, "the Hub shows no repository some/private"),
    ([f"{REPO}@v9"], 4, f"{REPO} has no revision 'v9'"),
    (["some/empty"], 4, "no weights in this repository"),
    (["some"], 2, "no repository: 'some'"),
    ([REPO, "--out", "file"], 3, "file is a file, expected a folder"),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), REFUSALS, ids=lambda value: str(value))
def test_each_refusal_is_one_sentence(quantkit, hub, tmp_path, arguments, code, sentence):
    hub.add_repo("some/gated", FILES, gated="manual", granted=False)
    hub.add_repo("some/private", FILES, private=True, granted=False)
    hub.add_repo("some/empty", {"README.md": b""})
    (tmp_path / "file").write_bytes(b"")
    got, out, err = quantkit(*arguments)
    assert (got, out) == (code, "")
    first, hint = err.splitlines()
    assert first.startswith(f"quantkit: {sentence}")
    assert hint.startswith("hint: ")


def test_a_wrong_token(quantkit, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canaryOfNobody")
    code, out, err = quantkit(REPO)
    assert (code, out) == (4, "")
    assert err.startswith("quantkit: the Hub ")
    assert "hf_canary" not in err


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("flip", 3, "quantkit: some/model: found model.safetensors with the sha256 "),
        (503, 5, "quantkit: the Hub was not reached for some/model: its storage answered HTTP 503"),
        ("reset", 5, "quantkit: the Hub was not reached for some/model: "),
    ],
)
def test_each_failure_is_one_sentence(quantkit, hub, kind, code, sentence):
    hub.fail("model.safetensors", kind, times=ALWAYS, after=1000, origin="cdn")
    got, out, err = quantkit(REPO)
    assert (got, out) == (code, "")
    assert err.startswith(sentence)
    assert len(err.splitlines()) == 2


def test_a_renamed_repository(quantkit, hub):
    hub.rename(REPO, "new/name")
    code, out, err = quantkit(REPO)
    assert code == 0
    assert err == f"{REPO} is called new/name now\n"
    assert cells(out)[0] == ["repository", "new/name"]


def test_the_token_is_nowhere(loopback, tmp_path):
    """Not at the storage, not in what is printed with every switch for that, not in what is written."""
    loopback.add_repo(REPO, FILES, private=True)
    loopback.fail("model.safetensors", "reset", after=100_000, origin="cdn")
    loopback.fail("config.json", 503)
    switches = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = os.environ | loopback.environment(tmp_path / "home") | switches
    for reference, code in ((REPO, 0), (f"{REPO}@v9", 4)):
        line = [sys.executable, "-m", "quantkit.cli", "download", reference, "--debug", "--json"]
        ran = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert ran.returncode == code, ran.stderr
        assert "canary" not in ran.stdout + ran.stderr
    assert len([path for path in (tmp_path / "home").rglob("*") if path.is_file()]) >= 2 * (len(FILES) - 1)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes()
    storage = [request for request in loopback.requests if request.origin == "cdn"]
    assert len(storage) == 2
    assert not any("canary" in f"{request.headers} {request.query}" for request in storage)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_download_that_continues(loopback, tmp_path, number):
    weights = random.Random(2).randbytes(3_000_000)
    loopback.add_repo(REPO, {"config.json": b"{}", "model.safetensors": weights})
    loopback.fail("model.safetensors", "stall", after=1_500_000, origin="cdn")
    environment = os.environ | loopback.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "quantkit.cli", "download", REPO, "--out", str(tmp_path / "out"), "--json"]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = next_partial(tmp_path / "out", process, 1_500_000)
    assert (tmp_path / "out" / "config.json").read_bytes() == b"{}"  # small files come first
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in (128 + number, -number)
    assert partial.stat().st_size == 1_500_000
    again = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["fetched"] == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert loopback.sent("model.safetensors", "cdn") == len(weights)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def next_partial(folder, process, size):
    while process.poll() is None:
        for path in folder.glob(".model.safetensors.*.partial"):
            if path.stat().st_size >= size:
                return path
    raise AssertionError(process.communicate())
