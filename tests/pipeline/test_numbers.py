"""Values that are not numbers, or of no size: a run stops at them by name, or goes on and says how."""

import json
import shutil

import pytest
import tiny
import torch
from artifacts import SMALL, Recorder, digests, job_of, log_of, logits, quantize, read_json, stored

from quantkit.cli import _run
from quantkit.errors import BadInputError
from quantkit.methods.hessian import DAMP_LADDER, HessianSum
from quantkit.pipeline.gptq import run
from quantkit.progress import Lines
from quantkit.weights.local import LocalSource

REPO = "some/model"
UP = "model.layers.1.mlp.up_proj.weight"
LAYER = "model.layers.1."


@pytest.fixture
def own(sources, tmp_path):
    """A copy of a checkpoint that a test may change."""
    return shutil.copytree(sources("llama", torch.bfloat16), tmp_path / "source")


def change(folder, **tensors):
    """Other values for some tensors; a function is given the old ones."""
    weights = stored(folder)
    for name, value in tensors.items():
        weights[name] = value(weights[name]) if callable(value) else value
    tiny.write_weights(folder, weights, "safetensors")


def with_value(value):
    def changed(tensor):
        tensor[3, 5] = value
        return tensor

    return changed


def strict_json(text):
    """JSON as the standard has it, in which NaN and Infinity do not occur."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_all_numbers(folder):
    """No NaN or infinity in a tensor or in a record of an artifact."""
    for name, tensor in stored(folder).items():
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name
    strict_json((folder / "run.json").read_text())
    for line in (folder / "layers.jsonl").read_text().splitlines():
        strict_json(line)


# A weight that is no number: the run stops when its layer is read, and what is finished stays.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_weight_that_is_no_number_stops_the_run_at_its_layer(own, tmp_path, value, method):
    change(own, **{UP: with_value(value)})
    for again in (False, True):
        progress = Recorder()
        with pytest.raises(BadInputError) as caught:
            quantize(own, tmp_path / "out", progress, method=method)
        assert str(caught.value) == f"tensor {UP} has 1 values that are NaN or infinite"
        assert progress.started == (2, 1 if again else 0)
        assert progress.layers == ([] if again else [0])  # what is finished is not done again
        assert [row["finished"] for row in log_of(tmp_path / "out") if "finished" in row] == [0]
    assert not (tmp_path / "out" / "config.json").exists()


def test_layers_finished_before_a_misread_weight_are_used_again(own, tmp_path, monkeypatch):
    """A disk or a memory that erred once: the file is what it was, and so is the artifact."""
    read = LocalSource.read
    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "read", lambda self, name: read(self, name) * (float("nan") if name == UP else 1))
        with pytest.raises(BadInputError, match=UP):
            quantize(own, tmp_path / "out")
    progress = Recorder()
    quantize(own, tmp_path / "out", progress)
    assert (progress.started, progress.layers) == ((2, 1), [1])
    quantize(own, tmp_path / "undisturbed")
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


@pytest.mark.usefixtures("hub_client")
def test_a_download_that_was_damaged_and_fetched_again_continues_after_its_finished_layers(
    sources, loopback, tmp_path, monkeypatch
):
    good = sources("llama", torch.bfloat16)
    loopback.add_repo(REPO, {path.name: path for path in good.iterdir()})
    job = job_of(REPO, tmp_path / "out")
    read = LocalSource.read
    damaged = []

    def damage_once(self, name):
        if not damaged:
            path = (self.folder / "model.safetensors").resolve()
            damaged.append(path)
            with path.open("r+b") as file:
                file.seek(self.infos[UP].offset)
                file.write(b"\xff\x7f")  # a NaN in bfloat16
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "read", damage_once)
        with pytest.raises(BadInputError, match=UP):
            run(job)
    (path,) = damaged
    path.unlink()
    progress = Recorder()
    run(job_of(REPO, tmp_path / "out"), progress)
    assert (progress.started, progress.layers) == ((2, 1), [1])
    quantize(good, tmp_path / "undisturbed")
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


def test_a_mended_file_is_another_source_and_named_as_such(own, tmp_path):
    """Whether the finished layers were read from damaged bytes too, nobody knows: they are not mixed in silently."""
    whole = stored(own)[UP]
    change(own, **{UP: with_value(float("nan"))})
    with pytest.raises(BadInputError):
        quantize(own, tmp_path / "out")
    change(own, **{UP: whole})
    with pytest.raises(BadInputError) as caught:
        quantize(own, tmp_path / "out")
    assert "holds a run with source" in str(caught.value)
    assert "--restart to begin anew" in caught.value.hint


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_value_that_float32_cannot_hold_is_infinite(own, tmp_path, method):
    change(own, **{UP: lambda tensor: with_value(1e300)(tensor.double())})
    with pytest.raises(BadInputError) as caught:
        quantize(own, tmp_path / "out", method=method)
    assert str(caught.value) == f"tensor {UP} has 1 values that are NaN or infinite"


# Numbers that overflow on the way: rounded to nearest, and said.


def test_activations_that_overflow_leave_their_linears_rounded_to_nearest(own, tmp_path, capsys):
    change(own, **{LAYER + "input_layernorm.weight": lambda tensor: torch.full_like(tensor, 3e38)})
    arguments = ["--group-size", "32", "--samples", "8", "--sequence-length", "64", "--device", "cpu"]
    assert _run(["gptq", str(own), "--out", str(tmp_path / "out"), *arguments], debug=False) == 0
    out, err = capsys.readouterr()
    linears = [row for row in log_of(tmp_path / "out") if "name" in row]
    assert {row["name"]: row["method"] for row in linears} == {
        row["name"]: "rtn" if row["name"].startswith(LAYER) else "gptq" for row in linears
    }
    rounded = [row["name"] for row in linears if row["method"] == "rtn"]
    assert len(rounded) == 7
    for name in rounded:
        assert f"{name}: rounded to nearest, its Hessian could not be factorised\n" in err
    assert "warning: rounded to nearest, their Hessian could not be factorised: " in out
    assert read_json(tmp_path / "out" / "run.json")["rounded_to_nearest"] == rounded
    quantize(own, tmp_path / "rtn", method="rtn")
    plain = stored(tmp_path / "rtn")
    for name, tensor in stored(tmp_path / "out").items():
        if name.startswith(LAYER):
            assert torch.equal(tensor, plain[name])
    assert_all_numbers(tmp_path / "out")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("size", [1e20, 3e38])
def test_weights_that_no_scale_reaches_leave_only_numbers(own, tmp_path, size, method):
    change(own, **{UP: with_value(size)})
    quantize(own, tmp_path / "out", method=method)
    assert_all_numbers(tmp_path / "out")


@pytest.mark.parametrize("name", [UP, LAYER + "self_attn.v_proj.weight", LAYER + "input_layernorm.weight"])
def test_a_tensor_of_zeros_stays_one(own, tmp_path, name):
    change(own, **{name: torch.zeros_like(stored(own)[name])})
    quantize(own, tmp_path / "out")
    assert_all_numbers(tmp_path / "out")
    assert torch.isfinite(logits(tmp_path / "out", tiny.token_ids(2, 32))).all()


def test_a_model_of_zeros_is_quantized_to_zeros(own, tmp_path):
    change(own, **{name: torch.zeros_like(tensor) for name, tensor in stored(own).items()})
    quantize(own, tmp_path / "out")
    assert_all_numbers(tmp_path / "out")
    assert (logits(tmp_path / "out", tiny.token_ids(2, 32)) == 0).all()
    assert len(read_json(tmp_path / "out" / "run.json")["rounded_to_nearest"]) == 14


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("act_order", ["none", "full"])
def test_a_single_sample_of_a_few_tokens_does(own, tmp_path, tokens, act_order):
    calibration = {"samples": 1, "sequence_length": tokens}
    quantize(own, tmp_path / "out", act_order=act_order, calibration=calibration)
    assert_all_numbers(tmp_path / "out")
    assert {row["method"] for row in log_of(tmp_path / "out") if "name" in row} == {"gptq"}
    assert torch.isfinite(logits(tmp_path / "out", tiny.token_ids(2, 32))).all()


def test_raised_damping_is_in_log_record_and_report(own, tmp_path, monkeypatch, capsys):
    finish = HessianSum.finish

    def shifted(self):
        matrix = finish(self)
        mean = matrix.diagonal().mean()
        return matrix - 0.2 * mean * torch.eye(len(matrix)) if len(matrix) == 256 else matrix

    monkeypatch.setattr(HessianSum, "finish", shifted)
    assert _run(["gptq", str(own), "--out", str(tmp_path / "out"), "--group-size", "32", "--samples", "8",
                 "--sequence-length", "64", "--device", "cpu"], debug=False) == 0  # fmt: skip
    out, err = capsys.readouterr()
    raised = {row["name"]: row for row in log_of(tmp_path / "out") if row.get("damping_raised")}
    assert list(raised) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    for name, row in raised.items():
        steps = row["damping_raised"]
        assert row["damp_percent"] == pytest.approx(0.05 * (1.0, *DAMP_LADDER)[steps])
        assert f"{name}: damping raised to {row['damp_percent']:g} in {steps} step" in err
    record = read_json(tmp_path / "out" / "run.json")
    assert record["damping_raised"] == {name: row["damp_percent"] for name, row in raised.items()}
    assert f"warning: damping raised, their Hessian is not positive definite: {', '.join(raised)}" in out


def test_a_line_of_the_log_says_what_was_tried(capsys):
    record = {"name": "a.b", "method": "rtn", "damp_percent": 1.0, "damping_raised": 4, "relative_error": 0.1}
    Lines().linear(record)
    Lines().linear(record | {"method": "gptq", "damp_percent": 0.1, "damping_raised": 1})
    Lines().linear(record | {"method": "gptq", "damping_raised": 0})
    Lines().linear({"name": "a.b", "method": "rtn", "relative_error": 0.1})
    assert capsys.readouterr().err.splitlines() == [
        "a.b: rounded to nearest, its Hessian could not be factorised, damping raised to 1 in 4 steps",
        "a.b: damping raised to 0.1 in 1 step",
    ]


# Shapes that the format cannot hold: 172 columns, as in stories260K.


def test_what_cannot_be_packed_is_left_in_16_bits_and_said_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.make_model(tmp_path / "model", dtype=torch.bfloat16, intermediate_size=172)
    arguments = ["--group-size", "32", "--samples", "8", "--sequence-length", "64", "--device", "cpu"]
    notes = [
        "note: mlp.gate_proj and its like stay in 16 bits: out_features 172 is not divisible by 32",
        "note: mlp.down_proj and its like stay in 16 bits: in_features 172 is not divisible by 32",
    ]
    assert _run(["plan", "model", *arguments], debug=False) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == notes
    assert _run(["gptq", "model", "--out", "out", *arguments], debug=False) == 0
    out, err = capsys.readouterr()
    for note in notes:
        assert note in err
        assert note in out
    assert [f"note: {note}" for note in read_json(tmp_path / "out" / "run.json")["notes"]] == notes
    before, after = stored(tmp_path / "model"), stored(tmp_path / "out")
    assert torch.equal(after[LAYER + "mlp.down_proj.weight"], before[LAYER + "mlp.down_proj.weight"])
    for command in ("plan", "gptq"):
        assert _run([command, "model", "--out", "strict", "--strict", *arguments], debug=False) == 3
        assert capsys.readouterr().err.endswith(
            "quantkit: model.layers.0.mlp.gate_proj: out_features 172 is not divisible by 32\n"
            "hint: leave out --strict to keep such linears in 16 bits\n"
        )
    assert not (tmp_path / "strict").exists()


def test_a_group_size_that_does_not_divide_is_said(sources, tmp_path):
    source = sources("llama", torch.bfloat16, intermediate_size=160)
    job = job_of(source, tmp_path / "out", group_size=128)
    assert [note for note in job.plan.notes if "mlp.down_proj" in note] == [
        "mlp.down_proj and its like stay in 16 bits: in_features 160 is not divisible by the group size 128"
    ]
    assert job.plan.grids()[LAYER + "mlp.gate_proj"] is not None
    assert SMALL["group_size"] == 32
