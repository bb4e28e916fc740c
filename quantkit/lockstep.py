"""A baseline and artifacts of it over the same token windows, layer by layer: perplexity and KL divergence.

One decoder layer is in memory at a time and one copy of the activations per weight set; the logits
of a batch exist only while they are compared, so no logits file is ever written.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import TensorSource

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Comparison:
    """One weight set against the first, over every token that has a successor."""

    perplexity: float
    perplexity_error: float  # one standard error
    kl_mean: float  # nats per token, KL(baseline || this)
    kl_error: float  # one standard error
    kl_99: float  # 99th percentile
    top1_agreement: float  # share of tokens with the same most likely successor
    tokens: int


@torch.no_grad()
def compare(skeleton: Skeleton, sources: Sequence[TensorSource], token_ids: torch.Tensor) -> list[Comparison]:
    """Measure every weight set over token windows; the first is the baseline.

    Args:
        skeleton: of the common architecture.
        sources: tensors by the family's names, in any float dtype.
        token_ids: [windows, sequence] int64; each window is scored from its second token on.

    Returns:
        A comparison per source, the baseline's own (with zero divergence) first.
    """
    hiddens: list[torch.Tensor] = []
    calls: list[LayerCall] = []
    for source in sources:
        outer = skeleton.outer_names()
        skeleton.fill({name: source.read(name) for name in outer})
        hidden, calls = skeleton.embed(token_ids)
        hiddens.append(hidden)
        skeleton.empty(outer)
    for index in range(len(skeleton.layers)):
        names = skeleton.layer_names(index)
        for source, hidden in zip(sources, hiddens, strict=True):
            skeleton.fill({name: source.read(name) for name in names})
            for part in torch.split(hidden, max(1, BATCH_TOKENS // hidden.shape[1])):
                part.copy_(skeleton.run_layer(index, part.to(skeleton.device), calls[index]))
        skeleton.empty(names)
    return _score(skeleton, sources, hiddens, token_ids)


def _score(
    skeleton: Skeleton, sources: Sequence[TensorSource], hiddens: list[torch.Tensor], token_ids: torch.Tensor
) -> list[Comparison]:
    head = skeleton.family.head + ".weight"
    names = skeleton.outer_names() + ([] if skeleton.tied() else [head])
    losses: list[list[torch.Tensor]] = [[] for _ in sources]
    divergences: list[list[torch.Tensor]] = [[] for _ in sources]
    agreements: list[list[torch.Tensor]] = [[] for _ in sources]
    for start in range(len(token_ids)):
        target = token_ids[start : start + 1, 1:]
        baseline = torch.empty(0)
        for number, source in enumerate(sources):
            skeleton.fill({name: source.read(name) for name in names})
            logits = skeleton.finish(hiddens[number][start : start + 1])[:, :-1].float().cpu()
            scores = torch.log_softmax(logits, -1)  # [1, sequence - 1, vocabulary] fp32
            baseline = scores if number == 0 else baseline
            losses[number].append(-scores.gather(-1, target.unsqueeze(-1)).flatten())
            divergences[number].append((baseline.exp() * (baseline - scores)).sum(-1).flatten())
            agreements[number].append((baseline.argmax(-1) == scores.argmax(-1)).flatten())
    skeleton.empty(names)
    return [
        _summary(torch.cat(loss), torch.cat(divergence), torch.cat(agreement))
        for loss, divergence, agreement in zip(losses, divergences, agreements, strict=True)
    ]


def _summary(loss: torch.Tensor, divergence: torch.Tensor, agreement: torch.Tensor) -> Comparison:
    count = len(loss)
    perplexity = math.exp(loss.double().mean())
    return Comparison(
        perplexity=perplexity,
        perplexity_error=perplexity * float(loss.double().std()) / math.sqrt(count),
        kl_mean=float(divergence.double().mean()),
        kl_error=float(divergence.double().std()) / math.sqrt(count),
        kl_99=float(divergence.quantile(0.99)) if count < 2**24 else math.nan,
        top1_agreement=float(agreement.double().mean()),
        tokens=count,
    )
