"""Streamed log-probabilities against plain float64 over transformers' logits."""

import pytest
import torch
import transformers
from tiny import VARIANTS, make_model, token_ids

from quantkit.errors import BadInputError
from quantkit.families.lookup import family_of
from quantkit.pipeline import likelihood
from quantkit.pipeline.likelihood import Continuation, likelihoods, passes
from quantkit.skeleton import Skeleton
from quantkit.weights.source import open_folder

# Lengths on both sides of a padded length, letters behind one context, one text as another's beginning.
LENGTHS = ((1, 1), (3, 2), (40, 24), (41, 24), (100, 1), (63, 1), (64, 1), (7, 120))


def requests_of():
    found = []
    for seed, (context, own) in enumerate(LENGTHS):
        ids = tuple(token_ids(1, context + own, seed).flatten().tolist())
        found.append(Continuation(ids[:context], ids[context:]))
    letters = [Continuation(found[4].context, (letter,)) for letter in (10, 11, 12, 13)]
    beginning = Continuation(found[7].context, found[7].ids[:60])
    return [*found, *letters, beginning, found[0]]


def opened(folder, name):
    architecture, config = VARIANTS[name]
    if name == "phi3-longrope":
        config = config | {"original_max_position_embeddings": 64}  # the others have multiples of 64 too
    checkpoint = open_folder(make_model(folder, architecture, **config))
    return checkpoint, Skeleton(family_of(checkpoint.config), checkpoint.config)


@torch.no_grad()
def expected_of(folder, requests):
    """(log-probability, greedy) of transformers' model, each request alone and unpadded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for request in requests:
        logits = model(torch.tensor([request.window])).logits[0, -len(request.ids) :].double()
        ids = torch.tensor(request.ids)
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[:, None])
        answers.append((chosen.sum().item(), bool((logits.argmax(-1) == ids).all())))
    return answers


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "phi3-longrope", "xglm", "cohere2"])
def test_likelihoods_are_those_of_transformers(tmp_path, name):
    checkpoint, skeleton = opened(tmp_path, name)
    requests = requests_of()
    greedy = expected_of(tmp_path, requests)
    found = likelihoods(skeleton, checkpoint.source, requests)
    assert len(found) == len(set(requests)) == len(requests) - 1
    for request, (log_probability, first) in zip(requests, greedy, strict=True):
        assert found[request].log_probability == pytest.approx(log_probability, rel=1e-5, abs=1e-4)
        assert found[request].greedy == first
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_most_likely_continuation_is_called_so(tmp_path):
    checkpoint, skeleton = opened(tmp_path, "llama")
    context = tuple(token_ids(1, 20).flatten().tolist())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        best = int(model(torch.tensor([context])).logits[0, -1].argmax())
        second = int(model(torch.tensor([[*context, best]])).logits[0, -1].argmax())
    both = Continuation(context, (best, second))
    wrong = Continuation(context, (best, (second + 1) % 512))
    found = likelihoods(skeleton, checkpoint.source, [both, wrong])
    assert (found[both].greedy, found[wrong].greedy) == (True, False)


@pytest.mark.parametrize("tokens", [1, 70, 10_000])
def test_the_size_of_a_batch_does_not_matter(tmp_path, monkeypatch, tokens):
    checkpoint, skeleton = opened(tmp_path, "llama")
    requests = requests_of()
    expected = likelihoods(skeleton, checkpoint.source, requests)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", tokens)
    found = likelihoods(skeleton, checkpoint.source, requests)
    for request in requests:
        assert found[request].log_probability == pytest.approx(expected[request].log_probability, rel=1e-5)


def test_a_window_is_computed_once_for_all_that_share_it(tmp_path, monkeypatch):
    checkpoint, skeleton = opened(tmp_path, "llama")
    embedded = []
    embed = Skeleton.embed

    def watched(self, ids):
        embedded.append(len(ids))
        return embed(self, ids)

    monkeypatch.setattr(Skeleton, "embed", watched)
    letters = [Continuation(tuple(range(3, 50)), (letter,)) for letter in range(4)]
    likelihoods(skeleton, checkpoint.source, letters)
    assert embedded == [1]


def test_passes_keep_activations_within_the_allowance(tmp_path):
    _, skeleton = opened(tmp_path, "llama")
    token_bytes = 128 * 4
    requests = [Continuation(tuple(range(3, 3 + length)), (5,)) for length in (10, 60, 64, 65, 128, 200)]
    padded = [64, 64, 64, 128, 128, 256]
    groups = passes(skeleton, requests[::-1], 200 * token_bytes)
    assert [one for group in groups for one in group] == requests  # shortest first
    assert [len(group) for group in groups] == [3, 1, 1, 1]
    assert sum(padded[:3]) <= 200 < sum(padded[:4])
    assert passes(skeleton, requests, 10**9) == [requests]
    letters = [Continuation((3, 4, 5), (letter,)) for letter in range(4)]
    assert passes(skeleton, letters, 64 * token_bytes) == [letters]


@pytest.mark.parametrize("empty", [Continuation((), (1,)), Continuation((1,), ())])
def test_a_continuation_needs_something_on_both_sides(tmp_path, empty):
    _, skeleton = opened(tmp_path, "llama")
    with pytest.raises(BadInputError, match="needs tokens before it and tokens of its own"):
        passes(skeleton, [empty], 10**9)
