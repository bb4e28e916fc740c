"""`quantkit check`, whole: figures, gates, records, and inputs that do not fit together."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from artifacts import Recorder, quantize
from corruption import (
    foreign,
    larger_scales,
    one_larger_scale,
    permuted_heads,
    shifted_zero_points,
    spoil,
    swapped_rows,
)
from tiny import make_model

from quantkit.checkfile import CHECK_FILE, standing
from quantkit.errors import BadInputError, QualityError, UsageError
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.pipeline.check_text import prefix_ids
from quantkit.pipeline.gptq import run as run_gptq
from quantkit.pipeline.job import prepare as prepare_gptq
from quantkit.quality.gates import Limits
from quantkit.recipe import Calibration, Recipe
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import open_folder

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "tiny-llama"
TEXT = TINY_LLAMA / "sample.txt"
LINEAR = "model.layers.1.self_attn.k_proj"


@pytest.fixture(autouse=True)
def _no_timing_here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(TEXT.read_text("utf-8")[:6000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory):
    """The embedded model at 8 bits. Not to be changed."""
    out = tmp_path_factory.mktemp("made") / "tiny-llama-Int8"
    recipe = Recipe(bits=8, calibration=Calibration(samples=4, sequence_length=64))
    run_gptq(prepare_gptq(str(TINY_LLAMA), recipe, output=out, device="cpu"))
    return out


@pytest.fixture
def artifact(eight_bits, tmp_path):
    return Path(shutil.copytree(eight_bits, tmp_path / "artifact"))


def checked(folders, text, baseline=TINY_LLAMA, write=True, progress=None, **options):
    options = CheckOptions(text=(text,), **({"dtype": "float32", "context": 256} | options))
    return check.run(prepare([str(folder) for folder in folders], str(baseline), options), progress, write)


def failures(record):
    return [gate["sentence"] for entry in record["artifacts"] for gate in entry["gates"] if not gate["passed"]]


def full_model_scores(folder, source, windows):
    """[tokens, vocabulary] float64 log-probabilities of transformers' whole model with these weights, in order."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.read(name))
        logits = torch.stack([model(row[None]).logits[0] for row in windows.ids])
    rows, columns = windows.scored.nonzero(as_tuple=True)
    return torch.log_softmax(logits[rows, columns - 1].double(), -1), windows.ids[rows, columns]


def test_the_figures_are_those_of_whole_models(eight_bits, text):
    job = prepare([str(eight_bits)], str(TINY_LLAMA), CheckOptions(text=(text,), dtype="float32", context=200))
    record = check.run(job, write=False)
    opened = open_folder(eight_bits)
    source = DequantizedSource(opened.source, opened.config["quantization_config"])
    p, target = full_model_scores(TINY_LLAMA, open_folder(TINY_LLAMA).source, job.windows)
    q, _ = full_model_scores(TINY_LLAMA, source, job.windows)
    found = record["artifacts"][0]["metrics"]["all"]
    loss = -q.gather(1, target[:, None])
    assert found["tokens"] == len(target) == record["evaluation"]["tokens"]
    assert record["baseline"]["metrics"]["all"]["perplexity"] == pytest.approx(
        math.exp(-p.gather(1, target[:, None]).mean()), rel=1e-5
    )
    assert found["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-5)
    assert found["kl_mean"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)
    assert found["top1_agreement"] == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()), abs=1e-9)


def test_a_healthy_artifact_passes_and_its_check_counts(artifact, text):
    record = checked([artifact], text)
    assert failures(record) == []
    assert record["passed"]
    found = standing(artifact)
    assert found.counts
    assert found.record["artifacts"] == record["artifacts"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shifted_zero_points(LINEAR, 8), "lasting offset in"),
        (swapped_rows(LINEAR, 3, 40), f"of {LINEAR} "),
        (larger_scales(LINEAR), f"scale of {LINEAR} off by 0.04"),
        (permuted_heads(LINEAR, 2), f"of {LINEAR} "),
    ],
    ids=["shifted zero points", "swapped rows", "scales x 1.05", "permuted k"],
)
def test_a_corrupted_artifact_is_caught_whoever_made_it(artifact, text, change, sentence):
    spoil(artifact, change)
    foreign(artifact)
    record = checked([artifact], text)
    assert not record["passed"]
    assert sentence in "; ".join(failures(record))
    assert not standing(artifact).counts


def test_of_our_own_artifacts_the_smallest_change_is_caught(artifact, text):
    spoil(artifact, one_larger_scale(LINEAR))
    assert failures(checked([artifact], text)) == [
        "files changed since they were written: model.safetensors, allowed none"
    ]


def test_a_file_changed_after_the_check_is_recognised(artifact, text):
    checked([artifact], text)
    for name, change in (("config.json", b"\n"), ("model.safetensors", b"\0")):
        before = (artifact / name).read_bytes()
        (artifact / name).write_bytes(before + change)
        found = standing(artifact)
        assert (found.counts, found.reason) == (False, f"{name} has changed since the check; it no longer counts")
        (artifact / name).write_bytes(before)
        assert standing(artifact).counts
    (artifact / "model-2.safetensors").write_bytes(b"")
    assert standing(artifact).reason == "model-2.safetensors is new since the check; it no longer counts"


def test_without_a_check_nothing_counts(artifact):
    assert standing(artifact).reason == f"{artifact} has no {CHECK_FILE}: it was not checked"
    (artifact / CHECK_FILE).write_text("{", encoding="utf-8")
    assert standing(artifact).reason == f"{artifact / CHECK_FILE} is not JSON"


def test_several_artifacts_see_the_same_windows(artifact, eight_bits, text):
    spoil(artifact, larger_scales(LINEAR))
    together = checked([eight_bits, artifact], text, write=False)
    alone = [checked([folder], text, write=False) for folder in (eight_bits, artifact)]
    for entry, single in zip(together["artifacts"], alone, strict=True):
        assert entry["metrics"] == single["artifacts"][0]["metrics"]
        assert entry["linears"] == single["artifacts"][0]["linears"]
    assert together["artifacts"][0]["passed"]
    assert not together["artifacts"][1]["passed"]


def test_a_copy_of_the_baseline_has_lost_nothing(tmp_path, text):
    plain = shutil.copytree(TINY_LLAMA, tmp_path / "plain")
    (entry,) = checked([plain], text)["artifacts"]
    assert (entry["metrics"]["all"]["kl_mean"], entry["linears"], entry["bits"]) == (0.0, [], None)
    assert entry["passed"]


def test_damage_is_told_per_layer_and_linear(eight_bits, text):
    (entry,) = checked([eight_bits], text, write=False)["artifacts"]
    logged = [json.loads(line) for line in (eight_bits / "layers.jsonl").read_text("utf-8").splitlines()]
    names = [row["name"] for row in logged if "name" in row]
    assert sorted(linear["name"] for linear in entry["linears"]) == sorted(names)
    assert all(0 < linear["error"] < 0.01 and linear["output_error"] >= 0 for linear in entry["linears"])
    assert len(entry["drift"]) == 4
    assert all(0 < drift < 0.01 for drift in entry["drift"])


def test_own_limits_decide(eight_bits, text):
    record = checked([eight_bits], text, write=False, limits=Limits(kl=1e-9))
    assert failures(record)[0].startswith("mean KL divergence ")
    assert not record["passed"]
    assert checked([eight_bits], text, write=False, limits=Limits(kl=1e-9), gated=False)["passed"]


def test_memory_is_what_the_files_and_the_cache_take(eight_bits, text):
    (entry,) = checked([eight_bits], text, write=False)["artifacts"]
    memory = entry["memory"]
    assert memory["weight_bytes"] == sum(info.nbytes for info in open_folder(eight_bits).source.infos.values())
    assert memory["predicted_bytes"] == memory["weight_bytes"] + memory["kv_bytes"] + memory["overhead_bytes"]
    assert 8 < entry["bits_per_weight"] < 8.6
    assert memory["ratio"] < 1


def test_languages_and_texts_are_told_apart(eight_bits):
    options = CheckOptions(text=("french", "german"), dtype="float32", context=256)
    record = check.run(prepare([str(eight_bits)], str(TINY_LLAMA), options), write=False)
    found = record["artifacts"][0]["metrics"]
    assert set(found["languages"]) == {"fr", "de"}
    tokens = {row["name"]: row["tokens"] for row in record["evaluation"]["texts"]}
    assert {name: metrics["tokens"] for name, metrics in found["texts"].items()} == tokens
    assert sum(tokens.values()) == found["all"]["tokens"]
    mean = sum(found["texts"][name]["kl_mean"] * count for name, count in tokens.items()) / sum(tokens.values())
    assert found["all"]["kl_mean"] == pytest.approx(mean, rel=1e-5)


def test_the_record_is_plain_json(eight_bits, text):
    record = checked([eight_bits], text, write=False)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert str(eight_bits.parent) not in json.dumps(record)


def test_calibration_text_in_the_evaluation_is_told(tmp_path, text):
    made = quantize(
        TINY_LLAMA, tmp_path / "made", bits=8, calibration={"text": ["english"], "samples": 4, "sequence_length": 64}
    )
    calibration = Path(__file__).parents[2] / "calibration" / "english.jsonl"
    same = tmp_path / "same.jsonl"
    same.write_text(calibration.read_text("utf-8"), encoding="utf-8")
    progress = Recorder()
    record = checked([made.output], str(same), write=False, progress=progress)
    (note,) = record["evaluation"]["notes"]
    assert note.endswith("% of same.jsonl is in the calibration text of made: its figures flatter")
    assert int(note.partition("%")[0]) > 90
    assert f"note: {note}" in progress.said
    assert checked([made.output], text, write=False)["evaluation"]["notes"] == []
    # The shipped sets of this name, one to calibrate with and one to check with, have nothing in common.
    assert prepare([str(made.output)], str(TINY_LLAMA), CheckOptions(text=("english",))).notes == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 500}, "vocab_size is 500, the baseline's 512"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the baseline's 2"),
        ({"hidden_size": 64}, "hidden_size is 64, the baseline's 128"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, the baseline's 1e-05"),
        ({"rope_theta": 5e5}, "rope_theta"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, text, changes, sentence):
    base, other = make_model(tmp_path / "base"), make_model(tmp_path / "other", **changes)
    with pytest.raises(BadInputError, match="other is not an artifact of this baseline: .*" + sentence):
        checked([other], text, baseline=base)


def test_a_baseline_that_is_itself_quantized_is_refused(eight_bits, text):
    with pytest.raises(BadInputError, match=r"the baseline .*tiny-llama-Int8 is itself quantized"):
        checked([eight_bits], text, baseline=eight_bits)


def test_values_that_are_not_finite_are_told_with_their_layer(artifact, text):
    def spread(tensors):
        tensors[f"{LINEAR}.scales"][:] = float("inf")

    spoil(artifact, spread)
    with pytest.raises(QualityError, match="artifact: the activations after layer 1 are not finite"):
        checked([artifact], text)


def test_wrong_options_are_refused(eight_bits, text):
    with pytest.raises(UsageError, match="--dtype 'int8' is none of auto, float32, bfloat16, float16"):
        checked([eight_bits], text, dtype="int8")
    with pytest.raises(UsageError, match="--context 100000 is more than the model's"):
        checked([eight_bits], text, context=100_000)


@pytest.mark.parametrize(("special", "expected"), [(True, (1,)), (False, ())])
def test_the_prefix_is_what_the_tokenizer_adds(tmp_path, special, expected):
    folder = make_model(tmp_path)
    tokenizer = load_tokenizer(folder)
    if not special:
        data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        data["post_processor"] = None
        (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        tokenizer = load_tokenizer(folder)
    assert prefix_ids(tokenizer) == expected


def test_the_plan_needs_no_weights(eight_bits, text, monkeypatch):
    def refuse(self, name):
        raise AssertionError(name)

    monkeypatch.setattr("quantkit.weights.local.LocalSource.read", refuse)
    job = prepare([str(eight_bits)], str(TINY_LLAMA), CheckOptions(text=(text,)))
    assert job.budget.host_bytes > job.budget.activation_bytes > 0
    assert copy.copy(job).sets[0].name == "tiny-llama"


def test_a_tied_head_that_is_stored_twice_counts_once(tmp_path, text):
    base = make_model(tmp_path / "base", layout="bin", tie_word_embeddings=True)
    job = prepare([str(base)], str(base), CheckOptions(text=(text,), context=128))
    stored = sum(info.nbytes for info in open_folder(base).source.infos.values())
    assert [entry.weight_bytes for entry in job.sets] == [stored - 512 * 128 * 4] * 2


def test_the_gates_of_the_recipe_travel_with_the_artifact(tmp_path, text):
    made = quantize(TINY_LLAMA, tmp_path / "made", method="rtn", bits=8, gates={"max_kl": 1e-9})
    assert failures(checked([made.output], text, write=False))[0].endswith("allowed 0.0000")
    assert checked([made.output], text, write=False, limits=Limits(kl=1.0))["passed"]
