"""Which of llama.cpp's pre-tokenizers a tokenizer.json asks for."""

import pytest
from tokenizers import Tokenizer
from vocab.gguf_tiny import UNREACHABLE, as_json, byte_level, of_row, spelled_in_bytes, split

from quantkit.errors import BadInputError, UsageError
from quantkit.vocab.gguf_pre import Words, find_pre, named_pre, steps_of
from quantkit.vocab.gguf_pre_table import (
    BYTES,
    CL100K,
    DIGIT,
    DIGITS,
    GPT2,
    NAMES,
    O200K,
    ONE_DIGIT,
    PUNCTUATION,
    TABLE,
    has_inner_capitals,
    joins_digits,
    mixes_digits,
)
from quantkit.vocab.gguf_state import state_of


def has_unreachable(data):
    data["model"]["vocab"][UNREACHABLE] = 5000


def found(tokenizer):
    return find_pre(state_of(tokenizer, "some-model")).name


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_row_is_found_by_what_it_says(row):
    tokenizer = of_row(row)
    Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # its regular expressions compile
    assert found(tokenizer) == row.name


def test_names_are_unique_and_known_to_llama_cpp():
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))
    assert set(names) <= NAMES


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        (spelled_in_bytes(use_regex=True), (GPT2,)),
        ({"type": "Sequence", "pretokenizers": [split("[\r\n]"), spelled_in_bytes()]}, (r"[\r\n]",)),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]},
                    spelled_in_bytes(use_regex=True),
                ],
            },
            (DIGIT, GPT2),
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Punctuation", "behavior": "Contiguous"},
                    spelled_in_bytes(use_regex=True),
                    {"type": "Digits", "individual_digits": False},
                ],
            },
            (PUNCTUATION, GPT2, BYTES, DIGITS),
        ),
    ],
)
def test_a_pre_tokenizer_is_brought_into_one_spelling(written, steps):
    assert steps_of(state_of(byte_level(written), "some-model")) == steps


@pytest.mark.parametrize(
    "spelling", ["(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "'(?i:[sdmt]|ll|ve|re)"]
)
def test_short_forms_are_the_same_in_every_spelling(spelling):
    written = as_json((ONE_DIGIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", spelling),))
    assert found(byte_level(written)) == "qwen2"


def test_what_llama_cpp_does_not_know_is_refused_with_its_regular_expression():
    with pytest.raises(BadInputError) as caught:
        found(byte_level(as_json((r"\p{N}{1,4}| ?\p{L}+",))))
    assert str(caught.value) == (
        "the tokenizer of some-model has no equal in llama.cpp: its pre-tokenizer is none of those that "
        r"llama.cpp knows (found \p{N}{1,4}| ?\p{L}+)"
    )
    assert "--pre" in caught.value.hint


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([spelled_in_bytes() | {"add_prefix_space": True}], "the step ByteLevel with"),
        ([split("q") | {"behavior": "MergedWithNext"}, spelled_in_bytes()], "the step Split with"),
        ([{"type": "UnicodeScripts"}, spelled_in_bytes()], "the step UnicodeScripts with"),
        ([spelled_in_bytes(), spelled_in_bytes()], "it does not spell text in bytes exactly once"),
    ],
)
def test_a_step_that_llama_cpp_has_not_is_refused(steps, words):
    with pytest.raises(BadInputError, match=words):
        found(byte_level({"type": "Sequence", "pretokenizers": steps}))


def test_without_bos_a_name_is_taken_that_assumes_none():
    assert found(byte_level(as_json((CL100K,)))) == "chatglm-bpe"
    assert found(byte_level(as_json((CL100K,)), bos_token="<|endoftext|>")) == "dbrx"


def test_ignore_merges_decides_only_where_it_matters():
    def ignore(data):
        data["model"]["ignore_merges"] = True

    def ignore_and_unreachable(data):
        ignore(data)
        data["model"]["vocab"]["Ġunreachable"] = 5000

    assert found(byte_level(as_json((ONE_DIGIT,)), ignore)) == "qwen2"
    with pytest.raises(BadInputError, match="ignore_merges true"):
        found(byte_level(as_json((ONE_DIGIT,)), ignore_and_unreachable))
    assert found(byte_level(as_json((O200K,)))) == "granite-embed-multi-97m"
    assert found(byte_level(as_json((O200K,)), has_unreachable)) == "gpt-4o"


def test_words_tell_what_merges_reach_and_what_digits_join():
    def words(**options):
        return Words(state_of(byte_level(**options), "some-model"))

    assert words().are_reached_by_merges
    assert words().have_none(lambda token: len(token) > 12 * 4)
    told = {digits: words(digits=digits) for digits in ("joined", "runs", "single")}
    assert [digits for digits, one in told.items() if one.have_none(joins_digits)] == ["single"]
    assert [digits for digits, one in told.items() if one.have_none(mixes_digits)] == ["runs"]
    assert not words(change=has_unreachable).are_reached_by_merges


@pytest.mark.parametrize("name", ["falcon", "deepseek-llm"])
def test_a_pre_tokenizer_that_presumes_something_of_digits_is_not_taken_for_others(name):
    (row,) = (row for row in TABLE if row.name == name)
    with pytest.raises(BadInputError, match=r"none of those that llama\.cpp knows"):
        found(byte_level(as_json(row.steps)))


def test_a_name_of_the_users_is_taken_or_refused():
    assert named_pre("falcon").steps
    assert named_pre("kimi-k2").steps == ()
    with pytest.raises(UsageError, match=r"llama\.cpp has no such pre-tokenizer") as caught:
        named_pre("qwen-2")
    assert caught.value.hint == "did you mean qwen2?"
    with pytest.raises(UsageError) as caught:
        named_pre("###")
    assert "falcon" in caught.value.hint


def test_capitals_inside_of_words_beyond_ascii():
    assert has_inner_capitals("die ÉCOLE")
    assert has_inner_capitals("éA")
    assert not has_inner_capitals("École Übergröße camelCase")


def test_no_row_has_a_raw_line_break():
    """It would never be found: what is compared has escapes."""
    assert not any(letter in step for row in TABLE for step in row.steps for letter in "\r\n\t")
