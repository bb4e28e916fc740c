"""`quantkit check` from the command line: exit codes, files, what goes where."""

import json
from pathlib import Path

import pytest

from quantkit import cli
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import make_recipe

TINY_LLAMA = Path(__file__).parents[1] / "examples" / "tiny-llama"


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "tiny-llama-Int8"
    run(prepare(str(TINY_LLAMA), make_recipe({"bits": 8, "method": "rtn"}), output=out, device="cpu"))
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text((TINY_LLAMA / "sample.txt").read_text("utf-8")[:4000], encoding="utf-8")
    return path


@pytest.fixture
def quantkit(capsys, artifact, text):
    """Run `quantkit check` on the artifact; gives exit code, stdout and stderr."""

    def call(*arguments, baseline=TINY_LLAMA):
        given = ["check", str(artifact), "--text", str(text), "--context", "128", *map(str, arguments)]
        with pytest.raises(SystemExit) as left:
            cli.main([*given, "--baseline", str(baseline)] if baseline else given)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_a_healthy_artifact_leaves_with_zero(quantkit, artifact):
    code, out, err = quantkit()
    assert code == 0
    assert "tiny-llama-Int8" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "layer 4/4" in err
    assert quantkit("--status", baseline=None)[:2] == (
        0,
        f"{artifact}: checked, passed, and the files are those that were checked\n",
    )


def test_json_is_one_object_with_the_record(quantkit):
    code, out, _ = quantkit("--json")
    record = json.loads(out)
    assert (code, record["schema_version"], record["passed"]) == (0, 1, True)
    assert record["artifacts"][0]["metrics"]["all"]["tokens"] == record["evaluation"]["tokens"]


def test_a_missed_gate_leaves_with_eight_and_says_by_how_much(quantkit, artifact):
    code, _, err = quantkit("--max-kl", "0.0000001")
    assert code == 8
    assert "quantkit: tiny-llama-Int8: mean KL divergence 0." in err
    assert ", allowed 0.0000" in err
    code, out, err = quantkit("--status", baseline=None)
    assert (code, out) == (8, f"{artifact}: the check did not pass\n")


def test_without_gates_nothing_is_judged(quantkit):
    assert quantkit("--max-kl", "0.0000001", "--no-gates")[0] == 0


def test_html_and_markdown_are_written(quantkit, tmp_path):
    assert quantkit("--html", tmp_path / "r.html", "--markdown", tmp_path / "t.md")[0] == 0
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
    assert "| tiny-llama-Int8 |" in (tmp_path / "t.md").read_text("utf-8")


def test_a_dry_run_says_what_it_would_cost(quantkit):
    code, out, _ = quantkit("--dry-run")
    assert code == 0
    assert "peak host memory" in out
    code, out, _ = quantkit("--dry-run", "--json")
    assert json.loads(out)["host_bytes"] > 0


def test_without_a_baseline_the_hint_says_which(quantkit):
    code, _, err = quantkit(baseline=None)
    assert code == 2
    assert "quantkit: check needs --baseline" in err
    assert "hint: name the 16-bit checkpoint" in err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--text", "no-such-text"], 2, "no evaluation text 'no-such-text'"),
        (["--max-ppl-increase", "much"], 2, "--max-ppl-increase 'much' is not a percentage"),
        (["--max-memory", "much"], 2, "not a size: 'much'"),
        (["--prompts", "no-such-file.jsonl"], 2, "no-such-file.jsonl"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(quantkit, arguments, code, sentence):
    found, out, err = quantkit(*arguments)
    assert (found, out) == (code, "")
    assert sentence in err


def test_memory_above_the_limit_is_a_missed_gate(quantkit):
    code, _, err = quantkit("--max-memory", "100MB")
    assert code == 8
    assert "memory 8" in err
    assert "allowed 100.00 MB" in err
