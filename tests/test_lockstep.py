"""Perplexity and KL divergence of the lockstep forward against plain float64 over transformers' logits."""

import math

import pytest
import torch
import transformers
from tiny import VARIANTS, make_model, token_ids

from quantkit import lockstep
from quantkit.families.lookup import family_of
from quantkit.lockstep import compare
from quantkit.skeleton import Skeleton
from quantkit.weights.source import open_folder

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = token_ids(3, 40)
ALL = list(VARIANTS)


class Perturbed:
    """A source whose layers are a little off, by the same amount each time they are read."""

    def __init__(self, source, amount):
        self.source, self.amount, self.infos = source, amount, source.infos

    def read(self, name):
        tensor = self.source.read(name)
        if not name.endswith("_proj.weight"):
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        return tensor + self.amount * tensor.std() * noise


def opened(folder, name="llama"):
    architecture, config = VARIANTS[name]
    checkpoint = open_folder(make_model(folder, architecture, **config))
    return checkpoint, Skeleton(family_of(checkpoint.config), checkpoint.config)


def scores_of(checkpoint, source, ids):
    """[windows, sequence - 1, vocabulary] float64 log-probabilities of transformers' model with these weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.read(name))
        logits = torch.cat([model(row[None]).logits for row in ids])
    return torch.log_softmax(logits[:, :-1].double(), -1)


@pytest.mark.parametrize("name", ALL)
def test_a_model_does_not_differ_from_itself(tmp_path, name):
    checkpoint, skeleton = opened(tmp_path, name)
    for found in compare(skeleton, [checkpoint.source, checkpoint.source], IDS):
        assert (found.kl_mean, found.kl_error, found.kl_99) == (0.0, 0.0, 0.0)
        assert found.top1_agreement == 1.0
        assert found.tokens == 3 * 39
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_perplexity_is_that_of_the_loss_of_transformers(tmp_path, name):
    checkpoint, skeleton = opened(tmp_path, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in IDS]
    (found,) = compare(skeleton, [checkpoint.source], IDS)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


@pytest.mark.parametrize("amount", [0.02, 0.5])
def test_a_perturbed_copy_differs_as_float64_says(tmp_path, amount):
    checkpoint, skeleton = opened(tmp_path)
    other = Perturbed(checkpoint.source, amount)
    own, found = compare(skeleton, [checkpoint.source, other], IDS)
    p, q = (scores_of(checkpoint, source, IDS) for source in (checkpoint.source, other))
    divergence = (p.exp() * (p - q)).sum(-1).flatten()
    loss = -q.gather(-1, IDS[:, 1:, None]).flatten()
    count = len(loss)
    assert found.tokens == count == 3 * 39
    assert found.kl_mean == pytest.approx(divergence.mean().item(), rel=1e-3)
    assert found.kl_error == pytest.approx(divergence.std().item() / count**0.5, rel=1e-3)
    assert found.kl_99 == pytest.approx(divergence.quantile(0.99).item(), rel=1e-3)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-5)
    assert found.perplexity_error == pytest.approx(math.exp(loss.mean()) * loss.std().item() / count**0.5, rel=1e-4)
    assert own.kl_mean == 0
    assert found.kl_mean > 0
    assert found.top1_agreement < 1


def test_the_order_of_the_others_does_not_matter(tmp_path):
    checkpoint, skeleton = opened(tmp_path)
    near, far = Perturbed(checkpoint.source, 0.02), Perturbed(checkpoint.source, 0.2)
    one = compare(skeleton, [checkpoint.source, near, far], IDS)
    two = compare(skeleton, [checkpoint.source, far, near], IDS)
    assert (one[0], one[1], one[2]) == (two[0], two[2], two[1])
    assert one[1].kl_mean < one[2].kl_mean


def test_windows_are_scored_each_by_itself(tmp_path):
    checkpoint, skeleton = opened(tmp_path)
    other = Perturbed(checkpoint.source, 0.2)
    together = compare(skeleton, [checkpoint.source, other], IDS)[1]
    parts = [compare(skeleton, [checkpoint.source, other], row[None])[1] for row in IDS]
    assert together.kl_mean == pytest.approx(sum(part.kl_mean for part in parts) / 3, rel=1e-3)
    assert math.log(together.perplexity) == pytest.approx(sum(math.log(part.perplexity) for part in parts) / 3)
    assert together.tokens == sum(part.tokens for part in parts)


@pytest.mark.parametrize("tokens", [1, 40, 80, 10_000])
def test_the_size_of_a_batch_does_not_matter(tmp_path, monkeypatch, tokens):
    checkpoint, skeleton = opened(tmp_path)
    sources = [checkpoint.source, Perturbed(checkpoint.source, 0.2)]
    expected = compare(skeleton, sources, IDS)[1]
    monkeypatch.setattr(lockstep, "BATCH_TOKENS", tokens)
    found = compare(skeleton, sources, IDS)[1]
    assert found.kl_mean == pytest.approx(expected.kl_mean, rel=1e-4)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)


def test_at_most_one_layer_has_weights(tmp_path, monkeypatch):
    checkpoint, skeleton = opened(tmp_path)
    seen = []
    run_layer, finish = Skeleton.run_layer, Skeleton.finish

    def layers_filled(self):
        return [any(not p.is_meta for p in layer.parameters()) for layer in self.layers]

    def watched_layer(self, index, *rest):
        seen.append((index, layers_filled(self)))
        return run_layer(self, index, *rest)

    def watched_finish(self, hidden):
        seen.append((None, layers_filled(self)))
        return finish(self, hidden)

    monkeypatch.setattr(Skeleton, "run_layer", watched_layer)
    monkeypatch.setattr(Skeleton, "finish", watched_finish)
    compare(skeleton, [checkpoint.source, Perturbed(checkpoint.source, 0.1)], IDS)
    assert {index for index, _ in seen} == {0, 1, None}
    for index, layers in seen:
        assert layers == [layer == index for layer in range(2)]
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # one score has no standard error
def test_the_shortest_window_has_one_score(tmp_path):
    checkpoint, skeleton = opened(tmp_path)
    (found,) = compare(skeleton, [checkpoint.source], token_ids(1, 2))
    assert found.tokens == 1
    assert math.isfinite(found.perplexity)
