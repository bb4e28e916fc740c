"""Prompts whose answers are put side by side, and whether the number in an answer is the right one."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, UsageError
from quantkit.recipe import data_folder
from quantkit.texts import is_chat, text_index

FOLDER = "evaluation"
MAX_NEW_TOKENS = 128  # where a prompt says nothing
LARGEST_ANSWER = 2**16
KEYS = ("id", "kind", "language", "prompt", "messages", "answer", "max_new_tokens")
LONGEST_NUMBER = 30  # digits
WHOLE_NUMBER = re.compile(rf"-?[0-9]{{1,{LONGEST_NUMBER}}}")
# A sign that is no minus between two terms; digits alone or in groups of three; what follows the decimal mark.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−])?"
    r"(?P<whole>[1-9]\d{0,2}(?P<mark>\{,\}|[,.'’ \u2009\u00a0\u202f\u066c])\d{3}(?:(?P=mark)\d{3})*(?!\d)|\d+)"
    r"(?P<fraction>[.,]\d+)?"
)


@dataclass(frozen=True)
class Prompt:
    """One question to every weight set."""

    id: str
    messages: tuple[Mapping[str, str], ...]  # the user's turn alone, or a chat
    plain: bool  # given as text, not as a chat
    kind: str = "prompt"
    language: str = "unknown"  # of the answer: ISO 639-1, or "code"
    answer: int | None = None  # the number that a right answer contains
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def text(self) -> str:
        """For people: the prompt as it stands, a chat as lines of `role: content`."""
        if self.plain:
            return self.messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def load_prompts(name: str = "default") -> list[Prompt]:
    """The prompts that ship, or those of a user's JSONL file.

    Args:
        name: `default`, or a file with a JSON object per line: `prompt` or `messages`, and perhaps `id`,
            `kind`, `language`, `answer` (a whole number) and `max_new_tokens`.

    Raises:
        UsageError: there is no such file.
        BadInputError: a line is not such an object, or two have the same id.
    """
    shipped = {row["name"]: row for row in text_index(FOLDER)["prompts"]}
    path = data_folder(FOLDER) / shipped[name]["file"] if name in shipped else Path(name)
    if not path.is_file():
        raise UsageError(f"no prompts {name!r}", f"name a JSONL file, or one of: {', '.join(shipped)}")
    raw = path.read_bytes()
    if name in shipped and hashlib.sha256(raw).hexdigest() != shipped[name]["sha256"]:
        raise BadInputError(f"{path.name} is not the file that index.json describes", "install quantkit again")
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    prompts = [_prompt(line, number, path.name) for number, line in enumerate(lines, 1) if line.strip()]
    ids = [prompt.id for prompt in prompts]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise BadInputError(f"{path.name} has two prompts with the id {twice!r}", "leave id out, or make each another")
    if not prompts:
        raise BadInputError(f"{path.name} holds no prompts", 'write a line such as {"prompt": "67*39="}')
    return prompts


def check_answer(prompt: Prompt, text: str) -> bool | None:
    """Whether the expected number stands in an answer; None where no number is expected.

    It must stand there as a whole number of its own: not as a part of a longer one, not with a fraction
    other than zeros, with the same sign. Its thousands may be separated by a comma, point, apostrophe,
    space or LaTeX's `{,}`, the same between all groups. Digits may be those of any script.

    Args:
        prompt: what was asked.
        text: what was answered.
    """
    return None if prompt.answer is None else prompt.answer in _whole_numbers(text)


def _whole_numbers(text: str) -> set[int]:
    found = set()
    for match in NUMBER.finditer(text):
        digits = "".join(character for character in match["whole"] if character.isdecimal())
        if len(digits) <= LONGEST_NUMBER and not any(map(int, (match["fraction"] or ".")[1:])):
            found.add(-int(digits) if match["sign"] else int(digits))
    return found


def _prompt(line: str, number: int, name: str) -> Prompt:
    where = f"{name} line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInputError(f"{where} is not JSON: {error.msg}") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise BadInputError(f"{where} has not one of prompt and messages", 'write a line such as {"prompt": "67*39="}')
    unknown = next((key for key in row if key not in KEYS), None)
    if unknown is not None:
        raise BadInputError(f"{where} has an unknown key {unknown!r}", f"the keys are {', '.join(KEYS)}")
    texts = {key: row.get(key, default) for key, default in (("kind", "prompt"), ("language", "unknown"))}
    texts["id"] = str(number) if row.get("id") is None else row["id"]
    for key, value in texts.items():
        if not isinstance(value, str) or not value:
            raise BadInputError(f"{where}: found {key} {value!r}, expected text")
    return Prompt(
        messages=_messages(row, where),
        plain="prompt" in row,
        answer=_answer(row.get("answer"), where),
        max_new_tokens=_tokens(row.get("max_new_tokens", MAX_NEW_TOKENS), where),
        **texts,
    )


def _messages(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, str], ...]:
    messages = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
    if not is_chat(messages) or not messages or not messages[-1]["content"].strip():
        raise BadInputError(f"{where} asks nothing", "prompt is text; messages are objects of role and content")
    if messages[-1]["role"] == "assistant":
        raise BadInputError(f"{where} ends with the assistant", "the last message is the one to be answered")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _answer(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str) or not WHOLE_NUMBER.fullmatch(str(value)):
        raise BadInputError(f"{where}: found answer {value!r}, expected a whole number such as 2613")
    return int(value)


def _tokens(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_ANSWER:
        raise BadInputError(f"{where}: found max_new_tokens {value!r}, expected a number from 1 to {LARGEST_ANSWER}")
    return value
