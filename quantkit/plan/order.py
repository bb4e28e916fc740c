"""In which order a run reads the tensors of its source: each shard's in one stretch, so that shards can come and go."""

from collections.abc import Mapping, Sequence

from quantkit.plan.rows import Plan


def places_beside(plan: Plan, embedding: str) -> Mapping[int, tuple[str, ...]]:
    """When the kept tensors outside of the layers are copied: as early as a layer needs their shard anyway.

    Args:
        plan: rows with their shards.
        embedding: the tensor that is read before everything else.

    Returns:
        Layer -> tensors that are copied before it. Those of shards that no layer needs come with the embedding, at
        0, where they share its shard, and else behind the last layer, at the number of layers.
    """
    first: dict[str, int] = {}  # file -> the first layer that reads it
    for row in plan.rows:
        if row.layer is not None:
            first[row.source.file] = min(row.layer, first.get(row.source.file, row.layer))
    first[plan.row(embedding).source.file] = 0
    places: dict[int, tuple[str, ...]] = {0: (embedding,)}
    for row in plan.rows:
        if row.layer is None and row.action == "keep" and row.name != embedding:
            place = first.get(row.source.file, len(plan.layers))
            places[place] = (*places.get(place, ()), row.name)
    return places


def reading_order(count: int, beside: Mapping[int, Sequence[str]], layers: Mapping[int, Sequence[str]]) -> list[str]:
    """Every read of a run to come, in order.

    Args:
        count: of layers.
        beside: what is copied before each layer, from `places_beside`.
        layers: what is read of each layer.
    """
    return [name for index in range(count + 1) for name in (*beside.get(index, ()), *layers.get(index, ()))]
