"""Where in a model a tensor gets a better type than its file type's default: what mixtures can ask."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a tensor stands, as far as a rule asks."""

    index: int  # among the tensors of its kind, in file order; for an MLP of experts its layer
    count: int  # of attention values in the file; for an MLP the layers of the model
    sharing: int  # query heads that share a key-value head
    experts: int  # 0: a dense model
    stacked: bool  # a matrix per expert in one tensor
    importance: bool  # whether there is an importance matrix


Condition = Callable[[Place], bool]
Rules = tuple[tuple[Condition, str], ...]  # the first whose condition holds


def always(place: Place) -> bool:
    """What is left."""
    return True


def first_two(place: Place) -> bool:
    """The first two layers."""
    return place.index < 2


def first_four(place: Place) -> bool:
    """The first four layers."""
    return place.index < 4


def first_eighth(place: Place) -> bool:
    """The first eighth of the layers."""
    return place.index < place.count // 8


def first_sixteenth(place: Place) -> bool:
    """The first sixteenth of the layers."""
    return place.index < place.count // 16


def some(place: Place) -> bool:
    """The first and the last eighth, and every third layer in between."""
    first, last = place.count // 8, 7 * place.count // 8
    return place.index < first or place.index >= last or (place.index - first) % 3 == 2


def middle(place: Place) -> bool:
    """All but the first and the last eighth."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def shared(place: Place) -> bool:
    """Four query heads or more share each value, which therefore is small and matters."""
    return place.sharing >= 4


def shared_or_experts(place: Place) -> bool:
    """The same, or four experts or more beside which attention is small."""
    return place.sharing >= 4 or place.experts >= 4


def eight(place: Place) -> bool:
    """Exactly eight experts, as Mixtral has."""
    return place.experts == 8


def some_of_eight(place: Place) -> bool:
    """Some layers of a model of eight experts."""
    return eight(place) and some(place)


def blind(place: Place) -> bool:
    """Without an importance matrix."""
    return not place.importance


def blind_first_eighth(place: Place) -> bool:
    """The first eighth, without an importance matrix."""
    return not place.importance and first_eighth(place)


def seeing_first_eighth(place: Place) -> bool:
    """The first eighth, with an importance matrix."""
    return place.importance and first_eighth(place)


def stacked(place: Place) -> bool:
    """The experts' matrices."""
    return place.stacked
