"""Chats to text through a checkpoint's own template, which is code of strangers: in a child process with limits."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError

Conversation = Sequence[Mapping[str, str]]  # messages with role and content
Tokenizer = Any  # transformers' tokenizer
FIRST_BATCH = 64  # chats rendered by the first child process; each later one gets twice as many
CPU_SECONDS = 5  # and a hundredth for each conversation
MEMORY_BYTES = 512 * 2**20
# A template can only burn CPU time; this ends what the system does not: imports on a machine that is stuck.
WALL_SECONDS = 300
# What Python and its libraries need to start; nothing that grants access to anything.
ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


def plain_texts(
    documents: Iterable[Any], tokenizer: Tokenizer, add_generation_prompt: bool = False
) -> Iterator[tuple[str, bool]]:
    """Each document as text, and whether special tokens are still to be added: not to what a template wrote.

    Args:
        documents: texts, and chats as lists of messages.
        tokenizer: whose chat template is used; without one a chat becomes lines of `role: content`.
        add_generation_prompt: whether the text of a chat ends where the assistant would begin.

    Raises:
        BadInputError: the template refuses a chat with and without its system message.
    """
    template = _template_of(tokenizer)
    remaining, size = iter(documents), FIRST_BATCH if template else 1
    while batch := list(islice(remaining, size)):
        chats = [] if template is None else [document for document in batch if not isinstance(document, str)]
        rendered = iter(_render_chats(template or "", chats, tokenizer, add_generation_prompt))
        for document in batch:
            if isinstance(document, str):
                yield document, True
            elif template is None:
                lines = [f"{message['role']}: {message['content']}" for message in document]
                yield "\n".join([*lines, "assistant:"] if add_generation_prompt else lines), True
            else:
                yield next(rendered), False
        size *= 2 if template else 1


def render(
    template: str,
    conversations: Sequence[Conversation],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = False,
) -> list[str | BadInputError]:
    """Render conversations in transformers' sandbox, all of them in one child process.

    Args:
        template: Jinja, as in tokenizer_config.json.
        conversations: what is rendered; each by itself, with the same template.
        special_tokens: `bos_token`, `eos_token` and others by these names.
        add_generation_prompt: whether the text ends where the assistant would begin.

    Returns:
        For each conversation its text, or the error that the template answered it with.

    Raises:
        BadInputError: the template took more time or memory than it may.
    """
    if not conversations:
        return []
    request = {
        "template": template,
        "conversations": [[dict(message) for message in conversation] for conversation in conversations],
        "special_tokens": dict(special_tokens),
        "add_generation_prompt": add_generation_prompt,
        "cpu_seconds": CPU_SECONDS + len(conversations) // 100,
        "memory_bytes": MEMORY_BYTES,
    }
    answers = json.loads(_ask_child(json.dumps(request)))["rendered"]
    return [answer["text"] if "text" in answer else _refusal(answer["error"]) for answer in answers]


def _template_of(tokenizer: Tokenizer) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several, and none of them is the default
        raise _refusal(str(error).splitlines()[0]) from error


def _render_chats(
    template: str, chats: Sequence[Conversation], tokenizer: Tokenizer, add_generation_prompt: bool
) -> list[str]:
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    answers = render(template, chats, special_tokens, add_generation_prompt)
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, BadInputError)]
    # Many templates have no system role; the chat without it is better than none.
    without = [[message for message in chats[number] if message["role"] != "system"] for number in refused]
    answers_without = dict(zip(refused, render(template, without, special_tokens, add_generation_prompt), strict=True))
    texts: list[str] = []
    for number, answer in enumerate(answers):
        found = answers_without.get(number, answer)
        if isinstance(found, BadInputError):
            raise found
        texts.append(found)
    return texts


@functools.lru_cache(maxsize=8)  # the artifacts of one checkpoint ask for the same chats
def _ask_child(request: str) -> str:
    script = Path(__file__).with_name("chat_child.py")
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # -P: modules of the working directory are not imported
            [sys.executable, "-P", script],
            input=request,
            capture_output=True,
            encoding="utf-8",
            timeout=WALL_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refusal(f"it did not end within {WALL_SECONDS} s") from error
    if done.returncode == -signal.SIGXCPU:
        raise _refusal(f"it took more than {CPU_SECONDS} s of CPU time")
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise _refusal(f"it broke the process that ran it ({last[:300]})")
    return done.stdout


def _refusal(reason: str) -> BadInputError:
    return BadInputError(
        f"the chat template does not render: {reason}",
        "mend chat_template in tokenizer_config.json or chat_template.jinja, or calibrate with plain text",
    )
