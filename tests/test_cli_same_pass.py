"""`quantkit gptq --check` from the command line: what it prints, what it leaves with, and what a second run says."""

import json

import pytest
import tiny
import torch

from quantkit import cli

FEW = ["--bits", "8", "--group-size", "32", "--samples", "2", "--sequence-length", "16", "--device", "cpu", "--check"]
LOOSE = "gates: {max_ppl_increase: 50%, max_kl: 1.0, min_top1: 0.1}\n"  # weights of chance
STRICT = "gates: {min_top1: 1.0, max_kl: 1.0e-9}\n"


@pytest.fixture(autouse=True)
def _quick(one_thread, monkeypatch):
    """No timing of the machine, and two texts instead of eleven: nothing here depends on them."""
    from quantkit.pipeline import same_pass
    from quantkit.quality.texts import evaluation_texts

    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    monkeypatch.setattr(same_pass, "evaluation_texts", lambda _names: evaluation_texts(("english", "german")))


@pytest.fixture
def gptq(tmp_path, monkeypatch, capsys):
    """Runs it on a tiny model; gives exit code, stdout and stderr."""
    tiny.make_model(tmp_path / "model", dtype=torch.bfloat16)
    monkeypatch.chdir(tmp_path)

    def call(*options, gates=LOOSE):
        (tmp_path / "gates.yaml").write_text(gates)
        with pytest.raises(SystemExit) as left:
            cli.main(["gptq", "model", "--out", "out", "--recipe", "gates.yaml", *FEW, *options])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_a_finished_artifact_shows_the_check_it_has(gptq, tmp_path):
    code, out, _ = gptq()
    assert code == 0
    assert out.rstrip().endswith("checked in the same pass.")
    assert "out: passed" in out
    code, again, err = gptq()
    assert (code, again) == (0, out)
    assert "finished already" in err
    code, found, _ = gptq("--json")
    assert code == 0
    assert json.loads(found)["check"] == json.loads((tmp_path / "out" / "check.json").read_bytes())


def test_a_finished_artifact_without_a_check_of_its_files(gptq, tmp_path):
    gptq()
    (tmp_path / "out" / "check.json").unlink()
    code, _, err = gptq()
    assert code == 8
    assert "out was finished before, its check was not measured" in err


def test_a_gate_that_does_not_hold(gptq):
    code, out, err = gptq(gates=STRICT)
    assert code == 8
    assert "The artifact fails its limits" in out
    assert err.splitlines()[-2].startswith("quantkit: ")
    assert gptq(gates=STRICT)[0] == 8
