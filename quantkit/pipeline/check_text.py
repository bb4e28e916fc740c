"""The text of a check: cut into windows for one tokenizer, and held against what artifacts were calibrated with."""

from collections.abc import Sequence
from typing import Any

from quantkit.calibration import text_sets
from quantkit.errors import BadInputError, QuantkitError, UsageError
from quantkit.pipeline.weightset import WeightSet
from quantkit.quality.texts import OVERLAP, EvaluationText, overlap
from quantkit.quality.windows import LLAMA_CPP_CONTEXT, Windows, like_llama_cpp, sliding
from quantkit.recipe import Calibration
from quantkit.skeleton import Skeleton

LONGEST_WINDOW = 2048  # tokens of a window, where neither model nor user says otherwise


def prefix_ids(tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """What the tokenizer puts in front of a text: BOS, XGLM's `</s>`, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def cut_windows(
    texts: Sequence[EvaluationText],
    tokenizer: Any,  # noqa: ANN401
    skeleton: Skeleton,
    *,
    context: int | None = None,
    stride: int | None = None,
    as_llama_cpp: bool = False,
) -> Windows:
    """Token windows of the texts, the same for every weight set.

    Args:
        texts: each is tokenized as a whole, without special tokens.
        tokenizer: the baseline's.
        skeleton: its vocabulary bounds the ids.
        context: tokens of a window; by default what the model has, 2048 at the most.
        stride: tokens from one window to the next; by default the context.
        as_llama_cpp: cut as llama.cpp's perplexity tool does, with a context of 512 unless told.

    Raises:
        BadInputError: too little text, or an id past the embedding.
        UsageError: more context than the model has positions.
    """
    prefix = prefix_ids(tokenizer)
    # llama.cpp drops one newline at the end of a file.
    contents = [text.text.removesuffix("\n") if as_llama_cpp else text.text for text in texts]
    streams = [tokenizer(content, add_special_tokens=False)["input_ids"] for content in contents]
    largest, rows = max((max(stream, default=0) for stream in streams), default=0), skeleton.vocabulary()
    if largest >= rows:
        raise BadInputError(
            f"the tokenizer gives id {largest}, the embedding has {rows} rows",
            "tokenizer and weights are not of the same checkpoint",
        )
    longest = getattr(skeleton.config, "max_position_embeddings", None) or LONGEST_WINDOW
    context = context or (LLAMA_CPP_CONTEXT if as_llama_cpp else min(LONGEST_WINDOW, longest))
    if context > longest:
        raise UsageError(f"--context {context} is more than the model's {longest} positions")
    if as_llama_cpp:
        return like_llama_cpp(streams, context, prefix[0] if prefix else None)
    return sliding(streams, context, stride or context, prefix)


def overlaps(texts: Sequence[EvaluationText], artifacts: Sequence[WeightSet]) -> list[str]:
    """Sentences about evaluation text that an artifact was calibrated with."""
    notes = []
    for artifact in artifacts:
        by_name = {name: _documents_of(name) for name in artifact.calibrated_with}
        documents = [document for found in by_name.values() for document in found]
        # Shipped sets for both purposes have the same names and no text in common: what can be read is compared.
        unread = [name.rpartition(":")[0] or name for name, found in by_name.items() if not found]
        for text in texts:
            share = overlap(text.text, documents)
            if text.name in unread:
                notes.append(f"{artifact.name} was calibrated with a text of the name {text.name}: its figures flatter")
            elif share > OVERLAP:
                notes.append(
                    f"{share:.0%} of {text.name} is in the calibration text of {artifact.name}: its figures flatter"
                )
    return notes


def other_vocabularies(tokenizer: Any, artifacts: Sequence[WeightSet]) -> list[str]:  # noqa: ANN401
    """Sentences about artifacts that bring a vocabulary along which is not the tokenizer's.

    A check feeds all weight sets the baseline's ids; such an artifact's own runtime would read other ones.
    """
    carrying = [artifact for artifact in artifacts if artifact.vocabulary is not None]
    expected = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) if carrying else []
    notes = []
    for artifact in carrying:
        found = artifact.vocabulary or ()
        if not found:
            notes.append(f"{artifact.name} has no vocabulary: it was checked with the baseline's ids")
            continue
        own = [found[number] if number < len(found) else "" for number in range(len(expected))]
        odd = [number for number, token in enumerate(expected) if token and _spaced(token) != _spaced(own[number])]
        if odd:
            example = f"{odd[0]}, {own[odd[0]][:20]!r} instead of {str(expected[odd[0]])[:20]!r}"
            notes.append(
                f"{len(odd)} of {len(expected)} tokens of {artifact.name} are not the baseline's, such as {example}: "
                "it was checked with the baseline's ids"
            )
    return notes


def _spaced(token: str) -> str:
    """A token with its spaces as spaces: tools write them differently."""
    return token.replace("\u2581", " ").replace("\u0120", " ")


def _documents_of(name: str) -> list[str]:
    """A calibration set that can be read without the network: a shipped one, or a file that lies where it lay."""
    try:
        sets = text_sets(Calibration(text=(name,)))
    except QuantkitError:
        return []
    local = [text_set for text_set in sets if text_set.local]
    return [document for text_set in local for document in text_set.documents() if isinstance(document, str)]
