"""Many short texts: the corpus of the proof, pieces of the shipped calibration sets, whitespace between words."""

import functools
import json
import random
import re

from quantkit.recipe import data_folder
from quantkit.vocab.corpus import corpus


@functools.cache
def shipped() -> tuple[str, ...]:
    """Pieces of at most 120 characters of every shipped calibration text, whitespace as it is."""
    pieces = []
    for path in sorted(data_folder("calibration").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            texts = [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]
            pieces += [piece for text in texts for piece in re.findall(r".{1,120}", text, re.DOTALL)]
    return tuple(pieces)


def many_texts(special_tokens=()) -> list[str]:
    """More than a thousand texts, the same ones each time."""
    drawn = random.Random(0)
    words = ["a", "the", "Tür", "天", "42", "x_1", "don't", "🙂", ".", ");", "\n", "\t", *special_tokens]
    gaps = ["", " ", "  ", " " * 5, "\t\t", " \t ", "\n\n", "\r\n", "\u3000"]
    mixed = [
        "".join(drawn.choice(words) + drawn.choice(gaps) for _ in range(drawn.randrange(1, 12))) for _ in range(400)
    ]
    runs = [f"x{space * length}y" for space in (" ", "\t", "\n") for length in range(1, 80)]
    texts = [*corpus(special_tokens), *runs, *mixed, *shipped()]
    assert len(texts) > 1000
    return texts
