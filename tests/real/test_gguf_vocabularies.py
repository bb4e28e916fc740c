"""Published vocabularies as GGUF metadata, held against llama.cpp, its own test vectors and its own files."""

import json
import shutil
from pathlib import Path

import pytest
from peers.test_gguf_vocab import PYTHON, pytestmark  # noqa: F401
from tokenizers import AddedToken, Tokenizer, models
from vocab.gguf_tiny import as_json, loaded
from vocab.texts import many_texts

from quantkit.errors import BadInputError
from quantkit.vocab.gguf import gguf_vocabulary
from quantkit.vocab.gguf_pre_table import TABLE
from quantkit.vocab.gguf_state import CONTROL, UNUSED, USER_DEFINED
from quantkit.vocab.gguf_verify import ask, verify, write_vocabulary
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.gguf_read import read_gguf

# Folder, file in it, model_type; kind and pre-tokenizer for llama.cpp; how many texts its limits touch, at most.
EXPORTED = [
    ("falcon-tokenizer", "tokenizer.json", "falcon", "gpt2", "falcon", 0),
    ("gpt-neox", "20B_tokenizer.json", "gpt_neox", "gpt2", "gpt-2", 10),
    ("gpt2", "gpt2.json", "gpt2", "gpt2", "gpt-2", 0),
    ("llama3-built", "tokenizer.json", "llama", "gpt2", "llama-bpe", 0),
    ("phi-2", "tokenizer.json", "phi", "gpt2", "gpt-2", 0),
    ("qwen2-built", "tokenizer.json", "qwen2", "gpt2", "qwen2", 10),
    ("llama-built", "tokenizer.json", "llama", "llama", "default", 0),
    ("llama-built", "tokenizer.model", "llama", "llama", "default", 0),
    ("phi-3", "tokenizer.json", "phi3", "llama", "default", 10),
    ("mistral", "tokenizer.model.v1", "mistral", "llama", "default", 0),
    ("mistral", "mistral_instruct_tokenizer_240216.model.v2", "mistral", "llama", "default", 0),
    ("mistral", "mistral_instruct_tokenizer_240323.model.v3", "mistral", "llama", "default", 0),
    ("mistral", "mistral_instruct_tokenizer_241114.model.v7", "mistral", "llama", "default", 0),
    ("mistral", "mistral_instruct_tokenizer_241114.model.v7m1", "mistral", "llama", "default", 0),
]
REFUSED = [
    ("llama2", "tokenizer.json", "llama", "does not load: Merges text file invalid"),
    ("qwen", "qwen.tiktoken", "qwen", r"found none of tokenizer\.json, tokenizer\.model"),
]
LANGUAGES = ("ara", "cmn", "deu", "fra", "hin", "jpn", "kor", "rus", "spa")
SPLIT = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def texts(data):
    """Thirty sentences of each of nine languages; English, code, whitespace and emoji are in the corpus."""
    return [
        line
        for language in LANGUAGES
        for line in (data / "text/tatoeba" / f"{language}-eng.{language}").read_text("utf-8").splitlines()[:30]
    ]


def checkpoint(data: Path, folder: Path, name: str, file: str, model_type: str) -> Path:
    """The tokenizer as a checkpoint's folder has it."""
    target = file if file.endswith(".tiktoken") else "tokenizer.json" if file.endswith(".json") else "tokenizer.model"
    shutil.copyfile(data / "tokenizers" / name / file, folder / target)
    own = data / "tokenizers" / name / "tokenizer_config.json"
    if own.exists() and target == "tokenizer.json":
        shutil.copyfile(own, folder / own.name)
    elif target == "tokenizer.model":
        (folder / own.name).write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(("name", "file", "model_type", "kind", "pre", "touched"), EXPORTED)
def test_a_published_tokenizer_has_its_ids_in_llama_cpp(
    data, tmp_path, texts, name, file, model_type, kind, pre, touched
):
    tokenizer = load_tokenizer(checkpoint(data, tmp_path, name, file, model_type))
    rows = -(-len(tokenizer) // 64) * 64
    made = gguf_vocabulary(tokenizer, f"{name}-7B", rows, {"model_type": model_type})
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:32]
    found = verify(made, tokenizer, [*many_texts(special)[:900], *texts], PYTHON)
    assert (made.kind, made.pre) == (kind, pre)
    assert found.compared >= 1100
    assert found.touched <= touched


@pytest.mark.parametrize(("name", "file", "model_type", "reason"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(data, tmp_path, name, file, model_type, reason):
    with pytest.raises(BadInputError, match=reason):
        load_tokenizer(checkpoint(data, tmp_path, name, file, model_type))


# What llama.cpp's own vocabularies were made from, as their tokenizer.json had it: name, row of the table.
PUBLISHED = {
    "deepseek-coder": "deepseek-coder",
    "deepseek-llm": "deepseek-llm",
    "falcon": "falcon",
    "gpt-2": "gpt-2",
    "mpt": "gpt-2",
    "refact": "starcoder",
    "starcoder": "starcoder",
}


@pytest.fixture(params=PUBLISHED)
def published(request, data):
    """One of llama.cpp's files: its name, its metadata, and texts with the ids that transformers made of them."""
    path = data / "tokenizers/ggml-vocab" / f"ggml-vocab-{request.param}.gguf"
    return request.param, {key: value.value for key, value in read_gguf(path).metadata.items()}, vectors(path)


def vectors(path: Path) -> list[tuple[str, list[int]]]:
    inputs = path.with_suffix(".gguf.inp").read_text("utf-8").split(SPLIT)
    outputs = path.with_suffix(".gguf.out").read_text("utf-8").splitlines()
    assert len(outputs) > 40
    return [(text, [int(one) for one in ids.split()]) for text, ids in zip(inputs, outputs, strict=False)]


def as_tokenizer(metadata, row):
    """The tokenizer.json that such a file is made from."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    known = {text: number for number, text in enumerate(tokens) if types[number] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    made = json.loads(Tokenizer(models.BPE(known, merges)).to_str()) | {"pre_tokenizer": as_json(row.steps)}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    added = [(text, types[number]) for text, number in known.items() if types[number] in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text, kind in added if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, kind in added if kind == USER_DEFINED])
    special = {
        f"{name}_token": tokens[metadata[key]]
        for name in ("bos", "eos")
        if (key := f"tokenizer.ggml.{name}_token_id") in metadata
    }
    return loaded(tokenizer, **special)


def test_the_table_splits_published_vocabularies_as_transformers_does(published):
    """Ids that transformers made when the file was published, from the tokenizer.json that it was made from."""
    name, metadata, expected = published
    (row,) = (row for row in TABLE if row.name == PUBLISHED[name])
    tokenizer = as_tokenizer(metadata, row)
    for text, ids in expected:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text


def test_a_published_vocabulary_is_made_again(published, texts):
    name, metadata, expected = published
    (row,) = (row for row in TABLE if row.name == PUBLISHED[name])
    tokenizer = as_tokenizer(metadata, row)
    made = gguf_vocabulary(tokenizer, name, len(metadata["tokenizer.ggml.tokens"]), {})
    assert made.pre == row.name
    for key in ("tokens", "merges", "bos_token_id", "eos_token_id"):
        assert made.metadata[f"tokenizer.ggml.{key}"].value == metadata[f"tokenizer.ggml.{key}"], key
    types = zip(made.metadata["tokenizer.ggml.token_type"].value, metadata["tokenizer.ggml.token_type"], strict=True)
    assert all(found == stated for found, stated in types)
    assert verify(made, tokenizer, [*[text for text, _ in expected], *texts], PYTHON).compared > 200


@pytest.mark.parametrize(
    ("name", "file", "model_type", "witness"),
    [
        ("llama-built", "tokenizer.json", "llama", "llama-spm"),
        ("llama3-built", "tokenizer.json", "llama", "llama-bpe"),
        ("qwen2-built", "tokenizer.json", "qwen2", "qwen2"),
        ("phi-3", "tokenizer.json", "phi3", "phi-3"),
        ("gpt2", "gpt2.json", "gpt2", "gpt-2"),
    ],
)
def test_llama_cpp_gives_its_own_vectors_for_our_metadata(data, tmp_path, name, file, model_type, witness):
    tokenizer = load_tokenizer(checkpoint(data, tmp_path, name, file, model_type))
    made = gguf_vocabulary(tokenizer, name, len(tokenizer), {"model_type": model_type})
    expected = vectors(data / "tokenizers/ggml-vocab" / f"ggml-vocab-{witness}.gguf")
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, made)
    answer = ask(path, [text for text, _ in expected], [], name, PYTHON)
    assert answer["plain"] == [ids for _, ids in expected]


@pytest.mark.parametrize(
    ("name", "model_type", "witness", "keys"),
    [("llama-built", "llama", "llama-spm", ("tokens", "token_type")), ("phi-3", "phi3", "phi-3", ("tokens",))],
)
def test_the_pieces_are_those_of_llama_cpps_own_file(data, tmp_path, name, model_type, witness, keys):
    tokenizer = load_tokenizer(checkpoint(data, tmp_path, name, "tokenizer.json", model_type))
    stated = read_gguf(data / "tokenizers/ggml-vocab" / f"ggml-vocab-{witness}.gguf").metadata
    rows = len(stated["tokenizer.ggml.tokens"].value)
    made = gguf_vocabulary(tokenizer, name, rows, {"model_type": model_type})
    known = len(tokenizer)
    for key in keys:
        ours, theirs = (one[f"tokenizer.ggml.{key}"].value[:known] for one in (made.metadata, stated))
        assert list(ours) == list(theirs), key
    # Both order the pieces that merging makes alike.
    pairs = zip(*(one["tokenizer.ggml.scores"].value[259:32000] for one in (made.metadata, stated)), strict=True)
    ranked = sorted((ours, theirs) for ours, theirs in pairs if ours < 0)
    assert len(ranked) > 25_000
    assert [theirs for _, theirs in ranked] == sorted(theirs for _, theirs in ranked)


def test_bert_is_refused_by_name(data):
    from transformers import BertTokenizer

    stated = read_gguf(data / "tokenizers/ggml-vocab/ggml-vocab-bert-bge.gguf").metadata
    words = {text.removeprefix("▁"): number for number, text in enumerate(stated["tokenizer.ggml.tokens"].value)}
    with pytest.raises(BadInputError, match="found a tokenizer of the kind WordPiece, expected BPE or Unigram"):
        gguf_vocabulary(BertTokenizer(vocab=words), "bge-small", len(words), {})
