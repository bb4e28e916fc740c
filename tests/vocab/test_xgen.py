"""XGen's tokenizer against tiktoken, on a small vocabulary in GPT-2's place; the real one is in tests/real."""

import json

import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from vocab.texts import many_texts, shipped

from quantkit.errors import BadInputError, NotFoundError
from quantkit.vocab import xgen

# tiktoken_ext/openai_public.py, gpt2()
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def byte_level(raw: bytes) -> str:
    """GPT-2's spelling of bytes."""
    spelled = {byte: letter for letter, byte in xgen._byte_of().items()}
    return "".join(spelled[byte] for byte in raw)


def encoding_of(vocab: bytes) -> tiktoken.Encoding:
    """XGen's encoding as its remote code builds it: tiktoken's own BPE over ranks, whitespace and specials."""
    byte_of = xgen._byte_of()
    ids = json.loads(vocab)
    end = ids.pop(xgen.END_OF_TEXT)
    ranks = {bytes(byte_of[letter] for letter in token): number for token, number in ids.items()}
    number = end + 1
    for run in [b" " * n for n in range(31, 1, -1)] + [b"\t" * n for n in range(9, 1, -1)]:
        ranks[run] = number
        number += 1
    special = {token: number + place for place, token in enumerate(xgen.RESERVED)} | {xgen.END_OF_TEXT: end}
    return tiktoken.Encoding("xgen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def gpt2_shaped() -> tuple[bytes, bytes]:
    """vocab.json and merges.txt of a small vocabulary in which, as in GPT-2's, merge n makes rank 256 + n."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [" ".join(text.split()) for text in shipped()]  # no runs of whitespace, as in GPT-2's vocabulary
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    first = [byte_level(bytes([byte])) for byte in range(256)]
    tokens = [*first, *(left + right for left, right in merges), xgen.END_OF_TEXT]
    vocab = json.dumps({token: number for number, token in enumerate(tokens)}).encode()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    return vocab, "\n".join(lines).encode()


@pytest.fixture(scope="module")
def small():
    return gpt2_shaped()


@pytest.fixture
def as_gpt2(small, monkeypatch):
    """The small vocabulary passes for GPT-2's."""
    tokens = list(json.loads(small[0]))[:-1]
    monkeypatch.setattr(xgen, "GPT2_RANKS", len(tokens))
    monkeypatch.setattr(xgen, "GPT2_SHA256", xgen._ranks_sha256(tokens))


def test_the_spelling_of_bytes_is_that_of_the_tokenizers_library():
    assert set(xgen._byte_of()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(xgen._byte_of().values()) == list(range(256))
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("Ä\x00\xad")[0][0]
    assert bytes(xgen._byte_of()[letter] for letter in spelled) == "Ä".encode()


@pytest.mark.usefixtures("as_gpt2")
def test_ids_and_text_are_those_of_tiktoken(small):
    made, witness = Tokenizer.from_str(xgen.rebuild(*small).decode()), encoding_of(small[0])
    assert made.get_vocab_size() == witness.n_vocab
    for text in many_texts([xgen.END_OF_TEXT, "<fim_pad>", "<mask_1>", "<sep>"]):
        ids = made.encode(text).ids
        assert ids == witness.encode(text, allowed_special="all"), text
        assert made.decode(ids, skip_special_tokens=False) == witness.decode(ids), text


@pytest.mark.usefixtures("as_gpt2")
def test_ids_follow_the_table_of_the_checkpoint(small):
    made = Tokenizer.from_str(xgen.rebuild(*small).decode())
    end = xgen.GPT2_RANKS
    assert made.token_to_id(xgen.END_OF_TEXT) == end
    assert made.token_to_id("Ġ" * 31) == end + 1  # 50257
    assert made.token_to_id("Ġ" * 2) == end + 30  # 50286
    assert made.token_to_id("ĉ" * 9) == end + 31  # 50287
    assert made.token_to_id("ĉ" * 2) == end + 38  # 50294
    assert made.token_to_id("<fim_prefix>") == end + 39  # 50295
    assert made.token_to_id("<reponame>") == end + 56  # 50312
    assert made.token_to_id("<mask_1>") == end + 943  # 51199: with GPT-2's ranks there are 51,200
    assert made.get_vocab_size() == end + 944


def test_another_vocabulary_is_refused(small):
    with pytest.raises(BadInputError) as caught:
        xgen.rebuild(*small)
    assert str(caught.value).startswith("vocab.json and merges.txt are not GPT-2's: found ")
    assert caught.value.hint == "take both from openai-community/gpt2"


@pytest.mark.usefixtures("as_gpt2")
@pytest.mark.parametrize(
    "change",
    [
        lambda vocab, merges: (vocab, merges.replace(b"\n", b"\nq z\n", 1)),
        lambda vocab, merges: (vocab, b"\n".join(merges.split(b"\n")[:-2])),
        lambda vocab, merges: (json.dumps({**json.loads(vocab), "extra": 10**6}).encode(), merges),
        lambda vocab, merges: (b"[]", merges),
        lambda vocab, merges: (b"{", merges),
        lambda vocab, merges: (vocab, b"\xff\xfe"),
        lambda vocab, merges: (vocab, b"one two three\n"),
    ],
)
def test_a_vocabulary_with_a_fault_is_refused(small, change):
    with pytest.raises(BadInputError, match="are not GPT-2's"):
        xgen.rebuild(*change(*small))


def test_the_vocabulary_is_taken_from_beside_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(xgen, "resolve", lambda *_: pytest.fail("asked the Hub"))
    (tmp_path / "vocab.json").write_bytes(b"1")
    (tmp_path / "merges.txt").write_bytes(b"2")
    assert xgen.gpt2_vocabulary(tmp_path) == (b"1", b"2")


@pytest.mark.usefixtures("hub_client")
def test_the_vocabulary_is_taken_from_the_hub(tmp_path, loopback, monkeypatch):
    loopback.add_repo("some/gpt2", {"vocab.json": b"1", "merges.txt": b"2", "model.safetensors": b"not this"})
    monkeypatch.setattr(xgen, "GPT2_REPOSITORY", "some/gpt2")
    assert xgen.gpt2_vocabulary(tmp_path) == (b"1", b"2")
    assert loopback.find(".safetensors") == []


@pytest.mark.usefixtures("hub_client")
def test_without_the_vocabulary_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(xgen, "GPT2_REPOSITORY", "no/such")
    with pytest.raises(NotFoundError) as caught:
        xgen.gpt2_vocabulary(tmp_path)
    assert "XGen's tokenizer is made from GPT-2's vocabulary" in str(caught.value)
    assert "no/such" in str(caught.value)
    assert caught.value.hint == f"put GPT-2's vocab.json and merges.txt into {tmp_path}"
