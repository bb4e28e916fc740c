"""What becomes of an answer of llama.cpp's, and of none; llama.cpp itself is in tests/peers."""

import sys

import pytest
from vocab.gguf_tiny import as_json, byte_level, llama

from quantkit.errors import BadInputError, DiskError, NotFoundError
from quantkit.vocab import gguf_verify
from quantkit.vocab.gguf import gguf_vocabulary
from quantkit.vocab.gguf_pre_table import GPT2
from quantkit.vocab.gguf_verify import Verification, verify, write_vocabulary
from quantkit.weights.gguf_read import read_gguf

TEXTS = ("<|endoftext|>x", "a b", "")


@pytest.fixture
def tokenizer():
    return byte_level(as_json((GPT2,)))


def made_of(tokenizer, **options):
    return gguf_vocabulary(tokenizer, "some-model", len(tokenizer), {}, **options)


def answers_with(monkeypatch, change):
    """llama.cpp answers as transformers would, but for `change`."""

    tokenizer = byte_level(as_json((GPT2,)))

    def ask(file, plain, framed, name, python=None):
        assert file.stat().st_size > 10_000
        answer = {"plain": tokenizer(list(plain))["input_ids"], "framed": tokenizer(list(framed))["input_ids"]}
        change(answer)
        return answer

    monkeypatch.setattr(gguf_verify, "ask", ask)


def test_the_same_ids_are_said_to_be_the_same(tokenizer, monkeypatch):
    answers_with(monkeypatch, lambda answer: None)
    found = verify(made_of(tokenizer), tokenizer, TEXTS)
    assert found == Verification(len(TEXTS), 0, None)
    assert found.note == "llama.cpp's tokenizer gives the same ids on 3 texts"
    assert verify(made_of(tokenizer), tokenizer).compared > 250


@pytest.mark.parametrize("way", ["plain", "framed"])
def test_a_difference_is_refused_with_its_text(tokenizer, monkeypatch, way):
    answers_with(monkeypatch, lambda answer: answer[way][0].append(7))
    with pytest.raises(BadInputError) as caught:
        verify(made_of(tokenizer), tokenizer, TEXTS)
    assert str(caught.value).startswith(
        "llama.cpp would tokenize otherwise than some-model does: of '<|endoftext|>x' it"
    )
    assert ", 7], expected [0, " in str(caught.value)


def test_a_difference_is_told_where_the_user_chose_the_pre_tokenizer(tokenizer, monkeypatch):
    answers_with(monkeypatch, lambda answer: answer["plain"][0].append(7))
    found = verify(made_of(tokenizer, pre="falcon"), tokenizer, TEXTS)
    assert found.difference is not None
    assert found.note == f"llama.cpp's tokenizer was compared and differs: {found.difference}"


def test_texts_that_a_limit_touches_are_left_aside(monkeypatch):
    tokenizer = byte_level(as_json((GPT2,)), lambda data: data["model"]["vocab"].update({"</s>": 5000}))
    answers_with(monkeypatch, lambda answer: None)
    found = verify(made_of(tokenizer), tokenizer, (*TEXTS, "a</s>b"))
    assert (found.compared, found.touched) == (3, 1)
    assert found.note == "llama.cpp's tokenizer gives the same ids on 3 texts, 1 were left aside"


def test_a_python_without_llama_cpp_is_told(tokenizer, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    with pytest.raises(NotFoundError, match=r"llama\.cpp's tokenizer cannot be asked: xllamacpp is not installed"):
        verify(made_of(tokenizer), tokenizer, TEXTS, bare)


def test_an_endless_child_is_ended(tokenizer, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(gguf_verify, "CHILD", child)
    monkeypatch.setattr(gguf_verify, "SECONDS", 0.2)
    with pytest.raises(BadInputError, match=r"llama\.cpp did not tokenize for some-model within 0\.2 s"):
        verify(made_of(tokenizer), tokenizer, TEXTS)


def test_an_abort_is_told_with_what_was_said(tokenizer, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import os, sys\nprint('load: error: no merges', file=sys.stderr)\nos.abort()\n")
    monkeypatch.setattr(gguf_verify, "CHILD", child)
    with pytest.raises(BadInputError, match=r"\(exit code -6\): load: error: no merges"):
        verify(made_of(tokenizer), tokenizer, TEXTS)


def test_the_file_is_a_whole_gguf_file(tmp_path):
    path = tmp_path / "vocabulary.gguf"
    made = made_of(llama())
    write_vocabulary(path, made)
    read = read_gguf(path)
    assert read.metadata["general.name"].value == "some-model"
    assert read.metadata["tokenizer.ggml.tokens"].value[:3] == ("<unk>", "<s>", "</s>")
    assert read.tensors["token_embd.weight"].shape == (made.size, 32)
    with pytest.raises(DiskError):
        write_vocabulary(tmp_path / "absent" / "vocabulary.gguf", made)
