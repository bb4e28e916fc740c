"""Streamed greedy answers against transformers' own generate, and answers judged against answers written."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, token_ids
from wandering import cut, wandering_model, written_by_transformers

from quantkit import generate as module
from quantkit.families.lookup import family_of
from quantkit.generate import Question, first_difference, generate, greedy_choices
from quantkit.skeleton import Skeleton
from quantkit.weights.source import open_folder

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (3, 21, 1, 9, 14, 9)  # of prompts; windows have 8 tokens, a long rope begins after 16
MOST = 12
PROMPTS = [tuple(token_ids(1, length, seed).flatten().tolist()) for seed, length in enumerate(LENGTHS)]
QUESTIONS = [Question(ids, MOST) for ids in PROMPTS]
NEVER = frozenset({10**6})
ALL = pytest.mark.parametrize("opened", VARIANTS, indirect=True)
SOME = pytest.mark.parametrize("opened", ["llama", "mistral", "gemma3", "phi3-longrope", "xglm"], indirect=True)


class Opened:
    """A tiny checkpoint, and what transformers answers with it."""

    def __init__(self, folder):
        self.checkpoint = open_folder(folder)
        self.source = self.checkpoint.source
        self.skeleton = Skeleton(family_of(self.checkpoint.config), self.checkpoint.config)
        self.expected = written_by_transformers(folder, PROMPTS, MOST)

    def generate(self, questions=QUESTIONS, ends=NEVER, source=None, **options):
        return generate(self.skeleton, source or self.source, questions, ends, **options)


class Perturbed:
    """A source whose matrices are off by noise of a given size."""

    def __init__(self, source, size):
        self.source, self.infos, self.size = source, source.infos, size

    def read(self, name):
        tensor = self.source.read(name)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        return tensor + self.size * tensor.std() * noise if tensor.dim() == 2 else tensor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    known = {}

    def make(name):
        if name not in known:
            known[name] = Opened(wandering_model(tmp_path_factory.mktemp("model") / name, name))
        return known[name]

    return make


@pytest.fixture
def opened(request, made):
    return made(request.param)


@ALL
def test_answers_are_those_of_transformers_to_each_prompt_alone(opened):
    assert opened.generate() == opened.expected
    assert len({token for answer in opened.expected for token in answer}) > 20


@SOME
def test_an_answer_ends_where_the_model_ends_it(opened):
    ends = frozenset({opened.expected[1][4], opened.expected[5][0]})  # the longest prompt's answer among them
    expected = cut(opened.expected, ends)
    assert min(map(len, expected)) < max(map(len, expected)) == MOST
    assert opened.generate(ends=ends) == expected


@SOME
def test_every_question_has_a_limit_of_its_own(opened):
    limits = [1, 12, 3, 7, 2, 12]
    questions = [Question(ids, most) for ids, most in zip(PROMPTS, limits, strict=True)]
    assert opened.generate(questions) == [answer[:most] for answer, most in zip(opened.expected, limits, strict=True)]


@SOME
@pytest.mark.parametrize("tokens", [1, 60])
def test_little_memory_for_keys_and_values_changes_nothing(opened, tokens):
    assert opened.generate(cache_tokens=tokens) == opened.expected


@SOME
@pytest.mark.parametrize("tokens", [1, 30])
def test_the_size_of_a_batch_does_not_matter(opened, tokens, monkeypatch):
    monkeypatch.setattr(module, "BATCH_TOKENS", tokens)
    assert opened.generate() == opened.expected
    sequences = [(*ids, *answer) for ids, answer in zip(PROMPTS, opened.expected, strict=True)]
    assert greedy_choices(opened.skeleton, opened.source, sequences, LENGTHS) == opened.expected


@ALL
def test_judging_finds_what_writing_finds(opened):
    other = Perturbed(opened.source, 0.03)
    answers = opened.generate(source=other)
    sequences = [(*ids, *answer) for ids, answer in zip(PROMPTS, answers, strict=True)]
    choices = greedy_choices(opened.skeleton, opened.source, sequences, LENGTHS)
    places = [first_difference(*pair) for pair in zip(answers, opened.expected, strict=True)]
    assert [first_difference(*pair) for pair in zip(answers, choices, strict=True)] == places
    assert any(place is not None for place in places)
    for place, own, chosen in zip(places, opened.expected, choices, strict=True):
        assert len(chosen) == MOST
        if place is not None:
            assert chosen[place] == own[place]


def test_bfloat16_weights_are_computed_with_in_float32(tmp_path):
    folder = wandering_model(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    save_file({key: value.bfloat16() for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    opened = Opened(folder)
    assert opened.source.infos["lm_head.weight"].dtype == "BF16"
    assert opened.generate() == opened.expected


def test_progress_counts_down(made):
    opened, told = made("llama"), []
    ends = frozenset({opened.expected[0][2]})
    answers = opened.generate(ends=ends, cache_tokens=70, step_done=lambda *numbers: told.append(numbers))
    assert [steps for steps, _, _ in told] == list(range(1, len(told) + 1))
    assert told[0][0] + told[0][1] > MOST  # more than one wave
    assert all(after[0] + after[1] <= before[0] + before[1] for before, after in pairwise(told))
    assert all(after[2] <= before[2] for before, after in pairwise(told))
    assert told[-1] == (len(told), 0, 0)
    assert sum(map(len, answers)) > len(told)


@pytest.mark.parametrize("opened", ["llama", "llama-tied"], indirect=True)
def test_at_most_one_layer_has_weights(opened, monkeypatch):
    seen = []
    run_layer, begin, finish = Skeleton.run_layer, Skeleton.begin, Skeleton.finish

    def filled(self):
        return [any(not p.is_meta for p in layer.parameters()) for layer in self.layers]

    def watched_layer(self, index, *rest):
        seen.append(filled(self) == [layer == index for layer in range(2)])
        return run_layer(self, index, *rest)

    def watched(original):
        def call(self, *given, **named):
            seen.append(not any(filled(self)))
            return original(self, *given, **named)

        return call

    monkeypatch.setattr(Skeleton, "run_layer", watched_layer)
    monkeypatch.setattr(Skeleton, "begin", watched(begin))
    monkeypatch.setattr(Skeleton, "finish", watched(finish))
    opened.generate()
    greedy_choices(opened.skeleton, opened.source, PROMPTS, [1] * len(PROMPTS))
    assert len(seen) > 4 * MOST
    assert all(seen)
    assert all(parameter.is_meta for parameter in opened.skeleton.model.parameters())


def test_choices_are_asked_for_from_any_place_on(made):
    opened = made("llama")
    (whole,) = greedy_choices(opened.skeleton, opened.source, [PROMPTS[1]], [1])
    assert len(whole) == 20
    found = greedy_choices(opened.skeleton, opened.source, [PROMPTS[1]] * 3, [5, 20, 21])
    assert found == [whole[4:], whole[19:], []]


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ([1, 2], [1, 2], None),
        ([1, 2], [1, 3], 1),
        ([1, 2], [1], 1),
        ([], [1], 0),
        ([1, 2, 3], [3, 2, 1], 0),
        ([], [], None),
    ],
)
def test_the_first_difference(one, other, place):
    assert first_difference(one, other) == place
    assert first_difference(other, one) == place
