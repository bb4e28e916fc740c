"""The tokenizer of an artifact: supplied, rebuilt, kept and proven; whole runs on tiny checkpoints."""

import json

import pytest
import tiny
from artifacts import Recorder, job_of, quantize, read_json
from tiny import write_json
from transformers import AutoTokenizer, XGLMTokenizer
from vocab.test_spm import LLAMA, train
from vocab.test_xgen import encoding_of, small  # noqa: F401  a fixture
from vocab.texts import many_texts

from quantkit.calibration import build_tokens
from quantkit.errors import BadInputError, NotFoundError, QuantkitError
from quantkit.pipeline import gptq
from quantkit.recipe import Calibration
from quantkit.vocab import xgen
from quantkit.vocab.load import load_tokenizer
from quantkit.vocab.templates import VICUNA

RTN = {"method": "rtn", "scales": "minmax"}
CHAT = [{"role": "user", "content": "67 x 39?"}, {"role": "assistant", "content": "2613"}]


@pytest.fixture(autouse=True, scope="module")
def _quick_proof():
    """All texts: here it is what is tried."""


def without_template(folder):
    config = read_json(folder / "tokenizer_config.json")
    del config["chat_template"]
    write_json(folder / "tokenizer_config.json", config)
    return folder


# Chat templates.


def test_an_xwin_gets_its_template_and_says_so(tmp_path):
    source = without_template(tiny.make_model(tmp_path / "Xwin-LM-13B-V0.1"))
    note = "chat template: supplied (Vicuna 1.1), the source has none"
    assert note in job_of(source, tmp_path / "out").as_dict(4096)["notes"]
    said = Recorder()
    made = quantize(source, tmp_path / "out", said)
    assert note in said.said
    assert note in made.record["notes"]
    loaded = AutoTokenizer.from_pretrained(made.output)
    assert loaded.chat_template == VICUNA.text
    assert loaded.apply_chat_template(CHAT, tokenize=False).endswith(" USER: 67 x 39? ASSISTANT: 2613</s>")
    assert made.record["tokenizer"]["proven_on_texts"] > 250


def test_calibration_chats_are_written_in_the_supplied_template(tmp_path):
    source = without_template(tiny.make_model(tmp_path / "Xwin-LM-13B-V0.1"))
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": CHAT}))
    calibration = Calibration(text=(str(chats),), samples=1, sequence_length=16)
    tokenizer = load_tokenizer(source)
    ids = build_tokens(calibration, tokenizer, tiny.VOCABULARY).ids[0].tolist()
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert expected.startswith("<s>A chat between a curious user")
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"][:16]


def test_any_other_checkpoint_is_left_without_one(tmp_path):
    source = without_template(tiny.make_model(tmp_path / "Xwin-LM-13B-V0.1-mine"))
    made = quantize(source, tmp_path / "out", **RTN).output
    assert (made / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()


# tokenizer.model alone.


@pytest.fixture(scope="module")
def spm_only(tmp_path_factory):
    """A Llama as it was published in 2023: tokenizer.model and no tokenizer.json."""
    source = tiny.make_model(tmp_path_factory.mktemp("spm") / "llama", vocab_size=1200)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(train(**LLAMA))
    own = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    write_json(source / "tokenizer_config.json", own | {"unk_token": "<unk>"})
    return source


def test_a_sentencepiece_model_becomes_a_tokenizer_json_with_its_ids(spm_only, tmp_path):
    import sentencepiece

    made = quantize(spm_only, tmp_path / "out")
    assert "tokenizer.json: made from tokenizer.model" in made.record["notes"]
    assert (made.output / "tokenizer.model").read_bytes() == (spm_only / "tokenizer.model").read_bytes()
    loaded = AutoTokenizer.from_pretrained(made.output)
    witness = sentencepiece.SentencePieceProcessor(model_file=str(spm_only / "tokenizer.model"))
    for text in many_texts():
        if not any(token in text for token in ("<s>", "</s>", "<unk>", "\x00")):
            assert loaded(text)["input_ids"] == [1, *witness.encode(text)], text


# XGen.


def make_xgen(folder, vocab):
    """XGen as it is published: a Llama whose tokenizer is remote code over a vocabulary that it downloads."""
    size = 256 * ((len(json.loads(vocab)) + 943) // 256 + 1)
    source = tiny.make_model(folder, vocab_size=size, bos_token_id=None)
    (source / "tokenizer.json").unlink()
    (source / "tokenization_xgen.py").write_text("raise SystemExit('remote code was run')")
    own = {"tokenizer_class": "XgenTokenizer", "add_special_tokens": True, "eos_token": "<|endoftext|>"}
    auto = {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]}
    write_json(source / "tokenizer_config.json", own | {"auto_map": auto, "pad_token": None})
    return source


@pytest.fixture
def as_gpt2(small, monkeypatch):  # noqa: F811
    tokens = list(json.loads(small[0]))[:-1]
    monkeypatch.setattr(xgen, "GPT2_RANKS", len(tokens))
    monkeypatch.setattr(xgen, "GPT2_SHA256", xgen._ranks_sha256(tokens))
    return small


def test_xgen_becomes_a_checkpoint_that_plain_transformers_reads(as_gpt2, tmp_path):
    source = make_xgen(tmp_path / "xgen-7b-8k-inst", as_gpt2[0])
    (source / "vocab.json").write_bytes(as_gpt2[0])
    (source / "merges.txt").write_bytes(as_gpt2[1])
    made = quantize(source, tmp_path / "out")
    assert made.record["notes"][-2:] == [
        "tokenizer.json: rebuilt from GPT-2's vocabulary, without the checkpoint's code",
        "chat template: supplied (XGen), the source has none",
    ]
    assert not {"vocab.json", "merges.txt"} & {path.name for path in made.output.iterdir()}
    assert not list(made.output.glob("*.py"))
    loaded, witness = AutoTokenizer.from_pretrained(made.output), encoding_of(as_gpt2[0])
    assert loaded.eos_token_id == xgen.GPT2_RANKS
    assert loaded.bos_token is None
    assert set(loaded("a")) == {"input_ids", "attention_mask"}
    for text in many_texts([xgen.END_OF_TEXT, "<fim_pad>"]):
        ids = loaded(text)["input_ids"]
        assert ids == witness.encode(text, allowed_special="all"), text
        assert loaded.decode(ids) == witness.decode(ids), text


@pytest.mark.usefixtures("as_gpt2", "hub_client")
def test_xgens_vocabulary_is_downloaded_where_it_is_not_beside(small, loopback, tmp_path, monkeypatch):  # noqa: F811
    loopback.add_repo("some/gpt2", {"vocab.json": small[0], "merges.txt": small[1], "config.json": b"{}"})
    monkeypatch.setattr(xgen, "GPT2_REPOSITORY", "some/gpt2")
    made = quantize(make_xgen(tmp_path / "xgen", small[0]), tmp_path / "out", **RTN).output
    assert AutoTokenizer.from_pretrained(made).eos_token_id == xgen.GPT2_RANKS


@pytest.mark.usefixtures("hub_client")
@pytest.mark.parametrize("method", [{}, RTN], ids=["gptq", "rtn"])
def test_xgen_without_its_vocabulary_is_refused_before_any_work(small, tmp_path, monkeypatch, method):  # noqa: F811
    monkeypatch.setattr(xgen, "GPT2_REPOSITORY", "no/such")
    with pytest.raises(NotFoundError, match="made from GPT-2's vocabulary") as caught:
        quantize(make_xgen(tmp_path / "xgen", small[0]), tmp_path / "out", **method)
    assert caught.value.hint == f"put GPT-2's vocab.json and merges.txt into {tmp_path / 'xgen'}"
    assert not list((tmp_path / "out").glob("*.safetensors*"))


# XGLM: </s> in front of each text.


@pytest.fixture(scope="module")
def xglm(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = tiny.TEXT.splitlines() * 3
    trained.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", show_progress=False))
    pieces = [tuple(row) for row in json.loads(trained.to_str())["model"]["vocab"] if row[0] != "<unk>"]
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    source = tiny.make_model(tmp_path_factory.mktemp("xglm") / "xglm-tiny", "XGLMForCausalLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    XGLMTokenizer(vocab=first + pieces).save_pretrained(source)
    return source


def test_xglm_keeps_its_prefix_in_the_artifact(xglm, tmp_path):
    made = quantize(xglm, tmp_path / "out").output
    before, after = load_tokenizer(xglm), AutoTokenizer.from_pretrained(made)
    for text in many_texts():
        ids = after(text)["input_ids"]
        assert ids == before(text)["input_ids"]
        assert ids[0] == after.eos_token_id == 2
        assert ids[1:] == after(text, add_special_tokens=False)["input_ids"]


def test_xglm_documents_have_one_separator_between_them(xglm, tmp_path):
    path = tmp_path / "two.jsonl"
    texts = ["The river rose.", "Nobody answered him."]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = load_tokenizer(xglm)
    streams = [tokenizer(text)["input_ids"] for text in texts]
    calibration = Calibration(text=(str(path),), samples=1, sequence_length=sum(map(len, streams)))
    ids = build_tokens(calibration, tokenizer, 512).ids[0].tolist()
    assert ids in (streams[0] + streams[1], streams[1] + streams[0])
    assert ids.count(2) == 2


# The proof.


def test_a_tokenizer_that_was_spoiled_on_the_way_leaves_no_artifact(sources, tmp_path, monkeypatch):
    def spoil(checkpoint, output, files):
        made = json.loads(files["tokenizer.json"])
        made["model"]["merges"].reverse()
        copied(checkpoint, output, dict(files) | {"tokenizer.json": json.dumps(made).encode()})

    copied = gptq.copy_side_files
    monkeypatch.setattr(gptq, "copy_side_files", spoil)
    with pytest.raises(QuantkitError, match="is not that of the source: of '") as caught:
        quantize(sources(), tmp_path / "out", **RTN)
    assert "choose another --out" in caught.value.hint
    assert not (tmp_path / "out" / "config.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    assert quantize(sources(), tmp_path / "out", **RTN).record["tokenizer"]["proven_on_texts"] > 250


def test_a_file_of_another_tokenizer_in_the_folder_is_found(sources, tmp_path, monkeypatch):
    copied = gptq.copy_side_files

    def beside(checkpoint, output, files):
        copied(checkpoint, output, files)
        (output / "chat_template.jinja").write_text("{{ 'another' }}")

    monkeypatch.setattr(gptq, "copy_side_files", beside)
    with pytest.raises(QuantkitError, match="it has another chat template"):
        quantize(sources(), tmp_path / "out", **RTN)


def test_without_calibration_a_broken_tokenizer_is_copied_and_named(tmp_path):
    source = tiny.make_model(tmp_path / "model")
    (source / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BadInputError, match="the tokenizer of model does not load"):
        quantize(source, tmp_path / "gptq")
    said = Recorder()
    made = quantize(source, tmp_path / "out", said, **RTN)
    assert (made.output / "tokenizer.json").read_bytes() == b"{}"
    assert any("it is copied unread" in line for line in said.said)
    assert made.record["tokenizer"]["proven_on_texts"] == 0
    assert "does not load" in made.record["tokenizer"]["unread"]
