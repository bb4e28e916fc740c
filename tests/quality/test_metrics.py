"""Divergence, agreement and perplexity against float64 written from their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.quality.metrics import empty_scores, reference, score, summarize


def logits_pair(tokens, vocabulary, spread, change, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = spread * torch.randn(tokens, vocabulary, generator=generator)
    other = base + change * torch.randn(tokens, vocabulary, generator=generator)
    return base, other, torch.randint(vocabulary, (tokens,), generator=generator)


def exact_divergence(base, other):
    p, q = torch.log_softmax(base.double(), -1), torch.log_softmax(other.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("change", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_divergence_keeps_its_digits_however_small_it_is(spread, change):
    base, other, target = logits_pair(200, 5000, spread, change)
    found = score(reference(base, target), other.clone()).divergence.double()
    exact = exact_divergence(base, other)
    assert float((found - exact).abs().max()) <= 5e-3 * float(exact.mean()) + 1e-9
    assert float(found.mean()) == pytest.approx(float(exact.mean()), rel=1e-4, abs=1e-10)


@given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_constant_added_to_all_logits_changes_nothing(shift, seed):
    base, other, target = logits_pair(8, 300, 3.0, 0.3, seed)
    one, two = (score(reference(base, target), logits) for logits in (other.clone(), other + shift))
    assert torch.allclose(one.divergence, two.divergence, rtol=1e-3, atol=1e-6)
    assert torch.allclose(one.loss, two.loss, atol=2e-5)


def test_a_model_does_not_differ_from_itself():
    base, _, target = logits_pair(50, 1000, 4.0, 0.0)
    found = score(reference(base, target), base.clone())
    assert not found.divergence.any()
    assert found.top1.all()
    assert bool((found.top5 == 1).all())
    assert float(found.shift.abs().max()) < 1e-6


def test_a_model_gone_wild_is_far_off_but_finite():
    base, _, target = logits_pair(10, 100, 1.0, 0.0)
    found = score(reference(base, target), torch.full_like(base, -300).scatter(1, target[:, None], 300.0))
    assert torch.isfinite(found.divergence).all()
    assert float(found.divergence.min()) > 10


def test_agreement_counts_first_choices_and_shared_fives():
    base = torch.tensor([[9.0, 8, 7, 6, 5, 0, 0, 0]])
    other = torch.tensor([[8.0, 9, 7, 0, 0, 6, 5, 0]])
    found = score(reference(base, torch.tensor([0])), other)
    assert found.top1.tolist() == [False]
    assert found.top5.tolist() == pytest.approx([3 / 5])


def test_a_vocabulary_below_five_is_compared_whole():
    base, other, target = logits_pair(4, 3, 1.0, 0.5)
    assert score(reference(base, target), other.clone()).top5.tolist() == [1.0] * 4


def test_the_summary_is_what_the_definitions_say():
    base, other, target = logits_pair(4000, 50, 2.0, 0.4)
    own = reference(base, target).scores()
    found = summarize(score(reference(base, target), other.clone()), own)
    p, q = torch.log_softmax(base.double(), -1), torch.log_softmax(other.double(), -1)
    loss, before = (-x.gather(1, target[:, None]).squeeze(1) for x in (q, p))
    divergence = exact_divergence(base, other).numpy()
    assert found.tokens == 4000
    assert found.perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-6)
    assert found.perplexity_error == pytest.approx(math.exp(loss.mean()) * float(loss.std()) / 4000**0.5, rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp((loss - before).mean()), rel=1e-6)
    assert found.perplexity_ratio_error == pytest.approx(
        found.perplexity_ratio * float((loss - before).std()) / 4000**0.5, rel=1e-4
    )
    assert found.kl_mean == pytest.approx(divergence.mean(), rel=1e-5)
    assert found.kl_error == pytest.approx(divergence.std(ddof=1) / 4000**0.5, rel=1e-4)
    for name, share in (("kl_median", 0.5), ("kl_90", 0.9), ("kl_99", 0.99), ("kl_99_9", 0.999), ("kl_max", 1.0)):
        assert getattr(found, name) == pytest.approx(np.quantile(divergence, share), rel=1e-4)
    agreement = float((p.argmax(1) == q.argmax(1)).double().mean())
    assert found.top1_agreement == pytest.approx(agreement)
    assert found.top1_error == pytest.approx(math.sqrt(agreement * (1 - agreement) / 4000))
    shift = (q.exp() - p.exp()).gather(1, target[:, None]).squeeze(1)
    assert found.shift_mean == pytest.approx(float(shift.mean()), abs=1e-7)
    assert found.shift_rms == pytest.approx(float(shift.square().mean().sqrt()), rel=1e-5)


def test_one_token_has_no_standard_error():
    base, other, target = logits_pair(1, 10, 1.0, 0.1)
    own = reference(base, target).scores()
    found = summarize(score(reference(base, target), other.clone()), own)
    assert (found.perplexity_error, found.kl_error) == (0.0, 0.0)


def test_scores_are_put_together_from_stretches():
    base, other, target = logits_pair(10, 20, 1.0, 0.5)
    whole, parts = score(reference(base, target), other.clone()), empty_scores(10)
    for start in (0, 4, 8):
        stretch = slice(start, start + 4)
        parts.put(stretch, score(reference(base[stretch], target[stretch]), other[stretch].clone()))
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(parts, name)), name
    picked = whole.select(torch.arange(10) % 2 == 0)
    assert len(picked.loss) == 5
