"""The genuine client with hf_xet, which it takes wherever it is installed, against the loopback Hub's CAS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hf_xet")

SHARD = "model.safetensors"
WEIGHTS = bytes(range(256)) * 4096
BASE = "some/model"
OWN = "tester/model"


@pytest.fixture
def hub(loopback):
    """The loopback Hub with a CAS."""
    loopback.enable_xet()
    return loopback


def run(hub, home, code, *arguments):
    """Runs the client in a process of its own, as hf_xet's local store wants it; what it prints."""
    environment = os.environ | hub.environment(home)
    words = [sys.executable, "-c", "import sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n" + code, *arguments]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert hub.token not in ran.stdout + ran.stderr
    return ran.stdout.strip()


def test_downloads_come_from_the_cas(hub, tmp_path):
    hub.add_repo(BASE, {SHARD: WEIGHTS, "config.json": b"{}"})
    folder = run(hub, tmp_path, f"print(api.snapshot_download({BASE!r}))")
    assert Path(folder, SHARD).read_bytes() == WEIGHTS
    assert len(hub.find("/xet-read-token/")) == 1
    assert [request for request in hub.requests if request.origin == "cdn"] == []


def test_uploads_go_to_the_cas(hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / SHARD).write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(b"{}")
    code = f"api.create_repo({OWN!r})\napi.upload_folder(repo_id={OWN!r}, folder_path=sys.argv[1])"
    run(hub, tmp_path, code, folder)
    files = hub.repo(OWN).files()
    assert (files[SHARD], files["config.json"]) == (WEIGHTS, b"{}")
    assert hub.find("/objects/batch") == []
    [token] = hub.find("/xet-write-token/")
    assert token.authorized
    before = hub.head(OWN)
    run(hub, tmp_path, f"api.upload_folder(repo_id={OWN!r}, folder_path=sys.argv[1])", folder)
    assert hub.head(OWN) == before
    back = run(hub, tmp_path, f"print(api.hf_hub_download({OWN!r}, {SHARD!r}))")
    assert Path(back).read_bytes() == WEIGHTS


def test_other_clients_read_the_same_by_http(hub, hub_client, tmp_path):
    hub.add_repo(BASE, {SHARD: WEIGHTS})
    by_xet = run(hub, tmp_path, f"print(api.hf_hub_download({BASE!r}, {SHARD!r}))")
    assert Path(by_xet).read_bytes() == WEIGHTS
    assert Path(hub_client.hf_hub_download(BASE, SHARD)).read_bytes() == WEIGHTS
    assert [request.sent for request in hub.requests if request.origin == "cdn"] == [len(WEIGHTS)]
