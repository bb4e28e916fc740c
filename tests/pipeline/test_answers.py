"""Answers side by side: against plain transformers, written in full and judged in one pass."""

import json
import shutil
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from artifacts import Recorder, dequantized, model_of, quantize
from wandering import cut, wandering_model, written_by_transformers

from quantkit.devices import Device
from quantkit.errors import BadInputError
from quantkit.generate import first_difference
from quantkit.pipeline import answers as module
from quantkit.pipeline.answers import answers
from quantkit.pipeline.questions import end_ids, questions_of
from quantkit.pipeline.sidebyside import Said, entry
from quantkit.pipeline.weightset import open_artifact, open_baseline
from quantkit.quality.prompts import Prompt, load_prompts
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer

MOST = 12
TEXTS = ("The river rose", "67*39=", "Le pont fut fermé à midi.", "河水", "def height(", "And")
PROMPTS = [
    Prompt(f"p{number}", ({"role": "user", "content": text},), plain=True, answer=2613, max_new_tokens=MOST)
    for number, text in enumerate(TEXTS)
]
CPU = Device(torch.device("cpu"), torch.float32, "for tests")


@dataclass(frozen=True)
class Job:
    sets: tuple
    family: Any
    config: Any
    skeleton: Any
    tokenizer: Any
    prefix: tuple = (1,)
    device: Device = CPU


def job_of(baseline, *artifacts):
    base, family, config = open_baseline(str(baseline))
    skeleton = Skeleton(family, config)
    opened = tuple(open_artifact(str(folder), family, skeleton, base.source.infos) for folder in artifacts)
    return Job((base, *opened), family, config, skeleton, load_tokenizer(base.folder, config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A baseline, a copy of it, and artifacts of 8 and 2 bits."""
    folder = tmp_path_factory.mktemp("answers")
    base = wandering_model(folder / "base", "llama", strength=2.4)
    shutil.copytree(base, folder / "copy")
    for bits in (8, 2):
        quantize(base, folder / f"bits{bits}", bits=bits, method="rtn")
    return folder


@pytest.fixture(scope="module")
def job(folders):
    return job_of(*(folders / name for name in ("base", "copy", "bits8", "bits2")))


@pytest.fixture(scope="module")
def generated(job):
    return answers(job, PROMPTS, baseline_answers=True)


@pytest.fixture(scope="module")
def judged(job):
    return answers(job, PROMPTS)


@pytest.fixture(scope="module")
def expected(job, folders):
    """What plain transformers writes with each weight set to the same chats."""
    chats = [[dict(message) for message in prompt.messages] for prompt in PROMPTS]
    ids = [job.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    base = job.sets[0].source
    sources = [base, base, dequantized(folders / "bits8"), dequantized(folders / "bits2")]
    models = [model_of(job.config, source) for source in sources]
    return [cut(written_by_transformers(model, ids, MOST), {2}) for model in models]


def test_answers_and_differences_are_those_of_transformers(generated, expected):
    for entry_, own in zip(generated["answers"], expected, strict=True):
        assert [item["tokens"] for item in entry_["items"]] == [len(answer) for answer in own]
        places = [first_difference(*pair) for pair in zip(own, expected[0], strict=True)]
        assert [item["first_difference"] for item in entry_["items"]] == places
    assert len({item["text"] for item in generated["answers"][0]["items"]}) == len(PROMPTS)


def test_the_share_of_identical_answers(generated, expected):
    shares = [entry_["identical_share"] for entry_ in generated["answers"]]
    assert shares[:2] == [None, 1.0]
    assert shares[2:] == [sum(a == b for a, b in zip(own, expected[0], strict=True)) / 6 for own in expected[2:]]
    assert 1.0 > shares[2] > shares[3]


def test_a_baseline_that_does_not_write_is_known_where_it_matters(judged, generated):
    for one, other in zip(judged["answers"][1:], generated["answers"][1:], strict=True):
        assert (one["mode"], other["mode"]) == ("teacher-forced", "generated")
        for item, full in zip(one["items"], other["items"], strict=True):
            assert {**item, "baseline_choice": None} == {**full, "baseline_choice": None}
            assert (item["baseline_choice"] is None) == (full["baseline_choice"] is None)
            assert item["agreed_text"] + item["rest"] == item["text"]
    # The copy's answers are the baseline's.
    assert judged["answers"][0]["items"] == generated["answers"][0]["items"]


def test_what_the_baseline_would_have_said_follows_what_agrees(generated):
    own = generated["answers"][0]["items"]
    differing = 0
    for item, full in zip(generated["answers"][2]["items"], own, strict=True):
        if item["first_difference"] is not None:
            differing += 1
            assert full["text"].startswith(item["agreed_text"])
            assert (item["agreed_text"] + item["baseline_choice"]).rstrip("\ufffd") in full["text"]
    assert differing


def test_without_an_identical_answer_the_baseline_is_unknown(folders, generated):
    found = answers(job_of(folders / "base", folders / "bits2"), PROMPTS)
    items = found["answers"][0]["items"]
    assert [item["id"] for item in items] == [prompt.id for prompt in PROMPTS]
    assert any(item["text"] is None for item in items)
    for item, full in zip(items, generated["answers"][0]["items"], strict=True):
        assert item["text"] in (None, full["text"])
    assert [item["correct"] for item in items] == [None if item["text"] is None else False for item in items]
    assert found["answers"][0]["correct"] is None  # a share of some would not compare
    assert found["answers"][1]["correct"] == [0, 6]


def test_the_record_is_json_and_says_what_was_asked(judged):
    assert json.loads(json.dumps(judged, allow_nan=False)) == judged
    assert judged["chat_template"] is True
    assert judged["prompts"][1] == {
        "id": "p1", "kind": "prompt", "language": "unknown", "prompt": "67*39=", "expected": 2613,
    }  # fmt: skip
    assert len(judged["answers"]) == 4
    assert judged["answers"][1]["correct"] == [0, 6]


@pytest.mark.parametrize("memory", [0, 100_000])
def test_memory_changes_nothing_but_the_time(job, judged, memory):
    assert answers(replace(job, sets=job.sets[::2]), PROMPTS, memory=memory)["answers"][1] == judged["answers"][2]


def test_a_check_in_bfloat16_still_answers_in_float32(job, judged):
    skeleton = Skeleton(job.family, job.config, torch.bfloat16)
    assert answers(replace(job, skeleton=skeleton), PROMPTS) == judged


def test_the_shipped_prompts_can_be_asked(job):
    prompts = [replace(prompt, max_new_tokens=2) for prompt in load_prompts()]
    recorder = Recorder()
    found = answers(replace(job, sets=job.sets[:2]), prompts, progress=recorder)
    (note,) = [line for line in recorder.said if line.startswith("note: left out, since they fill")]
    left_out = note.rpartition(": ")[2].split(", ")
    assert "instruction-leaflet" in left_out
    assert {row["id"] for row in found["prompts"]} | set(left_out) == {prompt.id for prompt in prompts}
    assert found["answers"][1]["identical_share"] == 1.0
    assert recorder.layers == [0, 1]
    assert recorder.stops == 1


def test_prompts_that_do_not_fit(job):
    long = replace(PROMPTS[0], messages=({"role": "user", "content": "x" * 600},))
    with pytest.raises(BadInputError, match="no prompt fits into the model's context"):
        answers(job, [long])


def questions(job, prompts):
    return questions_of(prompts, job.tokenizer, job.prefix, job.skeleton)


def test_an_answer_ends_with_the_context(job):
    text = Prompt("a", ({"role": "user", "content": "x" * 400},), plain=True, max_new_tokens=300)
    (question,) = questions(job, [text])
    assert question.most == 512 - len(question.ids) < 300


def test_a_prompt_without_a_template_is_continued_as_text(folders):
    job = job_of(folders / "base", folders / "copy")
    job.tokenizer.chat_template = None
    chat = Prompt("chat", ({"role": "system", "content": "Be brief."}, *PROMPTS[1].messages), plain=False)
    plain, asked = questions(job, [PROMPTS[1], chat])
    assert plain.ids == (1, *ids_of(job, "67*39="))
    assert job.tokenizer.decode(asked.ids) == "<s>system: Be brief.\nuser: 67*39=\nassistant:"
    assert answers(job, [PROMPTS[1]])["chat_template"] is False


def test_ids_outside_of_the_vocabulary(job):
    with pytest.raises(BadInputError, match=r"the prompt p0 has the id \d+, the embedding has 100 rows"):
        questions_of(PROMPTS, job.tokenizer, (1,), Skeleton(job.family, {**job.config, "vocab_size": 100}))


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 5}, {7, 2}),
        ({"eos_token_id": [7, 8]}, {}, {7, 8, 2}),
        ({}, {"eos_token_id": 5}, {5, 2}),
        (None, {"eos_token_id": [5, 6]}, {5, 6, 2}),
        (None, {}, {2}),
    ],
)
def test_what_ends_an_answer(job, tmp_path, generation, config, ends):
    if generation is not None:
        tiny.write_json(tmp_path / "generation_config.json", generation)
    assert end_ids(tmp_path, config, job.tokenizer) == ends


def test_a_broken_generation_config_is_named(job, tmp_path):
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"generation_config\.json is not JSON"):
        end_ids(tmp_path, {}, job.tokenizer)


def ids_of(job, text):
    return job.tokenizer(text, add_special_tokens=False)["input_ids"]


def beside(job, said, own, most=MOST):
    """The item of an answer given as text, and how many tokens of the baseline's are known where they part."""
    ids = [ids_of(job, text) for text in (said, own)]
    place = first_difference(*ids)
    found = entry(job.tokenizer, PROMPTS[:1], [Said(ids[0], place, ids[1][place:][:most])], frozenset({2}), "generated")
    return found["items"][0]


def test_texts_part_where_the_tokens_part(job):
    item = beside(job, "it is 2613</s>", "it is 2614</s>")
    assert (item["agreed_text"], item["rest"], item["baseline_choice"]) == ("it is 261", "3", "4")
    assert item["correct"] is True
    assert item["finished"] is True


def test_a_character_is_not_split(job):
    assert "🙂".encode()[:3] == "🙃".encode()[:3]
    item = beside(job, "so 🙂!", "so 🙃.")
    assert (item["agreed_text"], item["rest"], item["baseline_choice"]) == ("so ", "🙂!", "🙃")
    only_a_part = beside(job, "so x", "so 🙃", most=1)
    assert (only_a_part["rest"], only_a_part["baseline_choice"]) == ("x", "\ufffd")


def test_a_character_cut_off_by_the_limit_is_left_out(job):
    ids = ids_of(job, "so 🙂")[:-1]
    (item,) = entry(job.tokenizer, PROMPTS[:1], [Said(ids)], frozenset({2}), "generated")["items"]
    assert (item["text"], item["agreed_text"], item["rest"], item["finished"]) == ("so ", "so ", "", False)


def test_the_end_of_an_answer_is_a_choice_too(job):
    item = beside(job, "yes and no", "yes</s>")
    assert (item["agreed_text"], item["rest"], item["baseline_choice"]) == ("yes", " and no", "</s>")
    item = beside(job, "yes</s>", "yes and no</s>")
    assert (item["agreed_text"], item["rest"]) == ("yes", "")
    assert item["baseline_choice"].strip()


def test_long_writing_says_now_and_then_how_far_it_is(monkeypatch):
    clock, recorder = [0.0], Recorder()
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    told = module._Told(recorder, "bits4", 26)
    for step in range(1, 1001):
        clock[0] += 2
        told.step(step, 1000 - step, 1000 - step)
    assert recorder.said[0] == "bits4: answering 26 prompts"
    assert recorder.said[1] == "bits4: 15 tokens, 985 answers not complete, at most 32 min 50 s to go"
    assert recorder.said[-1].startswith("bits4: 26 answers in 33 min 20 s")
    assert 10 < len(recorder.said) < 40
