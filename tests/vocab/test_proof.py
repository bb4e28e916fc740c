"""Two tokenizers are told apart by any single fault, and are the same otherwise."""

import copy
import json
from dataclasses import replace

import pytest
import tiny

from quantkit.vocab.corpus import LANGUAGES, corpus
from quantkit.vocab.load import load_files
from quantkit.vocab.proof import difference, json_difference, portrait

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "chat_template": "{{ messages[0].content }}",
}


def load(made=None, **config):
    raw = tiny.tokenizer_json() if made is None else json.dumps(made)
    own = json.dumps(CONFIG | config)
    return load_files({"tokenizer.json": raw.encode(), "tokenizer_config.json": own.encode()}, None, "made")


@pytest.fixture(scope="module")
def expected():
    return portrait(load())


@pytest.fixture
def made():
    return copy.deepcopy(json.loads(tiny.tokenizer_json()))


def test_a_tokenizer_is_itself(expected):
    assert difference(expected, portrait(load())) is None
    assert json_difference(expected, tiny.tokenizer_json().encode()) is None


def test_another_order_of_merges_is_seen(expected, made):
    made["model"]["merges"].reverse()
    found = difference(expected, portrait(load(made)))
    assert found.startswith("of '")
    assert "it makes [" in found


def test_ids_of_two_tokens_exchanged_are_seen(expected, made):
    vocab = made["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    assert "it makes [" in difference(expected, portrait(load(made)))
    assert "tokenizer.json makes [" in json_difference(expected, json.dumps(made).encode())


def test_another_normalizer_is_seen(expected, made):
    made["normalizer"] = {"type": "NFKC"}
    assert "it makes [" in difference(expected, portrait(load(made)))


def test_a_space_in_front_is_seen(expected, made):
    made["pre_tokenizer"]["add_prefix_space"] = True
    assert "it makes [" in difference(expected, portrait(load(made)))


def test_another_prefix_is_seen(expected, made):
    made["post_processor"] = None
    found = difference(expected, portrait(load(made)))
    assert "expected [1, " in found


def test_another_decoder_is_seen(expected, made):
    made["decoder"] = None
    assert "it decodes " in difference(expected, portrait(load(made)))


def test_another_special_token_is_seen(expected):
    assert "'eos_token': '<pad>'" in difference(expected, portrait(load(eos_token="<pad>")))


def test_another_added_token_is_seen(expected, made):
    made["added_tokens"][2]["content"] = "<end>"
    made["model"]["vocab"]["<end>"] = made["model"]["vocab"].pop("</s>")
    assert difference(expected, portrait(load(made, eos_token="<end>"))) is not None


def test_a_token_that_the_configuration_adds_is_not_missed_in_the_file(expected):
    seen = portrait(load(pad_token="<added>"))
    assert len(seen.readings) > len(expected.readings)
    assert json_difference(seen, tiny.tokenizer_json().encode()) is None


def test_another_chat_template_is_seen(expected):
    assert difference(expected, portrait(load(chat_template="{{ 1 }}"))) == "it has another chat template"


def test_the_corpus_has_what_it_must_have():
    texts = corpus(["<s>"])
    whole = "".join(texts)
    scripts = {"LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "ARABIC", "DEVANAGARI", "GREEK", "THAI"}
    import unicodedata

    found = {unicodedata.name(letter, "").partition(" ")[0] for letter in whole}
    assert scripts <= found
    assert len(LANGUAGES) >= 10
    for needed in ("\u200d", "\u0301", "\t\t\t", " " * 31, "\r\n\r\n", "\u3000", "0xDEADBEEF", "a<s>b", "🇯🇵"):
        assert needed in whole
    assert len(set(texts)) == len(texts)


def test_a_long_difference_is_cut(expected):
    long = replace(expected.readings[0], text="x" * 500, ids=(1,) * 100)
    other = replace(long, ids=(2,) * 100)
    found = difference(replace(expected, readings=(long,)), replace(expected, readings=(other,)))
    assert len(found) < 250
    assert "and 88 more" in found
