"""XVERSE-shaped files as tokenizers 0.14 and 0.15 wrote them: mended, they give the ids that 0.15.2 gives unmended."""

import json
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from vocab.texts import many_texts, shipped

from quantkit.vocab.repair import repaired

PYTHON = Path(__file__).parents[2] / ".venv-peers-tokenizers" / "bin" / "python"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="tokenizers 0.15.2 is not installed: make peers"),
]
SPECIAL = ["<unk>", "<pad>", "<|startoftext|>", "<|endoftext|>"]


def xverse_shaped(normalizer) -> str:
    """BPE with byte fallback and a Metaspace that puts nothing in front."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        shipped(), trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    )
    return made.to_str()


def as_written_by_0_15(node, scheme):
    """The JSON tree as tokenizers 0.15 wrote it: merges as text, Metaspace with add_prefix_space."""
    if isinstance(node, list):
        return [as_written_by_0_15(value, scheme) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: as_written_by_0_15(value, scheme) for key, value in node.items() if key != "ignore_merges"}
    if "merges" in node:
        node["merges"] = [" ".join(pair) for pair in node["merges"]]
    if node.get("type") == "Metaspace":
        del node["split"], node["prepend_scheme"]
        node |= {"add_prefix_space": False} | scheme
    return node


@pytest.fixture(scope="module", params=["NFKC", "plain"])
def shaped(request):
    return json.loads(xverse_shaped(normalizers.NFKC() if request.param == "NFKC" else normalizers.Sequence([])))


@pytest.mark.parametrize("scheme", [{"prepend_scheme": "always"}, {"str_rep": "▁", "prepend_scheme": "always"}, {}])
def test_the_mended_file_gives_the_ids_that_0_15_2_gives_for_the_old_one(shaped, scheme, tmp_path):
    raw = json.dumps(as_written_by_0_15(shaped, scheme), ensure_ascii=False).encode()
    (tmp_path / "tokenizer.json").write_bytes(raw)
    texts = many_texts(SPECIAL)
    answer = subprocess.run(
        [PYTHON, Path(__file__).with_name("old_ids.py"), tmp_path / "tokenizer.json"],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    witness = json.loads(answer.stdout)
    assert witness["version"] == "0.15.2"
    with pytest.raises(Exception, match=r"prepend_scheme|untagged enum"):
        Tokenizer.from_str(raw.decode())
    mended = Tokenizer.from_str(repaired(raw).decode())
    for text, (ids, decoded) in zip(texts, witness["rows"], strict=True):
        assert mended.encode(text).ids == ids, text
        assert mended.decode(ids) == decoded, text


def test_a_repair_that_keeps_the_prefix_would_be_seen(shaped, tmp_path):
    """The control: what the file says, always, is not what 0.15.2 does."""
    old = as_written_by_0_15(shaped, {"prepend_scheme": "always"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(old, ensure_ascii=False), "utf-8")
    answer = subprocess.run(
        [PYTHON, Path(__file__).with_name("old_ids.py"), tmp_path / "tokenizer.json"],
        input=json.dumps(["天 word"]),
        capture_output=True,
        text=True,
        check=True,
    )
    prefixed = Tokenizer.from_str(json.dumps(shaped))
    prefixed.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    assert prefixed.encode("天 word").ids != json.loads(answer.stdout)["rows"][0][0]
