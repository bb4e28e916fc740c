"""Which tokens are read and which are scored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import BadInputError
from quantkit.quality.windows import like_llama_cpp, sliding


def scored_pairs(windows):
    """(text, what stands before in the window, token) of every scored token, in order."""
    return [
        (int(windows.text[row]), windows.ids[row, :column].tolist(), int(windows.ids[row, column]))
        for row, column in windows.scored.nonzero().tolist()
    ]


def test_windows_side_by_side():
    found = sliding([[10, 11, 12, 13, 14]], context=4, stride=4, prefix=[1])
    assert found.ids.tolist() == [[1, 10, 11, 12], [1, 13, 14, 0]]
    assert found.scored.tolist() == [[False, True, True, True], [False, True, True, False]]


def test_without_a_prefix_a_windows_first_token_is_not_scored():
    found = sliding([[10, 11, 12, 13, 14]], context=3, stride=3, prefix=[])
    assert [token for _, _, token in scored_pairs(found)] == [11, 12, 14]


def test_a_stride_scores_only_what_is_new():
    found = sliding([list(range(10, 20))], context=6, stride=2, prefix=[])
    assert found.ids.tolist() == [[10, 11, 12, 13, 14, 15], [12, 13, 14, 15, 16, 17], [14, 15, 16, 17, 18, 19]]
    assert [token for _, _, token in scored_pairs(found)] == list(range(11, 20))
    assert all(len(before) >= 4 for _, before, token in scored_pairs(found) if token >= 16)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    context=st.integers(4, 12),
    stride=st.integers(1, 12),
    prefix=st.lists(st.just(7), max_size=2),
)
def test_every_token_is_scored_at_most_once_after_what_truly_stands_before_it(lengths, context, stride, prefix):
    streams = [[100 * text + n for n in range(100, 100 + length)] for text, length in enumerate(lengths)]
    try:
        found = sliding(streams, context, stride, prefix)
    except BadInputError:
        assert max(lengths) < 2
        return
    pairs = scored_pairs(found)
    assert len({(text, token) for text, _, token in pairs}) == len(pairs) == found.tokens
    for text, before, token in pairs:
        at = streams[text].index(token)
        body = before[len(prefix) :]
        assert before[: len(prefix)] == prefix
        assert body == streams[text][at - len(body) : at]
        assert before
    body = context - len(prefix)
    if prefix or stride < body:  # then nothing is lost but a first token that has nothing before it
        missing = sum(lengths) - len(pairs)
        assert missing == (0 if prefix else sum(length > 0 for length in lengths))


def test_a_context_that_holds_nothing_is_refused():
    with pytest.raises(BadInputError, match="a context of 3 tokens is too short, expected at least 4"):
        sliding([[1, 2, 3]], context=3, stride=1, prefix=[5, 6])


@pytest.mark.parametrize("streams", [[], [[]], [[5]]])
def test_too_little_text_is_refused(streams):
    with pytest.raises(BadInputError, match="the evaluation text is too short"):
        sliding(streams, context=4, stride=4, prefix=[])


def test_llama_cpp_scores_the_second_half_of_each_window():
    # tools/perplexity/perplexity.cpp: BOS in front of the text and in place of each chunk's first token;
    # logits from position n_ctx / 2 on are compared with the token that follows them.
    stream = list(range(100, 119))
    found = like_llama_cpp([stream], context=8, bos=1)
    whole = [1, *stream]
    assert found.ids.tolist() == [[1, *whole[1:8]], [1, *whole[9:16]]]
    assert found.scored.nonzero()[:, 1].tolist() == [5, 6, 7, 5, 6, 7]


def test_llama_cpp_without_a_bos():
    found = like_llama_cpp([list(range(16))], context=8, bos=None)
    assert found.ids.tolist() == [list(range(8)), list(range(8, 16))]
    assert found.tokens == 2 * (8 - 1 - 4)


def test_a_rest_is_left_out_as_llama_cpp_does():
    with pytest.raises(BadInputError, match="the evaluation text is too short") as caught:
        like_llama_cpp([list(range(6))], context=8, bos=1)
    assert "--context below 8" in caught.value.hint


def test_windows_know_their_text():
    found = sliding([[1, 2, 3], [4, 5, 6, 7, 8]], context=4, stride=4, prefix=[9])
    assert torch.equal(found.text, torch.tensor([0, 1, 1]))
    assert "1 prefix tokens" in found.rule
