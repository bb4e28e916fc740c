"""Tokenizers and calibration texts: refused before the folder of the artifact is made."""

import json

from spoil import DEEP, HTML, LFS, Case, both, folder_named, link_named, pipe_named, remove, table, write

FILE = "own.jsonl"
FEW = b'{"text": "One short line."}\n'


def text(name, content, *says, hint=None, file=FILE, code=3):
    options = ("--calibration", f"model/{file}")
    return Case(name, write(file, content), says, code=code, options=options, hint=hint, planned=False)


@table(
    text("empty", b"", "the calibration text has 0 tokens, less than one sample of 32", hint="give more text"),
    text("of-white-space", b" \n\n \n", "tokens, less than one sample of 32", hint="give more text", file="own.txt"),
    text("too-short", FEW, "tokens, less than one sample of 32", hint="a smaller --sequence-length"),
    text("bytes", bytes(range(256)), "own.txt is not UTF-8 text (byte 128)", file="own.txt"),
    text("utf-16", "hello".encode("utf-16"), "own.txt is not UTF-8 text (byte 0)", file="own.txt"),
    text("of-another-key", b'{"content": "x"}\n', "own.jsonl line 1 has neither text nor messages", hint='{"text": '),
    text("a-number", FEW + b'{"text": 5}\n', "own.jsonl line 2 has neither text nor messages", hint='{"text": '),
    text("a-list", b'["a"]\n', "own.jsonl line 1 has neither text nor messages"),
    text("no-messages", b'{"messages": []}\n', "own.jsonl line 1 has neither text nor messages", hint="messages"),
    text("half-a-message", b'{"messages": [{"role": "user"}]}\n', "own.jsonl line 1 has neither text nor messages"),
    text("cut-off", FEW + b'{"text": "a', "own.jsonl line 2 is not JSON: Unterminated string"),
    text("with-a-bom", b"\xef\xbb\xbf" + FEW, "own.jsonl line 1 is not JSON", "BOM"),
    text("nested-deeply", DEEP, "own.jsonl line 1 is not JSON", "recursion"),
    text("a-number-of-6000-digits", b'{"text":' + b"9" * 6000 + b"}", "own.jsonl line 1 is not JSON", "digits"),
    text("half-a-character", FEW + b'{"text": "\\ud800"}\n', "own.jsonl line 2 holds half of a surrogate pair"),
    text("half-a-character-said", b'{"messages": [{"role": "user", "content": "\\ud800"}]}\n', "half of a surrogate"),
    Case(
        "a-pipe",
        pipe_named("own.txt"),
        ("no calibration text 'model/own.txt'",),
        code=2,
        options=("--calibration", "model/own.txt"),
    ),
)
def test_a_calibration_text_that_is_none(case, refused):
    refused(case)


TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
WITHOUT = "--method rtn needs"


def broken(name, spoil, *says, hint=None):
    return Case(name, spoil, says, hint=hint, planned=False)


@table(
    broken("absent", remove(TOKENIZER), "the tokenizer of model does not load", hint=WITHOUT),
    broken("absent-with-its-settings", remove(TOKENIZER, SETTINGS), "the tokenizer of model does not load"),
    broken("empty", write(TOKENIZER, b""), "tokenizer"),
    broken("a-list", write(TOKENIZER, b"[]"), "tokenizer"),
    broken("an-object", write(TOKENIZER, b"{}"), "tokenizer"),
    broken("cut-off", write(TOKENIZER, b'{"version": "1.0", "model": {'), "tokenizer"),
    broken("bytes", write(TOKENIZER, bytes(range(256))), "tokenizer"),
    broken("nested-deeply", write(TOKENIZER, DEEP), "tokenizer"),
    broken("an-lfs-pointer", write(TOKENIZER, LFS), "tokenizer"),
    broken("a-web-page", write(TOKENIZER, HTML), "tokenizer"),
    broken("a-folder", folder_named(TOKENIZER), "tokenizer"),
    broken("a-pipe", pipe_named(TOKENIZER), "tokenizer"),
    broken("a-device", link_named(TOKENIZER, "/dev/zero"), "tokenizer"),
)
def test_a_tokenizer_that_is_none(case, refused):
    refused(case)


@table(
    *[
        Case(name, write(SETTINGS, content), (SETTINGS, *says))
        for name, content, *says in (
            ("empty", b"", "an empty file"),
            ("a-list", b"[]", "JSON of type list"),
            ("cut-off", b'{"bos_token": "', "no valid JSON"),
            ("nested-deeply", DEEP, "no valid JSON"),
            ("an-lfs-pointer", LFS, "a git-LFS pointer"),
            ("a-web-page", HTML, "a web page"),
        )
    ]
)
def test_tokenizer_settings_that_are_none(case, refused):
    refused(case)


def template(text):
    """A chat template, and chats to render with it."""

    def spoil(folder):
        settings = json.loads((folder / SETTINGS).read_text()) | {"chat_template": text}
        (folder / SETTINGS).write_text(json.dumps(settings))

    return both(spoil, write(FILE, b'{"messages": [{"role": "user", "content": "Hello there."}]}\n' * 40))


CHATS = ("--calibration", f"model/{FILE}")


@table(
    *[
        Case(name, template(text), ("chat template",), options=CHATS, planned=False)
        for name, text in {
            "cut-off": "{% for message in messages %}",
            "an-unknown-filter": "{{ messages | nonsense }}",
            "that-refuses": "{{ raise_exception('no') }}",
            "a-division-by-zero": "{{ 1 / 0 }}",
            "of-what-is-not-there": "{{ messages[0].nothing.at.all }}",
            "out-of-its-sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "a-range-without-end": "{% for i in range(10 ** 12) %}x{% endfor %}",
            "a-text-without-end": "{{ 'a' * 10 ** 12 }}",
        }.items()
    ]
)
def test_a_chat_template_that_does_not_render(case, refused):
    refused(case)
