"""A baseline and artifacts of it over the same token windows, layer by layer.

Every weight set keeps one copy of the activations; of the layers one is in memory at a time. The head is
applied to a chunk of tokens at a time and the logits of all weight sets are compared at once, so that no
logits file is ever written.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from quantkit.devices import release_memory
from quantkit.errors import QualityError
from quantkit.methods.hessian import exact_bfloat16_products
from quantkit.quality.damage import LinearDamage, linear_damage
from quantkit.quality.metrics import (
    Metrics,
    Reference,
    TokenScores,
    empty_scores,
    joined,
    reference,
    score,
    summarize,
)
from quantkit.quality.windows import Windows
from quantkit.skeleton import LayerCall, Skeleton
from quantkit.tensors import TensorSource

BATCH_TOKENS = 2048
CHUNK_TOKENS = 1024
DRIFT_WINDOWS = 4
CACHED_BYTES = 2**20  # of logits that are scored at a time
LOGIT_BYTES = 64 * 2**20  # of one weight set's chunk of logits, float32


@dataclass(frozen=True)
class Pass:
    """What one pass over the layers found, per weight set, the baseline first."""

    scores: list[TokenScores]
    drift: list[list[float]]  # [weight set][layer]: mean over tokens of |h - h0|**2 / |h0|**2 after the layer
    damage: list[list[LinearDamage]]  # [weight set]: every linear that differs from the baseline's


class Lockstep:
    """Weight sets on their way through the layers, a layer at a time: `begin`, every `layer` in order, `finish`.

    Args:
        skeleton: of the common architecture.
        sources: tensors by the family's names, in any float dtype; the first is the baseline.
        windows: what is read and scored.
        names: of the weight sets, for the sentence that says whose values are not finite.

    Attributes:
        hiddens: [windows, context, hidden] in the compute dtype, per weight set.
        drift: as in `Pass`, of the layers so far.
        damage: as in `Pass`, of the layers so far.
    """

    def __init__(
        self, skeleton: Skeleton, sources: Sequence[TensorSource], windows: Windows, names: Sequence[str] = ()
    ) -> None:
        self._skeleton, self._sources, self._windows = skeleton, sources, windows
        self._names = names or [f"weight set {number}" for number in range(len(sources))]
        self._calls: list[LayerCall] = []
        self.hiddens: list[torch.Tensor] = []
        self.drift: list[list[float]] = [[] for _ in sources]
        self.damage: list[list[LinearDamage]] = [[] for _ in sources]

    def begin(self) -> None:
        """Hidden states before the first layer, per weight set, and how the layers are called."""
        front = self._skeleton.front_names()
        self.hiddens.clear()
        for source in self._sources:
            self._skeleton.fill_from(source, front)
            hidden, self._calls = self._skeleton.embed(self._windows.ids)
            self.hiddens.append(hidden)
            self._skeleton.empty(front)

    @torch.no_grad()
    def layer(self, index: int) -> None:
        """Carry every weight set through a layer, and compare.

        Raises:
            QualityError: the activations of a weight set are not finite.
        """
        skeleton, names = self._skeleton, self._skeleton.layer_names(index)
        original: dict[str, torch.Tensor] = {}
        for number, (source, hidden) in enumerate(zip(self._sources, self.hiddens, strict=True)):
            if number == 0:
                original = _fill_and_keep(skeleton, source, names)
            else:
                self.damage[number] += _fill_and_compare(skeleton, source, names, original)
            _advance(skeleton, index, hidden, self._calls[index])
            self.drift[number].append(_drift(self.hiddens[0], hidden, self._windows.scored))
            if not math.isfinite(self.drift[number][-1]):
                raise QualityError(f"{self._names[number]}: the activations after layer {index} are not finite")
        skeleton.empty(names)
        original.clear()
        release_memory()

    @torch.no_grad()
    def finish(self) -> Pass:
        """Norm, head and comparison, behind the last layer."""
        scores = _score(self._skeleton, self._sources, self.hiddens, self._windows)
        return Pass(scores, self.drift, self.damage)


def reads(skeleton: Skeleton, source: TensorSource) -> list[str]:
    """Every tensor that a pass reads of a weight set, in order."""
    layers = (skeleton.layer_names(index) for index in range(len(skeleton.layers)))
    head = skeleton.head_tensors(source.infos)
    return [*skeleton.front_names(), *(name for names in layers for name in names), *head.values()]


def evaluate(
    skeleton: Skeleton,
    sources: Sequence[TensorSource],
    windows: Windows,
    layer_done: Callable[[int, float], None] = lambda index, seconds: None,
    names: Sequence[str] = (),
) -> Pass:
    """Run every weight set over the windows and compare it with the first.

    Args:
        skeleton: of the common architecture.
        sources: tensors by the family's names, in any float dtype; the first is the baseline.
        windows: what is read and scored.
        layer_done: told each layer's number and seconds.
        names: of the weight sets, for the sentence that says whose values are not finite.

    Raises:
        QualityError: the activations of a weight set are not finite.
    """
    lockstep = Lockstep(skeleton, sources, windows, names)
    lockstep.begin()
    for index in range(len(skeleton.layers)):
        started = time.perf_counter()
        lockstep.layer(index)
        layer_done(index, time.perf_counter() - started)
    return lockstep.finish()


def compare(skeleton: Skeleton, sources: Sequence[TensorSource], token_ids: torch.Tensor) -> list[Metrics]:
    """Perplexity and divergence of every weight set over unpadded windows.

    Args:
        skeleton: of the common architecture.
        sources: the first is the baseline.
        token_ids: [windows, sequence] int64; each window is scored from its second token on.

    Returns:
        Metrics per source, the baseline's own (without divergence) first.
    """
    scored = torch.ones_like(token_ids, dtype=torch.bool)
    scored[:, 0] = False
    windows = Windows(token_ids, scored, torch.zeros(len(token_ids), dtype=torch.int64), "given")
    scores = evaluate(skeleton, sources, windows).scores
    return [summarize(found, scores[0]) for found in scores]


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits are compared at a time."""
    return max(1, min(CHUNK_TOKENS, LOGIT_BYTES // (4 * vocabulary)))


def _fill_and_keep(skeleton: Skeleton, source: TensorSource, names: list[str]) -> dict[str, torch.Tensor]:
    """Fill a layer, and return its linears' weights as they are stored."""
    linears = {f"{name}.weight" for name in skeleton.linear_shapes()}
    kept: dict[str, torch.Tensor] = {}
    for name in names:
        tensor = source.read(name)
        skeleton.fill({name: tensor})
        if name in linears:
            kept[name] = tensor
    return kept


def _fill_and_compare(
    skeleton: Skeleton, source: TensorSource, names: list[str], original: Mapping[str, torch.Tensor]
) -> list[LinearDamage]:
    """Fill a layer one tensor after the other, and say what became of its linears."""
    damage = []
    for name in names:
        tensor = source.read(name)
        if name in original and (found := linear_damage(name.removesuffix(".weight"), original[name], tensor)):
            damage.append(found)
        skeleton.fill({name: tensor})
    return damage


def _advance(skeleton: Skeleton, index: int, hidden: torch.Tensor, call: LayerCall) -> None:
    """Carry one weight set through a layer, in place."""
    for part in torch.split(hidden, max(1, BATCH_TOKENS // hidden.shape[1])):
        part.copy_(skeleton.run_layer(index, part.to(skeleton.device), call))


def _drift(baseline: torch.Tensor, hidden: torch.Tensor, scored: torch.Tensor) -> float:
    """How far the tokens of one weight set are from the baseline's, over a sample of windows."""
    some = slice(None, None, max(1, len(hidden) // DRIFT_WINDOWS))
    own, other = baseline[some][scored[some]].float(), hidden[some][scored[some]].float()
    difference = other - own
    distance = torch.linalg.vecdot(difference, difference) / torch.linalg.vecdot(own, own).clamp_min(1e-30)
    return float(distance.mean())


def _score(
    skeleton: Skeleton, sources: Sequence[TensorSource], hiddens: list[torch.Tensor], windows: Windows
) -> list[TokenScores]:
    """Head and comparison, a chunk of scored tokens at a time."""
    heads = _heads(skeleton, sources)
    rows, columns = windows.scored.nonzero(as_tuple=True)
    target = windows.ids[rows, columns]
    chunk = chunk_tokens(skeleton.vocabulary())
    # Logits rounded to bfloat16 would differ by more than a good quantization does. The inputs of the
    # head's product are no finer than bfloat16, so its units still serve.
    products = nullcontext if skeleton.dtype == torch.float32 else exact_bfloat16_products
    # Made whole beforehand: small results between large chunks would keep the heap from shrinking.
    scores = [empty_scores(len(target)) for _ in sources]
    for start in range(0, len(target), chunk):
        tokens = slice(start, start + chunk)
        at = (rows[tokens], columns[tokens] - 1)  # the token before predicts
        references: list[Reference] = []
        for number, head in enumerate(heads):
            skeleton.fill(head, torch.float32)
            with products():
                logits = skeleton.finish(hiddens[number][at].float().unsqueeze(1))[:, 0]
            parts = torch.split(logits, _rows_at_once(logits))
            if number == 0:
                expected = torch.split(target[tokens].to(skeleton.device), len(parts[0]))
                references = [reference(*pair) for pair in zip(parts, expected, strict=True)]
                found = [one.scores() for one in references]
            else:
                found = [score(*pair) for pair in zip(references, parts, strict=True)]
            scores[number].put(tokens, joined(found))
    skeleton.empty(list(heads[0]))
    return scores


def _rows_at_once(logits: torch.Tensor) -> int:
    """Tokens scored at a time: on a CPU as many as stay in its cache from one step to the next."""
    return len(logits) if logits.is_cuda else max(8, CACHED_BYTES // (4 * logits.shape[1]))


def _heads(skeleton: Skeleton, sources: Sequence[TensorSource]) -> list[dict[str, torch.Tensor]]:
    """Norm and head of every weight set in float32; equal ones share their memory."""
    first: dict[str, torch.Tensor] = {}
    heads: list[dict[str, torch.Tensor]] = []
    for source in sources:
        head: dict[str, torch.Tensor] = {}
        for name, stored in skeleton.read_head(source).items():
            value = stored.to(skeleton.device, torch.float32)
            head[name] = first[name] if name in first and torch.equal(first[name], value) else value
        first = first or head
        heads.append(head)
    return heads
