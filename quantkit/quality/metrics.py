"""What a changed model predicts differently, token by token and summed up.

KL divergence is KL(baseline || other) in nats. With d the difference of the logits and p the baseline's
probabilities it is log sum p exp(d) - sum p d: no two large numbers are subtracted, so that small
divergences keep their digits in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

TOP = 5
EXPONENT = 80.0  # where float32 still holds exp(); a model this far off has failed already


@dataclass(frozen=True)
class Reference:
    """The baseline's predictions for a few tokens."""

    logits: torch.Tensor  # [tokens, vocabulary] fp32
    probabilities: torch.Tensor  # [tokens, vocabulary] fp32
    target: torch.Tensor  # [tokens] int64, what the text says
    target_probability: torch.Tensor  # [tokens] fp32
    top: torch.Tensor  # [tokens, 5] int64, the most likely first

    def scores(self) -> "TokenScores":
        """The baseline's own: its loss, and no difference from itself."""
        loss = (torch.logsumexp(self.logits, -1) - self.logits.gather(-1, self.target.unsqueeze(-1)).squeeze(-1)).cpu()
        none = torch.zeros_like(loss)
        return TokenScores(loss, none, torch.ones_like(loss, dtype=torch.bool), torch.ones_like(loss), none)


@dataclass(frozen=True)
class TokenScores:
    """One number per scored token and measure."""

    loss: torch.Tensor  # [tokens] fp32, -log probability of the true token
    divergence: torch.Tensor  # [tokens] fp32, KL(baseline || this) in nats
    top1: torch.Tensor  # [tokens] bool, the same most likely token
    top5: torch.Tensor  # [tokens] fp32, share of the baseline's five most likely among these five
    shift: torch.Tensor  # [tokens] fp32, probability of the true token minus the baseline's

    def select(self, tokens: torch.Tensor) -> "TokenScores":
        """The scores of some tokens, by a mask [tokens]."""
        return TokenScores(*(value[tokens] for value in vars(self).values()))

    def put(self, tokens: slice, part: "TokenScores") -> None:
        """Take over the scores of a stretch of tokens."""
        for whole, piece in zip(vars(self).values(), vars(part).values(), strict=True):
            whole[tokens] = piece


@dataclass(frozen=True)
class Metrics:
    """One weight set against the baseline over a set of tokens."""

    tokens: int
    perplexity: float
    perplexity_error: float  # one standard error
    perplexity_ratio: float  # to the baseline's
    perplexity_ratio_error: float  # one standard error of the paired difference
    kl_mean: float  # nats per token
    kl_error: float
    kl_median: float
    kl_90: float
    kl_99: float
    kl_99_9: float
    kl_max: float
    top1_agreement: float  # share of tokens with the same most likely successor
    top1_error: float
    top5_agreement: float  # mean share of the five most likely
    shift_mean: float
    shift_rms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def reference(logits: torch.Tensor, target: torch.Tensor) -> Reference:
    """Prepare the baseline's side of a comparison.

    Args:
        logits: [tokens, vocabulary] fp32.
        target: [tokens] int64.
    """
    probabilities = torch.softmax(logits, -1)
    chosen = probabilities.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return Reference(logits, probabilities, target, chosen, logits.topk(min(TOP, logits.shape[-1]), -1).indices)


def score(baseline: Reference, logits: torch.Tensor) -> TokenScores:
    """Score a model's logits [tokens, vocabulary] fp32 against the baseline's; they are overwritten."""
    target = logits.gather(-1, baseline.target.unsqueeze(-1)).squeeze(-1)
    loss = torch.logsumexp(logits, -1) - target
    top = logits.topk(baseline.top.shape[-1], -1).indices
    shared = (top.unsqueeze(-1) == baseline.top.unsqueeze(-2)).any(-1)
    difference = logits.sub_(baseline.logits)
    difference -= difference.gather(-1, baseline.top[:, :1])  # what all logits have in common does not count
    mean = torch.linalg.vecdot(baseline.probabilities, difference).unsqueeze(-1)
    # Around the mean the exponent is small, and what is lost of 1 in the probabilities' sum cancels.
    difference.sub_(mean).clamp_(max=EXPONENT).expm1_()
    excess = torch.linalg.vecdot(baseline.probabilities, difference)
    return TokenScores(
        loss=loss.cpu(),
        divergence=torch.log1p(excess).clamp_min(0).cpu(),
        top1=(top[:, 0] == baseline.top[:, 0]).cpu(),
        top5=shared.float().mean(-1).cpu(),
        shift=((-loss).exp() - baseline.target_probability).cpu(),
    )


def joined(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of several stretches as one."""
    return TokenScores(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def empty_scores(tokens: int) -> TokenScores:
    """Room for the scores of so many tokens, to be filled with `put`."""
    numbers = [torch.zeros(tokens) for _ in range(4)]
    return TokenScores(numbers[0], numbers[1], torch.zeros(tokens, dtype=torch.bool), numbers[2], numbers[3])


def summarize(scores: TokenScores, baseline: TokenScores) -> Metrics:
    """Perplexity, divergence and agreement over tokens, with standard errors.

    Args:
        scores: of the weight set.
        baseline: the baseline's own, over the same tokens.
    """
    loss, divergence = scores.loss.double(), scores.divergence.double()
    paired = loss - baseline.loss.double()
    count = len(loss)
    perplexity, ratio = math.exp(loss.mean()), math.exp(paired.mean())
    top1 = float(scores.top1.double().mean())
    median, q90, q99, q999 = np.quantile(scores.divergence.numpy(), (0.5, 0.9, 0.99, 0.999)).tolist()
    return Metrics(
        tokens=count,
        perplexity=perplexity,
        perplexity_error=perplexity * _standard_error(loss),
        perplexity_ratio=ratio,
        perplexity_ratio_error=ratio * _standard_error(paired),
        kl_mean=float(divergence.mean()),
        kl_error=_standard_error(divergence),
        kl_median=median,
        kl_90=q90,
        kl_99=q99,
        kl_99_9=q999,
        kl_max=float(divergence.max()),
        top1_agreement=top1,
        top1_error=math.sqrt(top1 * (1 - top1) / count),
        top5_agreement=float(scores.top5.double().mean()),
        shift_mean=float(scores.shift.double().mean()),
        shift_rms=float(scores.shift.double().square().mean().sqrt()),
    )


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
