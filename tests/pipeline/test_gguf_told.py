"""The process that is asked about a checkpoint: how it may end, and llama.cpp that is there and cannot be asked."""

import os
import sys
import time

import pytest
from tiny import tokenizer_json
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from quantkit.errors import BadInputError, OutOfMemoryError
from quantkit.pipeline import gguf_told
from quantkit.vocab.gguf import gguf_vocabulary

LONG = b"?" * 2**20  # more than a pipe holds


def nothing():
    pass


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Puts a shell script in Python's place."""

    def becomes(script):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return becomes


@pytest.mark.parametrize("question", [b"?", LONG])
def test_a_child_that_the_system_kills_had_no_memory(child, question):
    child("kill -KILL $$")
    with pytest.raises(OutOfMemoryError, match="asks transformers about the checkpoint was killed: it needs about"):
        gguf_told._ask(question, nothing)


@pytest.mark.parametrize("question", [b"?", LONG])
def test_a_child_that_does_not_listen_is_told_by_its_exit_code(child, question):
    child("exit 5")
    with pytest.raises(RuntimeError, match="planning ended with exit code 5"):
        gguf_told._ask(question, nothing)


def test_a_child_does_not_outlive_what_fails_meanwhile(child, tmp_path):
    started = tmp_path / "id"
    child(f"echo $$ > '{started}.new'\nmv '{started}.new' '{started}'\ncat > /dev/null\nexec sleep 600")

    def fails():
        while not started.exists():
            time.sleep(0.01)
        raise BadInputError("no")

    with pytest.raises(BadInputError):
        gguf_told._ask(LONG, fails)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_llama_cpp_that_cannot_be_asked_is_a_note(monkeypatch, tmp_path):
    package = tmp_path / "xllamacpp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "xllamacpp.so").write_bytes(b"of another system")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json()))
    vocabulary = gguf_vocabulary(tokenizer, "some-model", len(tokenizer), {})
    note = gguf_told._verification(vocabulary, tokenizer)
    assert note.startswith("the tokenizer was not compared; llama.cpp's tokenizer cannot be asked: ")
    assert str(package / "xllamacpp.so") in note
