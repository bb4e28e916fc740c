"""The supplied chat templates against the formats that their checkpoints were trained with, written out by hand."""

import pytest

from quantkit.errors import BadInputError
from quantkit.vocab.chat import render
from quantkit.vocab.templates import TEMPLATES, VICUNA, XGEN, XVERSE, template_for

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "67 x 39?"}
ANSWER = {"role": "assistant", "content": "2613"}
AGAIN = {"role": "user", "content": "And\n 2?"}
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
XGEN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# Template, messages, whether the assistant is to go on, the text.
FORMATS = [
    (VICUNA, [QUESTION], True, f"<s>{VICUNA_SYSTEM} USER: 67 x 39? ASSISTANT:"),
    (
        VICUNA,
        [QUESTION, ANSWER, AGAIN],
        True,
        f"<s>{VICUNA_SYSTEM} USER: 67 x 39? ASSISTANT: 2613</s>USER: And\n 2? ASSISTANT:",
    ),
    (VICUNA, [SYSTEM, QUESTION, ANSWER], False, "<s>Be brief. USER: 67 x 39? ASSISTANT: 2613</s>"),
    (XGEN, [QUESTION], True, f"{XGEN_SYSTEM}\n\n### Human: 67 x 39?\n### Assistant:"),
    (
        XGEN,
        [QUESTION, ANSWER, AGAIN],
        True,
        f"{XGEN_SYSTEM}\n\n### Human: 67 x 39?\n### Assistant: 2613\n### Human: And\n 2?\n### Assistant:",
    ),
    (XGEN, [SYSTEM, QUESTION, ANSWER], False, "Be brief.\n\n### Human: 67 x 39?\n### Assistant: 2613\n"),
    (XVERSE, [QUESTION], True, "Human: 67 x 39?\n\nAssistant: "),
    (
        XVERSE,
        [QUESTION, ANSWER, AGAIN],
        True,
        "Human: 67 x 39?\n\nAssistant: 2613</s>Human: And\n 2?\n\nAssistant: ",
    ),
    (XVERSE, [SYSTEM, QUESTION, ANSWER], False, "Be brief.\n\nHuman: 67 x 39?\n\nAssistant: 2613</s>"),
]


TOOL = [QUESTION, {"role": "tool", "content": "1"}]


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_chat_is_written_as_in_training(template, goes_on):
    rows = [(messages, text) for one, messages, generates, text in FORMATS if (one, generates) == (template, goes_on)]
    *texts, refused = render(template.text, [*(messages for messages, _ in rows), TOOL], SPECIAL, goes_on)
    assert texts == [text for _, text in rows]
    assert rows
    assert isinstance(refused, BadInputError)
    assert "expected user and assistant, found tool" in str(refused)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_template_is_found_by_the_exact_name_only(template):
    for repository in template.repositories:
        name = repository.rpartition("/")[2]
        assert template_for(repository, "0123abcd") is template
        assert template_for(None, name) is template
        assert template_for("someone/" + name, name) is None
        assert template_for(None, name + "-finetuned") is None
        assert template_for(None, name.swapcase()) is None


def test_no_repository_stands_in_two_rows():
    names = [name.rpartition("/")[2] for template in TEMPLATES for name in template.repositories]
    assert len(names) == len(set(names))
