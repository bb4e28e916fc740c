"""Tasks on streamed weights against lm-evaluation-harness's own HFLM on the whole model in float32."""

import importlib.util
import socket

import pytest
import torch
import transformers
from pipeline.artifacts import dequantized, model_of, quantize
from pipeline.harness_tasks import questions, write_tasks

from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline.streamed import StreamedWeights
from quantkit.pipeline.tasks import open_tasks, run_tasks
from quantkit.pipeline.weightset import open_artifact, open_baseline
from quantkit.progress import Silent
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import read_config

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("accelerate") is None,
    reason="lm-evaluation-harness is not installed: make tasks",
)
LIMIT = 5


class Opened:
    """A tiny baseline and a 2-bit artifact of it: streamed, and whole in the harness."""

    def __init__(self, source, artifact):
        self.baseline, family, self.config = open_baseline(str(source))
        self.skeleton = Skeleton(family, self.config)
        self.artifact = open_artifact(str(artifact), family, self.skeleton, self.baseline.source.infos)
        self.tokenizer = load_tokenizer(source, self.config)
        whole = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        self.models = {
            self.baseline.name: whole,
            self.artifact.name: model_of(read_config(artifact), dequantized(artifact)),
        }

    @property
    def sets(self):
        return [self.baseline, self.artifact]

    def streamed(self, weights):
        from quantkit.pipeline.harness import StreamedModel

        return StreamedModel(StreamedWeights(weights, self.skeleton, self.skeleton, self.tokenizer, Silent()))

    def whole(self, weights):
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=self.models[weights.name], tokenizer=self.tokenizer, batch_size=3, device="cpu")

    def run(self, *names, limit=LIMIT):
        tasks = open_tasks([str(name) for name in names], limit)
        found = run_tasks(tasks, self.skeleton, self.config, self.tokenizer, self.sets, Silent())
        return {weights.name: own for weights, own in zip(self.sets, found, strict=True)}


@pytest.fixture(scope="module")
def opened(sources, tmp_path_factory):
    source = sources("llama", dtype=torch.float32)
    artifact = tmp_path_factory.mktemp("artifact") / "llama-2bit"
    quantize(source, artifact, bits=2)
    return Opened(source, artifact)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def harness_figures(model, folder, *names, limit=LIMIT, **options):
    """What the harness itself reports, with its own way to find the task files."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # it looks for data files in the working directory
        found = lm_eval.simple_evaluate(model, tasks=list(names), limit=limit, task_manager=manager, **options)
    return found["results"]


def same(row, expected):
    """Whether a row says what the harness says, in all its metrics."""
    for one in (row, *row["others"]):
        key = one["metric"] if "," in one["metric"] else one["metric"] + ",none"
        metric, _, filtered = key.partition(",")
        error = expected[f"{metric}_stderr,{filtered}"]
        assert one["value"] == pytest.approx(expected[key], rel=1e-4), key
        assert one["error"] == (None if error == "N/A" else pytest.approx(error, rel=1e-4)), key
    return True


@needs_harness
def test_figures_are_those_of_the_harness(opened, tmp_path):
    folder = write_tasks(tmp_path / "own", "letters", "phrases")
    found = opened.run(folder / "letters.yaml", f"{folder / 'phrases.yaml'}@1")
    for weights in opened.sets:
        expected = harness_figures(opened.whole(weights), folder, "letters")
        expected |= harness_figures(opened.whole(weights), folder, "phrases", num_fewshot=1)
        rows = found[weights.name]
        assert [(row["metric"], row["samples"], row["shots"]) for row in rows.values()] == [
            ("acc", 5, 2),
            ("acc", 5, 1),
        ]
        assert all(same(rows[name], expected[name]) for name in ("letters", "phrases"))
    assert found[opened.baseline.name] != found[opened.artifact.name]


@needs_harness
def test_log_likelihoods_are_those_of_the_harness(opened):
    texts = [row["question"] for row in questions()]
    long = " ".join(texts * 8)  # more than the 512 tokens that the model reads
    asked = [(text, choice) for text in texts[:3] for choice in (" A", " B", " river rose")]
    asked += [("", " morning"), ("by the ", "lower fields"), ("<s>The", " river"), (long, " bridge"), (long, " A")]
    for weights in opened.sets:
        expected = opened.whole(weights).loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True)
        streamed = opened.streamed(weights)
        found = streamed.loglikelihood(instances("loglikelihood", *asked))
        assert streamed.shortened == 2
        for (value, greedy), (other, other_greedy) in zip(found, expected, strict=True):
            assert value == pytest.approx(other, abs=1e-4)
            assert greedy == other_greedy


@needs_harness
def test_whole_texts_are_scored_as_by_the_harness(opened):
    texts = [(row["question"],) for row in questions()]
    texts.append((" ".join(text for (text,) in texts * 8),))
    for weights in opened.sets:
        expected = opened.whole(weights).loglikelihood_rolling(instances("loglikelihood_rolling", *texts), True)
        found = opened.streamed(weights).loglikelihood_rolling(instances("loglikelihood_rolling", *texts))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-3)


@needs_harness
def test_answers_are_those_of_the_harness(opened, monkeypatch):
    prompts = [row["question"] for row in questions()[:4]]
    expected = {}
    for until in ((), ("e",), ("\n", " the")):
        options = {"until": list(until), "max_gen_toks": 10, "do_sample": False}
        asked = instances("generate_until", *((prompt, options) for prompt in prompts))
        for weights in opened.sets:
            expected[until] = opened.whole(weights).generate_until(asked, disable_tqdm=True)
            assert opened.streamed(weights).generate_until(asked) == expected[until]
    assert len({len("".join(texts)) for texts in expected.values()}) > 1  # some of the stop texts were met


@needs_harness
def test_an_answer_ends_with_its_stop_text(opened, monkeypatch):
    steps = []
    begin = Skeleton.begin

    def watched(self, **inputs):
        steps.append(len(inputs["input_ids"]))
        return begin(self, **inputs)

    prompt = questions()[0]["question"]
    endless = {"until": [], "max_gen_toks": 12, "do_sample": False}
    (text,) = opened.streamed(opened.baseline).generate_until(instances("generate_until", (prompt, endless)))
    stop = text.strip()[:2]
    monkeypatch.setattr(Skeleton, "begin", watched)
    asked = instances("generate_until", (prompt, endless | {"until": [stop]}))
    assert opened.streamed(opened.baseline).generate_until(asked) == [text[: text.index(stop)]]
    assert len(steps) < 12


@needs_harness
def test_written_answers_are_judged_as_by_the_harness(opened, tmp_path):
    folder = write_tasks(tmp_path / "blank", "sums")
    import yaml

    options = yaml.safe_load((folder / "sums.yaml").read_text("utf-8"))["generation_kwargs"]
    asked = [(f"Question: {row['question']}\nAnswer:", dict(options)) for row in questions()]
    written = opened.whole(opened.baseline).generate_until(instances("generate_until", *asked), disable_tqdm=True)
    written[4] = "something else"
    folder = write_tasks(tmp_path / "own", "sums", written=written)
    found = opened.run(folder / "sums.yaml")
    for weights in opened.sets:
        assert same(found[weights.name]["sums"], harness_figures(opened.whole(weights), folder, "sums")["sums"])
    (whole,) = found[opened.baseline.name]["sums"]["others"]
    assert whole["metric"] == "exact_match,whole"
    assert whole["value"] == pytest.approx(4 / 5)


@needs_harness
def test_a_folder_is_a_group(opened, tmp_path):
    folder = write_tasks(tmp_path / "own", "letters", "phrases")
    (folder / "_group.yaml").write_text("group: both\ntask: [letters, phrases]\n", "utf-8")
    found = opened.run(folder, limit=None)[opened.baseline.name]
    assert list(found) == ["own/"]
    members = found["own/"]["tasks"]
    assert set(members) == {"letters", "phrases"}
    assert found["own/"]["samples"] == sum(row["samples"] for row in members.values()) == 14
    assert found["own/"]["value"] == pytest.approx(sum(row["value"] for row in members.values()) / 2)


@needs_harness
def test_perplexity_of_texts(opened, tmp_path):
    folder = write_tasks(tmp_path / "own", "text")
    found = opened.run(folder / "text.yaml")
    for weights in opened.sets:
        assert same(found[weights.name]["text"], harness_figures(opened.whole(weights), folder, "text")["text"])


@needs_harness
def test_local_tasks_touch_no_network_and_print_nothing(opened, tmp_path, monkeypatch, capfd):
    asked = []

    def refuse(*address):
        asked.append(address)
        raise OSError("no network")

    folder = write_tasks(tmp_path / "own", "letters", "text")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    opened.run(folder / "letters.yaml", folder / "text.yaml")
    assert asked == []  # failures are no proof: what is counted on the Hub is counted silently
    assert capfd.readouterr() == ("", "")


@needs_harness
def test_examples_are_the_same_for_every_weight_set(opened, tmp_path):
    folder = write_tasks(tmp_path / "own", "phrases")
    tasks = open_tasks([f"{folder}/phrases.yaml@2"])
    sets = [opened.baseline, opened.baseline]
    asked = []

    class Listening(Silent):
        def say(self, line):
            asked.append([one.args for one in tasks.loaded["tasks"]["phrases"].instances])

    run_tasks(tasks, opened.skeleton, opened.config, opened.tokenizer, sets, Listening())
    assert len(asked) == 2
    assert asked[0] == asked[1]


@needs_harness
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, "SecurityError"),
        ({"doc_to_text": "{{ missing }}"}, "UndefinedError"),
        ({"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}}, "absent.jsonl"),
        ({"class": "os.system"}, "TypeError"),
        ({"metric_list": [{"metric": "no_such_metric"}]}, "cannot be used"),
    ],
)
def test_tasks_that_cannot_be_used(tmp_path, changes, said):
    folder = write_tasks(tmp_path / "own", "letters", **changes)
    with pytest.raises(BadInputError) as caught:
        open_tasks([str(folder / "letters.yaml")])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_harness
def test_sampling_is_refused(opened, tmp_path):
    folder = write_tasks(
        tmp_path / "own", "sums", generation_kwargs={"do_sample": True, "temperature": 0.7, "until": []}
    )
    with pytest.raises(UsageError, match="samples its answers"):
        opened.run(folder / "sums.yaml")


@needs_harness
def test_more_new_tokens_than_positions_are_refused(opened, tmp_path):
    folder = write_tasks(tmp_path / "own", "sums", generation_kwargs={"max_gen_toks": 512, "until": []})
    with pytest.raises(UsageError, match="asks for 512 new tokens, the model reads 512 at once"):
        opened.run(folder / "sums.yaml")


@needs_harness
def test_the_same_task_twice_is_refused(tmp_path):
    path = write_tasks(tmp_path / "own", "letters") / "letters.yaml"
    with pytest.raises(UsageError, match="the task letters is asked for twice"):
        open_tasks([f"{path}@1", str(path)])


@needs_harness
def test_shots_for_a_task_without_examples_are_refused(tmp_path):
    path = write_tasks(tmp_path / "own", "letters", num_fewshot=0) / "letters.yaml"
    with pytest.raises(UsageError, match="the task letters is defined without examples"):
        open_tasks([f"{path}@5"])


@needs_harness
def test_an_unknown_name_has_neighbours(tmp_path, monkeypatch):
    import lm_eval.tasks

    folder = write_tasks(tmp_path / "own", "letters", "phrases")
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda include_defaults: manager)  # its own take half a minute
    with pytest.raises(UsageError, match="no task 'leters'") as caught:
        open_tasks(["leters@5"])
    assert caught.value.hint == "did you mean letters?"


def test_without_the_harness_the_way_to_it_is_said(tmp_path, monkeypatch):
    path = write_tasks(tmp_path / "own", "letters") / "letters.yaml"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        open_tasks([str(path)])
    assert caught.value.hint == "pip install 'quantkit[tasks]'"
