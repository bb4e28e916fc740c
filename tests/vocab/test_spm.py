"""tokenizer.model rebuilt as tokenizer.json, against the sentencepiece library."""

import contextlib
import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocab.texts import many_texts, shipped

from quantkit.errors import BadInputError
from quantkit.vocab.spm import BPE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, read_spm, rebuild

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "character_coverage": 0.98,
}


def train(size=1200, **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in shipped() for line in text.split("\n") if line]),
        model_writer=model,
        vocab_size=size,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def llama() -> bytes:
    return train(**LLAMA)


def test_the_vocabulary_is_read_as_sentencepiece_reads_it(llama):
    model, witness = read_spm(llama), sentencepiece.SentencePieceProcessor(model_proto=llama)
    assert len(model.pieces) == witness.vocab_size() == 1200
    for number, piece in enumerate(model.pieces):
        assert piece.text == witness.id_to_piece(number)
        assert piece.score == witness.get_score(number)
        assert (piece.kind == CONTROL) == witness.is_control(number)
        assert (piece.kind == UNKNOWN) == witness.is_unknown(number)
    assert sum(piece.kind == NORMAL for piece in model.pieces) == 1200 - 3 - 256
    assert (model.model_type, model.byte_fallback, model.charsmap) == (BPE, True, b"")
    assert model.is_llama_like


def test_ids_and_text_are_those_of_sentencepiece(llama):
    made = Tokenizer.from_str(rebuild(read_spm(llama)).decode())
    witness = sentencepiece.SentencePieceProcessor(model_proto=llama)
    for text in many_texts():
        if any(token in text for token in ("<s>", "</s>", "<unk>")):
            continue  # sentencepiece knows no special tokens in text
        text = text.replace("\x00", "")  # where sentencepiece ends a text
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == witness.encode(text), text
        assert made.decode(ids) == witness.decode(ids), text


def made_of(raw, **options):
    return Tokenizer.from_str(rebuild(read_spm(raw), **options).decode())


def test_special_tokens_are_found_in_text_and_put_around_it(llama):
    inside = made_of(llama, add_bos=False).encode("a</s>").ids
    assert inside[-1] == 2
    assert made_of(llama).encode("a</s>").ids == [1, *inside]
    assert made_of(llama, add_eos=True).encode("a</s>").ids == [1, *inside, 2]


def test_a_space_follows_special_tokens_in_legacy_files_only(llama):
    witness = sentencepiece.SentencePieceProcessor(model_proto=llama)
    first, second = witness.encode("river"), witness.encode("the night")
    assert made_of(llama).encode("river</s>the night").ids == [1, *first, 2, *second]
    later = made_of(llama, legacy=False).encode("river</s>the night").ids
    assert later[: len(first) + 2] == [1, *first, 2]
    assert later[len(first) + 2 :] != second
    assert made_of(llama, legacy=False).encode("the night").ids == [1, *second]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"model_type": "unigram"}, {"model_type": UNIGRAM}),
        ({"byte_fallback": False}, {"byte_fallback": False}),
        ({"add_dummy_prefix": False}, {"add_dummy_prefix": False}),
        ({"remove_extra_whitespaces": True}, {"remove_extra_whitespaces": True}),
    ],
)
def test_models_of_another_kind_are_told_apart(changed, found):
    model = read_spm(train(**LLAMA | changed))
    assert {key: getattr(model, key) for key in found} == found
    assert not model.is_llama_like


def test_a_model_that_normalizes_is_told_apart():
    model = read_spm(train(**LLAMA | {"normalization_rule_name": "nmt_nfkc"}))
    assert len(model.charsmap) > 1000
    assert not model.is_llama_like


@pytest.mark.parametrize("raw", [b"", b"{}", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x08\x01"])
def test_other_bytes_are_refused(raw):
    with pytest.raises(BadInputError, match="found no sentencepiece model"):
        read_spm(raw)


def test_a_model_cut_off_is_refused(llama):
    with pytest.raises(BadInputError, match="ends at byte"):
        read_spm(llama[: len(llama) // 2])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(raw):
    with contextlib.suppress(BadInputError):
        assert read_spm(raw).pieces
