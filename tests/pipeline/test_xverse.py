"""XVERSE: `.bin` shards, rotary buffers, remote code and an old tokenizer.json in, a plain Llama out."""

import json

import pytest
import torch
from tiny import make_model, token_ids, write_json
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocab.test_repair import TEXTS, old_format, tokenizer  # noqa: F401  the fixture

from quantkit.errors import BadInputError
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import Calibration, Recipe
from quantkit.weights.source import open_folder

RECIPE = Recipe(bits=8, group_size=32, calibration=Calibration(samples=4, sequence_length=32))


@pytest.fixture
def xverse(tmp_path, tokenizer):  # noqa: F811
    folder = make_model(tmp_path / "XVERSE-tiny", dtype=torch.bfloat16, layout="bin-sharded", vocab_size=640)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["XverseForCausalLM"], "model_type": "xverse"}
    config["auto_map"] = {"AutoConfig": "configuration_xverse.XverseConfig"}
    write_json(folder / "config.json", config)
    (folder / "configuration_xverse.py").write_text("raise SystemExit('remote code was run')")
    raw = json.dumps(old_format(json.loads(tokenizer.to_str()), {"prepend_scheme": "always"}))
    (folder / "tokenizer.json").write_text(raw, encoding="utf-8")
    return folder


def test_xverse_becomes_a_llama_with_a_tokenizer_that_loads(xverse, tmp_path, tokenizer):  # noqa: F811
    made = run(prepare(str(xverse), RECIPE, output=tmp_path / "out", device="cpu")).output
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert not list(made.glob("*.py"))
    loaded = AutoTokenizer.from_pretrained(made, trust_remote_code=False)
    stated = json.loads((made / "tokenizer_config.json").read_text())
    assert stated["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert set(loaded("A bridge.")) == {"input_ids", "attention_mask"}
    for text in TEXTS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids
    Tokenizer.from_file(str(made / "tokenizer.json"))


def test_a_class_that_would_drop_its_normalizer_is_not_kept(xverse, tmp_path, tokenizer):  # noqa: F811
    """Of a Llama with this class transformers takes vocabulary and merges, and NFKC is lost."""
    config = json.loads((xverse / "tokenizer_config.json").read_text())
    write_json(xverse / "tokenizer_config.json", config | {"tokenizer_class": "LlamaTokenizer"})
    made = run(prepare(str(xverse), RECIPE, output=tmp_path / "out", device="cpu")).output
    loaded = AutoTokenizer.from_pretrained(made)
    for text in TEXTS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids


def test_a_chat_model_gets_its_template(xverse, tmp_path):
    config = json.loads((xverse / "tokenizer_config.json").read_text())
    write_json(xverse / "tokenizer_config.json", config | {"chat_template": None})
    named = xverse.rename(tmp_path / "XVERSE-13B-Chat")
    made = run(prepare(str(named), RECIPE, output=tmp_path / "out", device="cpu"))
    assert "chat template: supplied (XVERSE), the source has none" in made.record["notes"]
    chat = [{"role": "user", "content": "67 x 39?"}]
    loaded = AutoTokenizer.from_pretrained(made.output)
    text = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "Human: 67 x 39?\n\nAssistant: "


def test_the_weights_are_those_of_the_checkpoint(xverse, tmp_path):
    made = open_folder(run(prepare(str(xverse), RECIPE, output=tmp_path / "out", device="cpu")).output)
    source = DequantizedSource(made.source, dict(made.config["quantization_config"]))
    config = {key: value for key, value in made.config.items() if key != "quantization_config"}
    (tmp_path / "plain").mkdir()
    write_json(tmp_path / "plain" / "config.json", config)
    models = []
    for opened in (open_folder(xverse).source, source):
        model = AutoModelForCausalLM.from_config(_config(tmp_path / "plain")).float().eval()
        model.load_state_dict({name: opened.read(name).float() for name in model.state_dict()})
        models.append(model)
    with torch.no_grad():
        expected, found = (model(token_ids(2, 32)).logits for model in models)
    assert ((found - expected).norm() / expected.norm()) < 0.05


def test_rope_values_that_only_its_code_knew_are_supplied_or_asked_for(xverse, tmp_path):
    config = json.loads((xverse / "config.json").read_text())
    config.pop("rope_theta", None)
    write_json(xverse / "config.json", config | {"max_position_embeddings": 262144})
    made = prepare(str(xverse), RECIPE, output=tmp_path / "out", device="cpu")
    assert made.config["rope_theta"] == 500000
    assert made.config["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    write_json(xverse / "config.json", config | {"max_position_embeddings": 16384 * 2})
    with pytest.raises(BadInputError, match="rope_theta"):
        prepare(str(xverse), RECIPE, output=tmp_path / "out", device="cpu")


def _config(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False)
