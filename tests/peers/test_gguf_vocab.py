"""Vocabularies in llama.cpp itself: ids and text of every kind of tokenizer, pre-tokenizer and seed system."""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from peers.seed_systems import rotary, xgen_7b, xglm_564m, xverse_13b, xwin_lm
from tokenizers import AddedToken
from vocab.gguf_tiny import END, HARD, as_json, byte_level, llama, of_row, spm_variant, unigram
from vocab.test_gguf_vocabulary import metaspace
from vocab.texts import shipped

from quantkit.errors import BadInputError
from quantkit.families.lookup import artifact_config, family_of
from quantkit.vocab import xgen
from quantkit.vocab.corpus import corpus
from quantkit.vocab.gguf import gguf_vocabulary
from quantkit.vocab.gguf_pre_table import CL100K, GPT2, ONE_DIGIT, TABLE
from quantkit.vocab.gguf_verify import ask, verify, write_vocabulary
from quantkit.vocab.load import load_tokenizer

PYTHON = Path(__file__).parents[2] / ".venv-peers-llama-cpp" / "bin" / "python"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make peers"),
]
# Fifteen languages, code, whitespace, emoji, numbers, special tokens, and whole sentences of nine more sets.
TEXTS = (*corpus([END, "</s>"]), *HARD, "an unreachable word, unreachable", *shipped()[::3])

ROW_TEXTS = (*TEXTS[: len(corpus([END, "</s>"])) + len(HARD) + 1], *shipped()[::9])


def checked(tokenizer, texts=TEXTS, name="some-model", **options):
    """The vocabulary, and what llama.cpp was found to do with it."""
    made = gguf_vocabulary(tokenizer, name, len(tokenizer) + 3, {}, **options)
    return made, verify(made, tokenizer, texts, PYTHON)


def test_there_are_texts_enough():
    assert len(TEXTS) > 500


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_pre_tokenizer_splits_as_its_row_says(row):
    """The vocabulary merges across words: another splitting is other ids."""
    made, found = checked(of_row(row), ROW_TEXTS)
    assert made.pre == row.name
    assert found.compared >= len(ROW_TEXTS) - (60 if row.limits else 0)


def test_the_limits_of_a_row_are_real():
    """Without them llama.cpp would be held to what it cannot do."""
    for row in TABLE:
        for limit in row.limits:
            tokenizer = of_row(row)
            made = gguf_vocabulary(tokenizer, "some-model", len(tokenizer), {})
            others = [one for one in made.limits if one != limit]
            texts = [text for text in TEXTS if limit.touches(text) and not any(one.touches(text) for one in others)]
            assert texts
            with pytest.raises(BadInputError, match="would tokenize otherwise"):
                verify(gguf_without(made, limit), tokenizer, texts, PYTHON)


def gguf_without(made, limit):
    return replace(made, limits=tuple(one for one in made.limits if one != limit))


def test_another_pre_tokenizer_is_seen():
    tokenizer = byte_level(as_json((GPT2,)), bos_token=END)
    made, found = checked(tokenizer, pre="qwen2")
    assert made.pre == "qwen2"
    assert "expected" in found.difference
    _, found = checked(tokenizer, pre="phi-2")
    assert found.difference is None


def test_words_are_taken_whole_only_where_merges_are_ignored():
    def ignore(data):
        data["model"]["vocab"]["Ġunreachable"] = 5000
        data["model"]["ignore_merges"] = True

    tokenizer = byte_level(as_json((CL100K,)), ignore, bos_token=END)
    assert tokenizer(" unreachable", add_special_tokens=False)["input_ids"] == [5000]
    assert checked(tokenizer)[0].pre == "llama-bpe"
    assert "unreachable" in checked(tokenizer, pre="dbrx")[1].difference


@pytest.mark.parametrize("options", [{}, {"add_bos": False, "add_eos": True}], ids=["bos", "eos"])
def test_sentencepiece_bpe_without_its_model(options):
    made, found = checked(llama(**options))
    assert (made.kind, found.touched) == ("llama", 0)


@pytest.mark.parametrize("scheme", ["never", "always", "first"])
def test_sentencepiece_bpe_with_spaces_as_metaspace_puts_them(scheme):
    _, found = checked(spm_variant(metaspace(scheme)))
    assert found.compared > 450
    assert (found.touched == 0) == (scheme == "never")


def test_runs_of_spaces_among_the_added_tokens():
    def add(data):
        for text, special in (("▁▁", False), ("▁▁▁▁", False), ("\n\n", False)):
            number = data["model"]["vocab"].setdefault(text, len(data["model"]["vocab"]))
            entry = {"id": number, "content": text, "special": special, "normalized": False}
            data["added_tokens"].append(entry | {"lstrip": False, "rstrip": False, "single_word": False})
        data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

    tokenizer = spm_variant(add)
    made, found = checked(tokenizer)
    assert 0 < found.touched < 5
    assert pieces(made, tokenizer, ["a    b"]) == ["a    b"]


def test_unigram():
    made, found = checked(unigram())
    assert (made.kind, found.compared > 300) == ("t5", True)


def pieces(made, tokenizer, texts):
    """What llama.cpp prints for the ids of texts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary(file, made)
        answer = ask(file, texts, [], made.name, PYTHON)
    return [bytes.fromhex(one).decode() for one in answer["pieces"]]


@pytest.mark.parametrize(
    ("tokenizer", "prefix"),
    [(llama(), " "), (byte_level(as_json((ONE_DIGIT,))), ""), (unigram(), " ")],
    ids=["llama", "gpt2", "t5"],
)
def test_ids_are_printed_as_the_text_that_they_stand_for(tokenizer, prefix):
    made = gguf_vocabulary(tokenizer, "some-model", len(tokenizer), {})
    texts = ["The river rose", "a b  c" if made.kind != "t5" else "a b c", "1 + 2 = 3"]
    texts += [] if made.kind == "t5" else ["河水在夜里上涨 🙂\n\tx", "Straße"]
    assert pieces(made, tokenizer, texts) == [prefix + text for text in texts]


def test_special_tokens_that_strip_are_those_of_phi_3():
    def stripping(data):
        for entry in data["added_tokens"]:
            entry["rstrip"] = entry["content"] == "</s>"

    tokenizer = spm_variant(stripping)
    tokenizer.add_special_tokens({"pad_token": AddedToken(END, normalized=False)})
    texts = ["a</s> b", "a</s>\n\nb", "<s> a", f"{END} a", "a"]
    made, found = checked(tokenizer, texts, "Phi-3-mini")
    assert (made.name, found.compared) == ("Phi-3-mini", 5)
    made, found = checked(tokenizer, texts, "another")
    assert (found.compared, found.touched) == (3, 2)
    plain, found = checked(llama(), texts, "my-phi3-tune")
    assert (plain.name, found.compared) == ("my-Phi 3-tune", 5)


def test_what_looks_special_is_special_to_llama_cpp():
    tokenizer = byte_level(as_json((GPT2,)), lambda data: data["model"]["vocab"].update({"</s>": 5000}))
    made, found = checked(tokenizer)
    assert found.touched > 0
    with pytest.raises(BadInputError, match="of '</s>' it makes"):
        verify(gguf_without(made, made.limits[0]), tokenizer, ["</s>"], PYTHON)


SEEDS = {
    "XGen": xgen_7b,
    "XVERSE": partial(xverse_13b, name="XVERSE-13B-Chat", context=8192, rope=rotary(10000.0)),
    "Xwin": lambda parent, _: xwin_lm(parent, "Xwin-LM-13B-V0.1", with_json=False),
    "XGLM": lambda parent, _: xglm_564m(parent),
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_system_has_its_ids(name, tmp_path, monkeypatch):
    seed = SEEDS[name](tmp_path, tmp_path / "mark")
    for key, value in seed.gpt2.items():
        monkeypatch.setattr(xgen, key, value)
    published = json.loads((seed.folder / "config.json").read_text())
    config = artifact_config(family_of(published), published)
    tokenizer = load_tokenizer(seed.folder, config)
    made = gguf_vocabulary(tokenizer, seed.folder.name, published["vocab_size"], config)
    found = verify(made, tokenizer, seed.texts, PYTHON)
    assert made.kind == {"XGen": "gpt2", "XGLM": "t5"}.get(name, "llama")
    assert found.compared > 1000
    assert (found.touched == 0) == (name in ("XGen", "Xwin"))
    live = [text for text in seed.texts if not any(limit.touches(text) for limit in made.limits)]
    file = tmp_path / "vocabulary.gguf"
    write_vocabulary(file, made)
    answer = ask(file, [], live, name, PYTHON)
    for text, ids in zip(live, answer["framed"], strict=True):  # those of tiktoken, sentencepiece or tokenizers
        assert ids == list(seed.ids(text)), text
    assert (made.metadata["tokenizer.chat_template"].value if seed.chat else None) == tokenizer.chat_template
