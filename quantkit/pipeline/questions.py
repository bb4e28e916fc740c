"""Prompts as the model sees them: chat template applied, token ids, and what ends an answer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError
from quantkit.generate import Question
from quantkit.quality.prompts import Prompt
from quantkit.skeleton import Skeleton
from quantkit.vocab.chat import plain_texts

Tokenizer = Any  # transformers' tokenizer


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether prompts go through a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def questions_of(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, prefix: Sequence[int], skeleton: Skeleton
) -> list[Question | None]:
    """The prompts as token ids; None for one that leaves no room for an answer in the model's context.

    Args:
        prompts: from `load_prompts`.
        tokenizer: whose chat template is applied if it has one; without it a prompt is continued as text.
        prefix: ids in front of such a text.
        skeleton: of the model.

    Raises:
        BadInputError: the template fails, or a prompt has no tokens or some outside of the vocabulary.
    """
    positions = getattr(skeleton.config, "max_position_embeddings", None)
    questions: list[Question | None] = []
    for prompt, ids in zip(prompts, _prompt_ids(prompts, tokenizer, prefix), strict=True):
        if not ids:
            raise BadInputError(f"the prompt {prompt.id} becomes no token")
        if max(ids) >= skeleton.vocabulary():
            raise BadInputError(
                f"the prompt {prompt.id} has the id {max(ids)}, the embedding has {skeleton.vocabulary()} rows",
                "tokenizer or chat template and weights are not of the same checkpoint",
            )
        most = min(prompt.max_new_tokens, positions - len(ids)) if positions else prompt.max_new_tokens
        questions.append(Question(ids, most) if most > 0 else None)
    return questions


def end_ids(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: those of generation_config.json, else of config.json; and the tokenizer's.

    Args:
        folder: of the baseline.
        config: config.json as data.
        tokenizer: the baseline's.

    Raises:
        BadInputError: generation_config.json is not JSON.
    """
    path = folder / "generation_config.json"
    try:
        stated = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}", "remove it, or download it again") from error
    found = stated.get("eos_token_id") if isinstance(stated, dict) else None
    found = config.get("eos_token_id") if found is None else found
    ids = [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id]
    return frozenset(one for one in ids if isinstance(one, int))


def _prompt_ids(prompts: Sequence[Prompt], tokenizer: Tokenizer, prefix: Sequence[int]) -> list[tuple[int, ...]]:
    chats = has_template(tokenizer)
    documents = [prompt.text if prompt.plain and not chats else list(prompt.messages) for prompt in prompts]
    texts = plain_texts(documents, tokenizer, add_generation_prompt=True)
    return [
        (*(prefix if special else ()), *tokenizer(text, add_special_tokens=False)["input_ids"])
        for text, special in texts
    ]
