"""Chats rendered in a child process, and templates that mean harm."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantkit.errors import BadInputError
from quantkit.vocab import chat, chat_child
from quantkit.vocab.chat import plain_texts, render

CHAT = [{"role": "user", "content": "67 x 39?"}, {"role": "assistant", "content": "2613"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
REFUSED = {
    "a string of a gigabyte": ("{{ 'x' * 10**9 }}", "more than 512 MiB of memory"),
    "a string that doubles": (
        "{% set ns = namespace(s='x') %}{% for i in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "more than 512 MiB of memory",
    ),
    "a huge range": ("{{ range(10**9) | list }}", "Range too big"),
    "endless recursion": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    "classes of objects": ("{{ ().__class__.__mro__ }}", "SecurityError"),
    "globals of a function": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
    "a change of the messages": ("{{ messages.append(1) }}", "SecurityError"),
    "a file": ("{% include '/etc/passwd' %}", "TypeError"),
    "a syntax error": ("{% if %}", "TemplateSyntaxError"),
    "a refusal of its own": ("{{ raise_exception('not today') }}", "TemplateError: not today"),
    "too much text": ("{% for i in range(1000) %}{{ 'x' * 20000 }}{% endfor %}", "20000000 characters"),
}


def test_conversations_are_rendered_in_their_order():
    chats = [[{"role": "user", "content": str(number)}] for number in range(300)]
    assert render(PLAIN, chats, SPECIAL) == [f"<s>user: {number}</s>" for number in range(300)]


def test_it_renders_as_transformers_does():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "  {% if tools %}tools{% endif %}\n{%- for m in messages %}\n  {{ loop.index }} {{ m | tojson }}\n"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}\n{{ add_generation_prompt }} é天🙂"
    )
    (expected,), _ = render_jinja_template([CHAT], chat_template=template, add_generation_prompt=True, **SPECIAL)
    assert render(template, [CHAT], SPECIAL, add_generation_prompt=True) == [expected]


@pytest.fixture(scope="module")
def answers():
    """What each template is answered with; two processes at a time."""
    with ThreadPoolExecutor(2) as threads:
        rendered = threads.map(lambda row: render(row[0], [CHAT], SPECIAL), REFUSED.values())
        return dict(zip(REFUSED, rendered, strict=True))


@pytest.mark.parametrize("what", REFUSED)
def test_a_template_that_does_harm_is_refused_in_one_sentence(what, answers):
    (answer,), reason = answers[what], REFUSED[what][1]
    assert isinstance(answer, BadInputError)
    assert str(answer).startswith("the chat template does not render: ")
    assert reason in str(answer)
    assert "\n" not in str(answer)
    assert "chat_template" in answer.hint


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{{ 7 ** (10 ** 9) }}",
    ],
)
def test_a_template_without_end_is_ended(template, monkeypatch):
    monkeypatch.setattr(chat, "CPU_SECONDS", 1)
    with pytest.raises(BadInputError, match="more than 1 s of CPU time"):
        render(template, [CHAT], SPECIAL)


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(chat, "WALL_SECONDS", 0.01)
    with pytest.raises(BadInputError, match=r"did not end within 0\.01 s"):
        render("hangs", [CHAT], SPECIAL)


def test_one_conversation_that_fails_leaves_the_others():
    template = "{% for m in messages %}{{ 1 / (m.content | int) }}{% endfor %}"
    answers = render(template, [[{"role": "user", "content": text}] for text in ("2", "0", "4")], SPECIAL)
    assert (answers[0], answers[2]) == ("0.5", "0.25")
    assert isinstance(answers[1], BadInputError)


def test_the_child_sees_no_secrets(monkeypatch, tmp_path):
    seen = tmp_path / "seen"
    script = tmp_path / "chat_child.py"
    script.write_text(
        f"import json, os; open({str(seen)!r}, 'w').write(json.dumps(dict(os.environ)));"
        "print(json.dumps({'rendered': [{'text': ''}]}))"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setattr(chat, "__file__", str(tmp_path / "chat.py"))
    render("secrets", [CHAT], SPECIAL)
    assert "canary" not in seen.read_text()
    assert os.environ["HF_TOKEN"] == "hf_canary"


def test_a_child_that_breaks_is_reported(monkeypatch, tmp_path):
    (tmp_path / "chat_child.py").write_text("raise SystemExit('no transformers here')")
    monkeypatch.setattr(chat, "__file__", str(tmp_path / "chat.py"))
    with pytest.raises(BadInputError, match="no transformers here"):
        render("breaks", [CHAT], SPECIAL)


def test_limits_hold_for_what_follows_them(tmp_path):
    """In a process of its own: after `limit` no file grows and no gigabyte is had."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(chat_child.__file__).parent)!r}); import chat_child\n"
        "chat_child.limit(5, 2**28)\n"
        "try: bytes(2**30)\n"
        "except MemoryError: print('memory')\n"
        f"try: print(1, file=open({str(tmp_path / 'file')!r}, 'w', buffering=1))\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["memory", "27"], done.stderr


class Templated:
    """As much of a tokenizer as templates see."""

    chat_template = PLAIN
    special_tokens_map = SPECIAL

    def get_chat_template(self):
        return self.chat_template


def test_documents_keep_their_order_and_say_who_adds_special_tokens():
    assert list(plain_texts(["one", CHAT, "two"], Templated())) == [
        ("one", True),
        ("<s>user: 67 x 39?</s><s>assistant: 2613</s>", False),
        ("two", True),
    ]


def test_without_a_template_a_chat_is_a_text_like_any_other():
    tokenizer = Templated()
    tokenizer.chat_template = None
    assert list(plain_texts([CHAT], tokenizer)) == [("user: 67 x 39?\nassistant: 2613", True)]


def test_several_templates_without_a_default_are_refused():
    tokenizer = Templated()
    tokenizer.get_chat_template = lambda: (_ for _ in ()).throw(ValueError("multiple chat templates\nmore"))
    with pytest.raises(BadInputError, match=r"multiple chat templates$"):
        list(plain_texts([CHAT], tokenizer))
