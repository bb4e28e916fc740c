"""What becomes of a checkpoint's tokenizer files on their way into an artifact."""

import json

import pytest
import sentencepiece
import tiny
from tiny import write_json
from vocab.test_spm import LLAMA as LLAMA_SPM
from vocab.test_spm import train

from quantkit.errors import BadInputError
from quantkit.vocab import spm, xgen
from quantkit.vocab.files import FAST, Treatment, is_tokenizer_file, read_files, tokenizer_files, treatment
from quantkit.vocab.load import load_tokenizer
from quantkit.vocab.templates import VICUNA

LLAMA = {"model_type": "llama"}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with a tokenizer that needs nothing, but for a chat template."""
    made = tmp_path / "some-model"
    made.mkdir()
    write_json(made / "config.json", LLAMA)
    (made / "tokenizer.json").write_text(tiny.tokenizer_json(), "utf-8")
    write_json(made / "tokenizer_config.json", {"tokenizer_class": FAST, "eos_token": "</s>", "bos_token": "<s>"})
    return made


def test_files_without_fault_stay_byte_for_byte(folder):
    (folder / "special_tokens_map.json").write_bytes(b'{ "eos_token":"</s>"}')
    (folder / "chat_template.jinja").write_bytes(b"{{ 1 }}")
    plan = treatment(folder, LLAMA)
    assert plan == Treatment(plan.names)
    assert plan.notes == ()
    assert tokenizer_files(folder, plan) == read_files(folder)
    assert set(read_files(folder)) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }


def test_weights_code_and_cards_are_no_tokenizer_files(folder):
    for name in ("model.safetensors", "tokenization_xgen.py", "README.md", "config.json", "pytorch_model.bin"):
        assert not is_tokenizer_file(name)
    (folder / "tokenizer_backup").mkdir()
    (folder / "vocab.bin").write_bytes(b"weights")
    assert "vocab.bin" not in read_files(folder)


def test_a_template_is_supplied_to_the_named_repository_only(folder):
    assert treatment(folder, LLAMA, "Xwin-LM/Xwin-LM-13B-V0.1").template is VICUNA
    assert treatment(folder, LLAMA, "someone/Xwin-LM-13B-V0.1").template is None
    assert treatment(folder, LLAMA).template is None
    local = folder.rename(folder.parent / "Xwin-LM-13B-V0.1")
    plan = treatment(local, LLAMA)
    assert plan.template is VICUNA
    assert plan.notes == ("chat template: supplied (Vicuna 1.1), the source has none",)
    files = tokenizer_files(local, plan)
    config = json.loads(files["tokenizer_config.json"])
    assert config.pop("chat_template") == VICUNA.text
    assert config == json.loads((local / "tokenizer_config.json").read_text())
    assert files["tokenizer.json"] == (local / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_a_template_of_the_source_is_never_replaced(folder, where):
    local = folder.rename(folder.parent / "Xwin-LM-13B-V0.1")
    if where == "tokenizer_config.json":
        write_json(local / where, {"chat_template": "{{ 1 }}"})
    else:
        (local / where).write_text('{"chat_template": "{{ 1 }}"}')
    assert treatment(local, LLAMA).template is None


def test_a_remapped_checkpoint_is_read_from_its_tokenizer_json(folder):
    write_json(folder / "config.json", {"model_type": "xverse"})
    own = {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": [None, "x.Y"]}, "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", own)
    plan = treatment(folder, LLAMA)
    assert plan.as_it_is
    assert json.loads(tokenizer_files(folder, plan)["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    encoded = load_tokenizer(folder, LLAMA)("The river rose")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert not treatment(folder).as_it_is  # nothing is remapped where no other configuration is given


def test_a_llama_that_its_class_would_read_otherwise_is_read_from_its_tokenizer_json(folder):
    """transformers 5.23 builds the class without the file's normalizer: "▁a" for " a", and "A" for "▁A" after <s>."""
    raw = train(**LLAMA_SPM)
    witness = sentencepiece.SentencePieceProcessor(model_proto=raw)
    (folder / "tokenizer.json").write_bytes(spm.rebuild(spm.read_spm(raw)))
    own = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "pad_token": None}
    write_json(folder / "tokenizer_config.json", own)
    write_json(folder / "special_tokens_map.json", {"eos_token": "<unk>"})
    plan = treatment(folder, LLAMA)
    assert plan.as_it_is
    assert tokenizer_files(folder, plan)["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    tokenizer = load_tokenizer(folder, LLAMA)
    for text in ("a", " a", "   a", " ", "▁under", "\n  a"):
        assert tokenizer(text)["input_ids"] == [1, *witness.encode(text)], text
    assert tokenizer("<s>A chat", add_special_tokens=False)["input_ids"] == [1, *witness.encode("A chat")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "<unk>", "<unk>")


@pytest.mark.parametrize("change", [{"normalizer": None}, None])
def test_a_llama_that_its_class_reads_rightly_stays_as_it_is(folder, change):
    made = json.loads(spm.rebuild(spm.read_spm(train(**LLAMA_SPM)), legacy=False))
    (folder / "tokenizer.json").write_text("{" if change is None else json.dumps(made | change), "utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    plan = treatment(folder, LLAMA)
    assert plan == Treatment(plan.names)


def test_xgens_tokenizer_is_rebuilt_from_gpt2s(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_bytes(b"GPT-2's vocabulary")
    (folder / "merges.txt").write_bytes(b"GPT-2's merges")
    own = {
        "tokenizer_class": "XgenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]},
        "add_special_tokens": True,
        "clean_up_tokenization_spaces": True,
        "pad_token": None,
        "model_max_length": 8192,
    }
    write_json(folder / "tokenizer_config.json", own)
    monkeypatch.setattr(xgen, "rebuild", lambda vocab, merges: vocab + b", " + merges)
    plan = treatment(folder, LLAMA)
    assert plan.notes == ("tokenizer.json: rebuilt from GPT-2's vocabulary, without the checkpoint's code",)
    files = tokenizer_files(folder, plan)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    assert files["tokenizer.json"] == b"GPT-2's vocabulary, GPT-2's merges"
    assert json.loads(files["tokenizer_config.json"]) == {
        "model_max_length": 8192,
        "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("sentencepiece.bpe.model", "found sentencepiece.bpe.model of a XGLMTokenizer without tokenizer.json"),
        ("tokenizer.model", "found tokenizer.model of a XGLMTokenizer without tokenizer.json"),
        (None, "found none of tokenizer.json, tokenizer.model, vocab.json with merges.txt"),
    ],
)
def test_what_transformers_would_read_into_nonsense_is_refused(folder, file, reason):
    """transformers 5.23 loads an XGLM with only its sentencepiece model, and makes <unk> of every word."""
    (folder / "tokenizer.json").unlink()
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XGLMTokenizer"})
    if file:
        (folder / file).write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(BadInputError) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(f"the tokenizer of some-model does not load: {reason}")


def test_a_tokenizer_that_knows_no_word_is_refused(folder):
    made = json.loads(tiny.tokenizer_json())
    made["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0, "nothing": 1}, "unk_token": "<unk>"}
    made |= {"added_tokens": [], "post_processor": None}
    write_json(folder / "tokenizer.json", made)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": FAST, "unk_token": "<unk>"})
    with pytest.raises(BadInputError, match="every text becomes <unk>"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_a_configuration_that_is_no_object_is_refused(folder, name):
    (folder / name).write_bytes(b"[]")
    with pytest.raises(BadInputError, match="expected an object"):
        treatment(folder, LLAMA)
