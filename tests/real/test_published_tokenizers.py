"""Published vocabularies: loaded, proven, rebuilt, against tiktoken, sentencepiece and llama.cpp's test vectors."""

import json
import shutil

import pytest
import sentencepiece
import tiny
from pipeline.artifacts import quantize
from tiny import write_json
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from vocab.test_xgen import encoding_of
from vocab.texts import many_texts

from quantkit.errors import BadInputError
from quantkit.vocab import spm, xgen
from quantkit.vocab.files import tokenizer_files, treatment
from quantkit.vocab.load import load_tokenizer, load_treated
from quantkit.vocab.proof import json_difference, portrait

# Folder, tokenizer.json in it, model_type.
FAST = [
    ("falcon-tokenizer", "tokenizer.json", "falcon"),
    ("gpt-neox", "20B_tokenizer.json", "gpt_neox"),
    ("gpt2", "gpt2.json", "gpt2"),
    ("llama-built", "tokenizer.json", "llama"),
    ("llama3-built", "tokenizer.json", "llama"),
    ("phi-2", "tokenizer.json", "phi"),
    ("phi-3", "tokenizer.json", "phi3"),
    ("qwen2-built", "tokenizer.json", "qwen2"),
]
SPM = [
    "llama-built/tokenizer.model",
    "mistral/tokenizer.model.v1",
    "mistral/mistral_instruct_tokenizer_240216.model.v2",
    "mistral/mistral_instruct_tokenizer_240323.model.v3",
    "mistral/mistral_instruct_tokenizer_241114.model.v7",
]
TATOEBA = ("ara", "cmn", "deu", "fra", "hin", "jpn", "kor", "rus", "spa")


@pytest.fixture(scope="module")
def texts(data):
    """Those of the other tests, two hundred sentences of each of nine languages, and a book by lines."""
    sentences = [
        line
        for language in TATOEBA
        for line in (data / "text/tatoeba" / f"{language}-eng.{language}").read_text("utf-8").splitlines()[:200]
    ]
    return [*many_texts(), *sentences, *(data / "text/gutenberg/alice.txt").read_text("utf-8").splitlines()[:1000]]


@pytest.fixture(scope="module")
def gpt2(data):
    return tuple((data / "tokenizers/gpt2" / name).read_bytes() for name in xgen.GPT2_FILES)


@pytest.mark.parametrize(("folder", "file", "model_type"), FAST)
def test_a_published_tokenizer_is_loaded_and_proven(data, tmp_path, folder, file, model_type):
    shutil.copyfile(data / "tokenizers" / folder / file, tmp_path / "tokenizer.json")
    own = data / "tokenizers" / folder / "tokenizer_config.json"
    if own.exists():
        shutil.copyfile(own, tmp_path / own.name)
    write_json(tmp_path / "config.json", {"model_type": model_type})
    plan = treatment(tmp_path)
    files, config = tokenizer_files(tmp_path, plan), {"model_type": model_type}
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    seen = portrait(load_treated(plan, files, config, folder))
    assert len(seen.readings) > 250
    assert json_difference(seen, files["tokenizer.json"]) is None


def test_a_published_file_that_no_version_reads_is_refused(data, tmp_path):
    """Its merges have tokens of spaces, which the format of its time cannot tell from what separates them."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / "tokenizers/llama2" / name, tmp_path / name)
    with pytest.raises(BadInputError, match=r"the tokenizer of .* does not load: "):
        load_tokenizer(tmp_path)


def test_xgens_ids_and_text_are_those_of_tiktoken(gpt2, texts):
    made, witness = Tokenizer.from_str(xgen.rebuild(*gpt2).decode()), encoding_of(gpt2[0])
    assert made.get_vocab_size() == witness.n_vocab == 51200
    special = ["<|endoftext|>", *xgen.RESERVED]
    assert [made.token_to_id(token) for token in special] == [50256, *range(50295, 51200)]
    wrapped = [f"a {token}b  {token}" for token in special]
    assert len(texts) > 3000
    for text in [*texts, *wrapped]:
        ids = made.encode(text).ids
        assert ids == witness.encode(text, allowed_special="all"), text
        assert made.decode(ids, skip_special_tokens=False) == witness.decode(ids), text


def test_an_xgen_checkpoint_becomes_one_that_plain_transformers_reads(data, tmp_path):
    source = tiny.make_model(tmp_path / "xgen", vocab_size=51200, hidden_size=64, num_hidden_layers=1)
    (source / "tokenizer.json").unlink()
    write_json(
        source / "tokenizer_config.json", {"tokenizer_class": "XgenTokenizer", "auto_map": {"AutoTokenizer": []}}
    )
    for name in xgen.GPT2_FILES:
        shutil.copyfile(data / "tokenizers/gpt2" / name, source / name)
    loaded = AutoTokenizer.from_pretrained(quantize(source, tmp_path / "out").output)
    assert loaded("Hello,     world<|endoftext|>")["input_ids"] == [15496, 11, 50284, 995, 50256]
    assert (loaded.eos_token_id, loaded.bos_token_id, len(loaded)) == (50256, None, 51200)


@pytest.mark.parametrize("file", SPM)
def test_ids_and_text_of_a_sentencepiece_model_are_its_own(data, file, texts):
    raw = (data / "tokenizers" / file).read_bytes()
    model = spm.read_spm(raw)
    assert model.is_llama_like
    made = Tokenizer.from_str(spm.rebuild(model).decode())
    witness = sentencepiece.SentencePieceProcessor(model_proto=raw)
    in_brackets = [piece.text for piece in model.pieces if piece.kind in (spm.CONTROL, spm.UNKNOWN)]
    compared = 0
    for text in texts:
        if any(token in text for token in in_brackets) or "\x00" in text:
            continue  # sentencepiece knows no special tokens in text, and ends it at a zero
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == witness.encode(text), text
        assert made.decode(ids) == witness.decode(ids), text
        compared += 1
    assert compared > 3000


def test_a_rebuilt_llama_is_the_published_tokenizer_json(data):
    made = json.loads(spm.rebuild(spm.read_spm((data / "tokenizers/llama-built/tokenizer.model").read_bytes())))
    published = json.loads((data / "tokenizers/llama-built/tokenizer.json").read_bytes())
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in published["model"]["merges"]]
    assert made["model"]["merges"] == pairs
    assert made["model"]["vocab"] == published["model"]["vocab"]
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert made[part] == published[part]


@pytest.mark.parametrize("config", ["llama2", None])
def test_a_llama_of_2023_gives_the_ids_of_llama_cpps_vectors(data, tmp_path, config):
    """tokenizer.model with Meta's own tokenizer_config.json, or with the class alone."""
    shutil.copyfile(data / "tokenizers/llama-built/tokenizer.model", tmp_path / "tokenizer.model")
    if config:
        shutil.copyfile(data / "tokenizers" / config / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    tokenizer = load_tokenizer(tmp_path)
    seen = portrait(tokenizer)
    assert json_difference(seen, tokenizer_files(tmp_path, treatment(tmp_path))["tokenizer.json"]) is None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer("a")["input_ids"] == [1, 263]
    vectors = data / "tokenizers/ggml-vocab/ggml-vocab-llama-spm.gguf"
    inputs = vectors.with_suffix(".gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    outputs = vectors.with_suffix(".gguf.out").read_text("utf-8").splitlines()
    assert len(outputs) > 40
    for text, ids in zip(inputs, outputs, strict=False):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [int(one) for one in ids.split()], text
