"""tokenizer.json files in the contradictory format of tokenizers 0.14, mended to the same ids."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from quantkit.vocab.repair import repaired

TEXTS = [
    "The river rose in the night.", "  two spaces", "tabs\tand\nlines", "天気がいい。", "数学与物理", "Привет, мир",
    "¿Qué hora es?", "def f(x):\n    return x + 1", "🙂 emoji", "", " ", "ﬁ ligature",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """BPE with byte fallback, Metaspace without a prefix, NFKC: the shape of XVERSE's."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    special = ["<unk>", "<pad>", "<|startoftext|>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    return made


def old_format(node, scheme):
    """As tokenizers 0.14 wrote it."""
    if isinstance(node, dict):
        node = {key: old_format(value, scheme) for key, value in node.items()}
        if node.get("type") == "Metaspace":
            node.pop("split", None)
            node.pop("prepend_scheme", None)
            node |= {"str_rep": "▁", "add_prefix_space": False} | scheme
        return node
    return [old_format(value, scheme) for value in node] if isinstance(node, list) else node


def test_a_contradictory_metaspace_is_mended_to_the_same_ids(tokenizer):
    raw = json.dumps(old_format(json.loads(tokenizer.to_str()), {"prepend_scheme": "always"})).encode()
    with pytest.raises(Exception, match="prepend_scheme"):
        Tokenizer.from_str(raw.decode())
    mended = Tokenizer.from_str(repaired(raw).decode())
    for text in TEXTS:
        assert mended.encode(text).ids == tokenizer.encode(text).ids
        assert mended.decode(mended.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


def test_a_file_that_loads_is_left_alone(tokenizer):
    assert repaired(tokenizer.to_str().encode()) is None


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[]", b'{"model": 1}'])
def test_what_cannot_be_mended_is_left_to_the_loader(raw):
    assert repaired(raw) is None
