"""GGUF files as artifacts of `quantkit check`, beside GPTQ folders."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from artifacts import quantize
from gguf_files import Planned, write_gguf
from gguf_runs import converted, random_imatrix
from tiny import make_model

from quantkit import cli
from quantkit.checkfile import standing
from quantkit.errors import BadInputError
from quantkit.generate import Question, generate
from quantkit.gguf_source import GgufSource
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.report.check_table import markdown_table
from quantkit.weights.imatrix import write_imatrix

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "tiny-llama"
LINEAR = "blk.1.attn_k.weight"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@pytest.fixture(autouse=True)
def _no_timing_here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text((TINY_LLAMA / "sample.txt").read_text("utf-8")[:4000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files of the embedded model by type. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    found = converted(TINY_LLAMA, folder, "Q8_0", "Q4_K_M", "F16")
    split = converted(TINY_LLAMA, folder / "split" / "tiny-llama-Q8_0.gguf", "Q8_0", split_max_size="2MB")
    files = {record["type"]: found.folder / next(iter(record["files"])) for record in found.records}
    return files | {"split": [split.folder / name for name in split.records[0]["files"]]}


@pytest.fixture
def file(made, tmp_path):
    """A Q8_0 file to be changed, alone in its folder."""
    return Path(shutil.copy(made["Q8_0"], tmp_path))


def prepared(artifacts, text, baseline=TINY_LLAMA, **options):
    options = CheckOptions(text=(text,), **({"dtype": "float32", "context": 128} | options))
    return prepare([str(artifact) for artifact in artifacts], str(baseline), options)


def checked(artifacts, text, baseline=TINY_LLAMA, write=False, **options):
    return check.run(prepared(artifacts, text, baseline, **options), write=write)


def failures(record):
    return [gate["sentence"] for entry in record["artifacts"] for gate in entry["gates"] if not gate["passed"]]


def change(path, name, edit):
    """Change the bytes of a tensor in place."""
    (tensor,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    raw = bytearray(path.read_bytes())
    blocks = np.frombuffer(raw, np.uint8, tensor.n_bytes, int(tensor.data_offset))
    edit(blocks)
    path.write_bytes(raw)


def test_a_file_stands_beside_a_folder(made, tmp_path, text):
    folder = quantize(TINY_LLAMA, tmp_path / "tiny-llama-Int8", method="rtn", bits=8).output
    record = checked([made["Q4_K_M"], folder, made["F16"]], text)
    mixture, integers, halves = record["artifacts"]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(made["Q4_K_M"]).tensors}
    matrices = [one for name, one in stored.items() if name.startswith("blk.") and len(one.shape) > 1]
    assert (mixture["name"], mixture["format"], mixture["bits"]) == (made["Q4_K_M"].stem, "Q4_K_M", 4)
    expected = 8 * sum(int(one.n_bytes) for one in matrices) / sum(int(one.n_elements) for one in matrices)
    assert mixture["bits_per_weight"] == pytest.approx(expected, abs=1e-4)
    assert 4.5 < expected < 5.2
    assert mixture["file_bytes"] == made["Q4_K_M"].stat().st_size
    assert mixture["memory"]["weight_bytes"] == sum(int(one.n_bytes) for one in stored.values())
    assert (list(mixture["files"]), mixture["intact"], mixture["repo"]) == ([made["Q4_K_M"].name], None, None)
    assert {linear["output_error"] for linear in mixture["linears"]} == {None}
    assert len(mixture["linears"]) == len(integers["linears"]) == 28
    assert mixture["metrics"]["all"]["kl_mean"] > 10 * integers["metrics"]["all"]["kl_mean"]
    assert (halves["format"], halves["bits"], halves["bits_per_weight"]) == ("F16", None, 16.0)
    assert halves["metrics"]["all"]["kl_mean"] < 1e-5
    assert halves["passed"]
    assert record["evaluation"]["notes"] == []  # its vocabulary is the baseline's
    assert "| Q4\\_K\\_M | " in markdown_table(record)


def test_the_figures_are_those_of_a_whole_model_with_these_weights(made, text):
    job = prepared([made["Q4_K_M"]], text)
    record = check.run(job, write=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(job.sets[1].source.read(name))
        logits = torch.stack([model(row[None]).logits[0] for row in job.windows.ids])
    rows, columns = job.windows.scored.nonzero(as_tuple=True)
    found = torch.log_softmax(logits[rows, columns - 1].double(), -1)
    loss = -found.gather(1, job.windows.ids[rows, columns][:, None]).mean()
    perplexity = record["artifacts"][0]["metrics"]["all"]["perplexity"]
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert perplexity != pytest.approx(record["baseline"]["metrics"]["all"]["perplexity"], rel=1e-3)


def test_the_parts_of_a_split_model_are_one_artifact(made, text, tmp_path):
    parts = [Path(shutil.copy(part, tmp_path)) for part in made["split"]]
    assert len(parts) > 2
    whole, first, second, folder = checked([made["Q8_0"], parts[0], parts[1], tmp_path], text)["artifacts"]
    for entry in (first, second, folder):
        assert (entry["name"], entry["format"]) == ("tiny-llama-Q8_0", "Q8_0")
        assert (entry["metrics"], entry["linears"]) == (whole["metrics"], whole["linears"])
        assert list(entry["files"]) == [part.name for part in parts]
        assert entry["file_bytes"] == sum(part.stat().st_size for part in parts)
        assert entry["memory"] == whole["memory"]


def test_the_check_lies_beside_the_file_and_is_bound_to_it(file, text, capsys):
    record = checked([file], text, write=True)
    assert failures(record) == []
    kept = file.with_name(f"{file.stem}.check.json")
    assert json.loads(kept.read_bytes())["artifacts"] == record["artifacts"]
    assert standing(file).counts
    assert standing(file.parent).counts  # of the only file of a folder
    with pytest.raises(SystemExit) as left:
        cli.main(["check", str(file), "--status"])
    assert (left.value.code, capsys.readouterr().out[-60:].count("the files are those")) == (0, 1)
    change(file, "blk.0.ffn_up.weight", lambda blocks: np.add(blocks[:1], 1, out=blocks[:1]))
    assert standing(file).reason == f"{file.name} has changed since the check; it no longer counts"
    kept.unlink()
    assert standing(file).reason == f"{file} has no {kept.name}: it was not checked"


def test_a_part_that_is_gone_voids_the_check(made, text, tmp_path):
    parts = [Path(shutil.copy(part, tmp_path)) for part in made["split"]]
    checked([parts[1]], text, write=True)
    assert [path.name for path in tmp_path.glob("*.json")] == ["tiny-llama-Q8_0.check.json"]
    assert standing(parts[0]).counts
    parts[2].unlink()
    assert standing(parts[0]).reason == f"{parts[2].name} is gone since the check; it no longer counts"


def test_a_file_made_beside_a_checked_folder_leaves_its_check_alone(made, tmp_path, text):
    folder = quantize(TINY_LLAMA, tmp_path / "tiny-llama-Int8", method="rtn", bits=8).output
    checked([folder], text, write=True)
    shutil.copy(made["Q8_0"], folder)
    assert standing(folder).counts


def test_a_scale_that_is_off_is_caught(file, text):
    def larger(blocks):
        scales = blocks.reshape(-1, 34)[:, :2].copy().view(np.float16)
        blocks.reshape(-1, 34)[:, :2] = (scales * np.float16(1.05)).view(np.uint8)

    change(file, LINEAR, larger)
    assert "scale of model.layers.1.self_attn.k_proj off by 0.04" in "; ".join(failures(checked([file], text)))


@pytest.fixture
def tied(tmp_path):
    """A tied model, and a file of it with a head of its own, twice the embedding."""
    planned = Planned(make_model(tmp_path / "tied", tie_word_embeddings=True))
    embedding = next(row for row in planned.rows if row.name == EMBEDDING)
    planned.rows = (*planned.rows, replace(embedding, name=HEAD))
    path = write_gguf(planned, tmp_path / "headed.gguf", "F32")

    def twice(blocks):
        values = blocks.view(np.float32)
        values *= 2

    change(path, HEAD, twice)
    return planned, path


def test_a_tied_model_is_computed_with_the_head_that_its_file_brings(tied, tmp_path, text):
    planned, path = tied
    job = prepared([path], text, baseline=tmp_path / "tied")
    found = check.run(job, write=False)["artifacts"][0]
    assert found["linears"] == []
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tied", dtype=torch.float32)
    with torch.no_grad():
        logits = 2 * torch.stack([model(row[None]).logits[0] for row in job.windows.ids]).double()
        chosen = model.generate(job.windows.ids[:1, :5], do_sample=False, max_new_tokens=4)
    rows, columns = job.windows.scored.nonzero(as_tuple=True)
    losses = -torch.log_softmax(logits[rows, columns - 1], -1).gather(1, job.windows.ids[rows, columns][:, None])
    assert found["metrics"]["all"]["perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-5)
    stored = sum(tensor.nbytes for tensor in job.sets[1].source.files.tensors.values())
    assert found["memory"]["weight_bytes"] == stored
    asked = [Question(tuple(job.windows.ids[0, :5].tolist()), 4)]
    assert generate(job.skeleton, job.sets[1].source, asked, frozenset()) == [chosen[0, 5:].tolist()]
    change(path, HEAD, lambda blocks: np.negative(blocks.view(np.float32), out=blocks.view(np.float32)))
    other = GgufSource(path, planned.family, planned.gguf, planned.config, planned.source.infos)
    assert generate(job.skeleton, other, asked, frozenset()) != [chosen[0, 5:].tolist()]


def test_another_vocabulary_is_told(file, made, text):
    raw = file.read_bytes()
    token = b"the"
    at = raw.index(len(token).to_bytes(8, "little") + token) + 8
    file.write_bytes(raw[:at] + b"eht" + raw[at + 3 :])
    (note,) = checked([made["Q8_0"], file], text)["evaluation"]["notes"]
    assert note.startswith(f"1 of 2048 tokens of {file.stem} are not the baseline's, such as ")
    assert note.endswith("'eht' instead of 'the': it was checked with the baseline's ids")


def test_the_text_of_its_importance_is_noticed(tmp_path):
    sums = random_imatrix(Planned(TINY_LLAMA))
    write_imatrix(tmp_path / "imatrix.gguf", replace(sums, datasets=("english", "/dev/zero")))
    made = converted(TINY_LLAMA, tmp_path / "made", "Q8_0", imatrix=tmp_path / "imatrix.gguf")
    same = tmp_path / "same.jsonl"
    shutil.copy(Path(__file__).parents[2] / "calibration" / "english.jsonl", same)
    job = prepared([made.folder], str(same))
    assert job.sets[1].calibrated_with == ["english"]
    (note,) = job.notes
    assert note.endswith(f"% of same.jsonl is in the calibration text of {job.sets[1].name}: its figures flatter")


def test_a_file_without_a_vocabulary_is_told(tmp_path, text):
    base = make_model(tmp_path / "base")
    path = write_gguf(Planned(base), tmp_path / "bare.gguf", "Q8_0")
    assert prepared([path], text, baseline=base).notes == (
        "bare has no vocabulary: it was checked with the baseline's ids",
    )


def test_the_plan_needs_no_weights(made, text, monkeypatch):
    def refuse(self, name):
        raise AssertionError(name)

    monkeypatch.setattr(GgufSource, "read", refuse)
    job = prepared([made["Q8_0"], made["Q4_K_M"]], text)
    alone = prepared([made["F16"], made["F16"]], text)
    assert job.budget.head_bytes == 3 * alone.budget.head_bytes  # of each quantized head in float32
    assert [entry.name for entry in job.sets] == ["tiny-llama", made["Q8_0"].stem, made["Q4_K_M"].stem]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 3}, "block_count is 2, the baseline's 3"),
        ({"rms_norm_eps": 1e-3}, "layer_norm_rms_epsilon is"),
        ({"vocab_size": 640}, r"output.weight is \[512, 128\], expected \[640, 128\]"),
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path, text, changes, sentence):
    path = write_gguf(Planned(make_model(tmp_path / "other")), tmp_path / "other.gguf", "F32")
    base = make_model(tmp_path / "base", **changes)
    with pytest.raises(BadInputError, match=r"other\.gguf is not an artifact of this baseline: .*" + sentence):
        prepared([path], text, baseline=base)


def test_a_folder_of_several_models_is_refused(made, text):
    with pytest.raises(BadInputError, match=r"holds 3 GGUF models: tiny-llama.*\.gguf, .*"):
        prepared([made["Q8_0"].parent], text)


def test_answers_are_written_with_its_weights(made, text, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "It is a truth universally acknowledged,", "max_new_tokens": 4}\n', "utf-8")
    record = checked([made["F16"]], text, prompts=str(prompts))
    assert record["artifacts"][0]["answers"]["identical_share"] == 1.0
