"""`quantkit push` from the command line: exit codes, what goes where, and a token that is seen nowhere."""

import json
import os
import subprocess
import sys

import pushable
import pytest
from pushable import REPO, commits, contents, held, without_check

from quantkit import cli

gptq_made, gptq = pushable.gptq_made, pushable.gptq
CANARY = "hf_canary"


@pytest.fixture
def quantkit(hub_client, capsys):
    """`quantkit push` in this process: exit code, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main(["push", *map(str, arguments)])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_what_a_push_prints(loopback, quantkit, gptq):
    code, out, err = quantkit(gptq, REPO, "--tag", "v1", "--collection", "Quantized")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"{REPO} (public) holds {len(contents(gptq))} files, ")
    assert lines[0].endswith(f" at commit {loopback.head(REPO)[:12]}")
    assert lines[1:] == ["tag v1", f"collection {next(iter(loopback.collections))}", f"{loopback.url}/{REPO}"]
    assert "model-00001-of-00002.safetensors: " in err
    code, out, err = quantkit(gptq, REPO)
    assert code == 0
    assert "held already" in out
    assert err == ""


def test_the_json_of_a_push(quantkit, gptq):
    code, out, _ = quantkit(gptq, REPO, "--branch", "auto", "--private", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["schema_version"] == 1
    assert (record["branch"], record["private"], record["changed"]) == ("gptq-8bit-32g-actorder_True", True, True)
    assert not json.loads(quantkit(gptq, REPO, "--branch", "auto", "--json")[1])["changed"]


def test_what_a_dry_run_prints(loopback, quantkit, gptq):
    code, out, _ = quantkit(gptq, REPO, "--dry-run")
    assert code == 0
    assert f"{REPO} (as the namespace has chosen, new): " in out
    assert "model-00001-of-00002.safetensors" in out
    assert "library_name: transformers" in out
    assert not (gptq / "README.md").exists()
    assert not loopback.repos
    plan = json.loads(quantkit(gptq, REPO, "--dry-run", "--json")[1])
    assert plan["card"].startswith("---\n")
    quantkit(gptq, REPO)
    assert "nothing to be done" in quantkit(gptq, REPO, "--dry-run")[1]
    (gptq / "notes.txt").write_text("own")
    (gptq / "generation_config.json").unlink()
    loopback.commit(REPO, {"tokenizer.model": b"old"})
    out = quantkit(gptq, REPO, "--dry-run", "--force")[1]
    assert "tokenizer.model of an earlier push would be removed" in out
    assert "stays here: notes.txt" in out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["nowhere"], 2, "no repository name"),
        (["others/model"], 4, "may not write to others"),
        ([REPO, "--tag", "a b"], 2, "--tag"),
    ],
)
def test_exit_codes(quantkit, gptq, options, code, said):
    found, out, err = quantkit(gptq, *options)
    assert (found, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 2


def test_an_artifact_that_was_not_checked(quantkit, gptq):
    without_check(gptq)
    code, out, err = quantkit(gptq, REPO)
    assert (code, out) == (8, "")
    assert "was not checked" in err
    code, _, err = quantkit(gptq, REPO, "--force")
    assert code == 0
    assert "published with --force, and the card says so" in err


def test_a_hub_that_is_not_there(loopback, quantkit, gptq):
    loopback.fail("/api/", 503, times=1000)
    code, out, err = quantkit(gptq, REPO)
    assert (code, out) == (5, "")
    assert "HTTP 503" in err


def process(hub, home, *arguments, **environment):
    """`quantkit push` in a process of its own, which reads the environment."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "quantkit.cli", "push", *map(str, arguments)]
    given = base | hub.environment(home) | environment
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


def test_the_token_is_seen_nowhere(loopback, gptq, tmp_path):
    """Told to be as talkative as it can; with faults, and with a token that is refused."""
    home = tmp_path / "home"
    talkative = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    loopback.fail("/repos/models/", 503, method="PUT")
    loopback.fail("/commit/", "lost_answer")
    arguments = (gptq, REPO, "--json", "--debug", "--tag", "v1")
    done = process(loopback, home, *arguments, **talkative)
    assert done.returncode == 0, done.stderr
    assert held(loopback) == contents(gptq)
    assert commits(loopback) == 1
    refused = process(loopback, home, *arguments, **talkative, HF_TOKEN=f"{CANARY}OfNobody")
    assert refused.returncode == 4
    assert "the Hub does not accept this token" in refused.stderr
    seen = [done.stdout, done.stderr, refused.stdout, refused.stderr, *map(repr, held(loopback).items())]
    seen += [commit.title + commit.message for commit in loopback.repo(REPO).history()]
    seen += [repr(path.read_bytes()) for folder in (gptq, home) for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in seen if CANARY in text]
    assert not [request for request in loopback.requests if request.origin == "cdn" and request.authorized]
    assert not [request for request in loopback.requests if CANARY in f"{request.path}{request.query}"]


def test_through_xet(loopback, gptq, tmp_path):
    """The client's choice where hf-xet is installed; the rest of the push is the same."""
    pytest.importorskip("hf_xet")
    loopback.enable_xet()
    done = process(loopback, tmp_path / "home", gptq, REPO)
    assert done.returncode == 0, done.stderr
    assert held(loopback) == contents(gptq)
    assert commits(loopback) == 1
    assert loopback.find("/xet-write-token/")
    assert not loopback.find("/objects/batch")
    assert CANARY not in done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_hub_without_xet(loopback, gptq, tmp_path):
    pytest.importorskip("hf_xet")
    done = process(loopback, tmp_path / "home", gptq, REPO, HF_HUB_DISABLE_XET="0")
    assert done.returncode == 4
    assert "the Hub of tester/model has no Xet storage" in done.stderr
    assert "hint: set HF_HUB_DISABLE_XET=1" in done.stderr
    assert len(loopback.find("/xet-write-token/")) == 1
