"""Trained models, their copies and their 3-bit artifacts, asked the same and compared with plain transformers."""

import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from wandering import cut, written_by_transformers

from quantkit.devices import Device
from quantkit.generate import first_difference
from quantkit.pipeline.answers import answers
from quantkit.pipeline.check_text import prefix_ids
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.pipeline.questions import end_ids, questions_of
from quantkit.pipeline.weightset import open_artifact, open_baseline
from quantkit.quality.prompts import Prompt
from quantkit.recipe import Calibration, Recipe
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer

MOST = 30
TEXTS = ("Once upon a time, there was a little", "One day, Lily went to the", "The king of the country was", "67*39=")
PROMPTS = [
    Prompt(str(number), ({"role": "user", "content": text},), plain=True, max_new_tokens=MOST)
    for number, text in enumerate(TEXTS)
]


def model_of(weights, config):
    """A plain transformers model in float32 with the weights of a set."""
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class(model_class.config_class.from_dict(dict(config))).float()
    model.load_state_dict({name: weights.source.read(name) for name in weights.source.infos}, strict=False)
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="module", params=[("stories260K", "gptq"), ("wikilm", "rtn")], ids=lambda given: given[0])
def asked(request, data, tmp_path_factory):
    """The record of both modes, and what transformers writes with baseline and artifact."""
    name, method = request.param
    source, folder = data / "models" / name, tmp_path_factory.mktemp(name)
    shutil.copytree(source, folder / "copy")
    recipe = Recipe(method=method, bits=3, group_size=32, calibration=Calibration(samples=4, sequence_length=64))
    run(prepare(str(source), recipe, output=folder / "bits3", device="cpu"))
    base, family, config = open_baseline(str(source))
    skeleton, tokenizer = Skeleton(family, config), load_tokenizer(source, config)
    tokenizer.chat_template = None  # neither is a chat model
    artifacts = (folder / name for name in ("copy", "bits3"))
    sets = (base, *(open_artifact(str(path), family, skeleton, base.source.infos) for path in artifacts))
    job = SimpleNamespace(
        sets=sets, family=family, config=config, skeleton=skeleton, tokenizer=tokenizer,
        prefix=prefix_ids(tokenizer), device=Device(torch.device("cpu"), torch.float32, "for tests"),
    )  # fmt: skip
    ids = [question.ids for question in questions_of(PROMPTS, tokenizer, job.prefix, skeleton)]
    ends = end_ids(source, config, tokenizer)
    written = [cut(written_by_transformers(model_of(one, config), ids, MOST), ends) for one in (base, sets[2])]
    records = [answers(job, PROMPTS, baseline_answers=whole) for whole in (False, True)]
    return SimpleNamespace(judged=records[0]["answers"], generated=records[1]["answers"], written=written)


def test_a_copy_answers_the_same(asked):
    for entries in (asked.judged, asked.generated):
        assert entries[1]["identical_share"] == 1.0
        assert [item["text"] for item in entries[0]["items"]] == [item["text"] for item in entries[1]["items"]]


def test_three_bits_leave_the_baseline_where_transformers_says(asked):
    places = [first_difference(own, base) for base, own in zip(*asked.written, strict=True)]
    assert any(place is not None for place in places)
    for entries in (asked.judged, asked.generated):
        assert [item["first_difference"] for item in entries[2]["items"]] == places
        assert [item["tokens"] for item in entries[2]["items"]] == [len(answer) for answer in asked.written[1]]
    assert [item["tokens"] for item in asked.generated[0]["items"]] == [len(answer) for answer in asked.written[0]]
    for item, full in zip(asked.judged[2]["items"], asked.generated[0]["items"], strict=True):
        assert full["text"].startswith(item["agreed_text"])
