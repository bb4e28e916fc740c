"""The streamed forward, one layer in memory, against transformers' own."""

import copy
import json

import pytest
import torch
import transformers
from tiny import OWN, SHAPE, VARIANTS, make_model, token_ids

from quantkit.errors import BadInputError
from quantkit.families.lookup import family_of
from quantkit.recording import InputReached, stop_at
from quantkit.skeleton import Skeleton
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import open_folder

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = [torch.float32, torch.bfloat16]
IDS = token_ids(5, 24)
BATCH = 2  # of five samples: the last batch is a smaller one


@pytest.fixture(params=VARIANTS, scope="module")
def checkpoint(request, tmp_path_factory):
    architecture, config = VARIANTS[request.param]
    return open_folder(make_model(tmp_path_factory.mktemp(request.param), architecture, **config))


def skeleton_of(checkpoint, dtype=torch.float32):
    return Skeleton(family_of(checkpoint.config), checkpoint.config, dtype)


def filled(skeleton):
    """Names of the parameters that have values."""
    return {name for name, parameter in skeleton.model.named_parameters() if not parameter.is_meta}


def layers_filled(skeleton):
    return sum(any(not parameter.is_meta for parameter in layer.parameters()) for layer in skeleton.layers)


def read(checkpoint, names):
    return {name: checkpoint.source.read(name) for name in names}


def stream(skeleton, checkpoint, ids, batch=BATCH):
    """Logits with one layer filled at a time, the rest of the model empty."""
    outer = skeleton.outer_names()
    skeleton.fill(read(checkpoint, outer))
    hidden, calls = skeleton.embed(ids)
    skeleton.empty(outer)
    for index, call in enumerate(calls):
        assert filled(skeleton) == set()
        names = skeleton.layer_names(index)
        skeleton.fill(read(checkpoint, names))
        assert filled(skeleton) == set(names)
        hidden = torch.cat([skeleton.run_layer(index, part, call) for part in hidden.split(batch)])
        skeleton.empty(names)
    assert filled(skeleton) == set()
    ends = read(checkpoint, outer)
    tied = checkpoint.config["tie_word_embeddings"]
    stored = skeleton.family.embedding if tied else skeleton.family.head
    ends[skeleton.family.head + ".weight"] = checkpoint.source.read(stored + ".weight")
    skeleton.fill(ends)
    logits = torch.cat([skeleton.finish(part) for part in hidden.split(batch)])
    skeleton.empty(list(ends))
    assert filled(skeleton) == set()
    return logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streamed_logits_are_bit_for_bit_those_of_transformers(checkpoint, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype)
    with torch.no_grad():
        expected = torch.cat([model(part, use_cache=False).logits for part in IDS.split(BATCH)])
    skeleton = skeleton_of(checkpoint, dtype)
    found = stream(skeleton, checkpoint, IDS)
    assert found.dtype == expected.dtype == dtype
    assert expected.float().std() > 1
    assert torch.equal(found, expected)


def test_all_parameters_are_empty_before_and_all_buffers_full(checkpoint):
    skeleton = skeleton_of(checkpoint)
    assert filled(skeleton) == set()
    for _, buffer in skeleton.model.named_buffers():
        assert not buffer.is_meta
        assert torch.isfinite(buffer).all()
    assert not any(parameter.requires_grad for parameter in skeleton.model.parameters())
    assert not skeleton.model.training


@pytest.mark.parametrize("checkpoint", ["llama", "mistral", "qwen2-half-sliding", "phi3-longrope"], indirect=True)
def test_a_recorded_call_holds_for_every_batch_size(checkpoint):
    skeleton = skeleton_of(checkpoint)
    one, two, five = (stream(skeleton, checkpoint, IDS, batch) for batch in (1, 2, 5))
    assert torch.allclose(one, five, rtol=1e-4, atol=1e-4)
    assert torch.allclose(two, five, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpoint", ["llama-tied", "qwen2-half-sliding", "phi3-longrope"], indirect=True)
def test_a_skeleton_can_be_used_again_with_other_windows(checkpoint):
    skeleton = skeleton_of(checkpoint)
    first = stream(skeleton, checkpoint, IDS)
    stream(skeleton, checkpoint, token_ids(2, 40, seed=1))
    assert torch.equal(stream(skeleton, checkpoint, IDS), first)


def test_tensors_are_those_of_the_checkpoint(checkpoint):
    skeleton = skeleton_of(checkpoint)
    assert skeleton.tensors() == {name: info.shape for name, info in checkpoint.source.infos.items()}
    shapes = skeleton.linear_shapes()
    for index in range(len(skeleton.layers)):
        for name in skeleton.family.linears:
            full = f"{skeleton.family.layers}.{index}.{name}"
            assert shapes.pop(full) == checkpoint.source.infos[full + ".weight"].shape
    assert shapes == {}


def test_sizes_have_one_name_in_every_family(checkpoint):
    sizes, linears = skeleton_of(checkpoint).sizes(), skeleton_of(checkpoint).linear_shapes()
    assert sizes["num_hidden_layers"] == len(skeleton_of(checkpoint).layers)
    assert sizes["num_attention_heads"] == SHAPE["num_attention_heads"]
    assert all(sizes["hidden_size"] in shape for name, shape in linears.items() if "gate" not in name)


def test_a_fresh_skeleton_knows_whether_its_head_is_tied(checkpoint):
    assert skeleton_of(checkpoint).tied() == checkpoint.config["tie_word_embeddings"]


@pytest.fixture
def tied(tmp_path):
    return open_folder(make_model(tmp_path / "tied", tie_word_embeddings=True))


def test_a_tied_head_stays_tied_through_fill_and_empty(tied):
    skeleton = skeleton_of(tied)
    outer = skeleton.outer_names()
    for _ in range(2):
        skeleton.fill(read(tied, outer))
        assert skeleton.tied()
        assert torch.equal(skeleton.model.get_output_embeddings().weight, tied.source.read("model.embed_tokens.weight"))
        skeleton.empty(outer)
        assert skeleton.tied()


def test_a_layer_that_fails_leaves_the_model_whole(checkpoint):
    skeleton = skeleton_of(checkpoint)
    before = list(skeleton.layers)
    with pytest.raises((NotImplementedError, RuntimeError)):  # nothing is filled
        skeleton.embed(IDS)
    assert list(skeleton.layers) == before
    assert filled(skeleton) == set()


def test_a_forward_can_stop_at_any_linear(checkpoint):
    skeleton = skeleton_of(checkpoint)
    skeleton.fill(read(checkpoint, skeleton.outer_names()))
    hidden, calls = skeleton.embed(IDS)
    skeleton.fill(read(checkpoint, skeleton.layer_names(0)))
    whole = {}
    modules = {name: skeleton.layers[0].get_submodule(name) for name in skeleton.family.linears}
    handles = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: whole.update({name: inputs[0]}))
        for name, module in modules.items()
    ]
    skeleton.run_layer(0, hidden, calls[0])
    for handle in handles:
        handle.remove()
    for name, module in modules.items():
        received = []
        with stop_at(module, received.append), pytest.raises(InputReached):
            skeleton.run_layer(0, hidden, calls[0])
        assert len(received) == 1
        assert torch.equal(received[0], whole[name])
    skeleton.run_layer(0, hidden, calls[0])  # nothing stops it any more


NONSENSE = {
    "no heads": {"num_attention_heads": 0},
    "no key-value heads": {"num_key_value_heads": 0},
    "no hidden size": {"hidden_size": 0},
    "unknown activation": {"hidden_act": "nope"},
    "unknown rope": {"rope_scaling": {"type": "nope", "factor": 2.0}},
    "half a rope": {"rope_scaling": {"rope_type": "llama3"}},
    "text for a base": {"rope_theta": "large"},
    "no head size": {"head_dim": 0},
    "unknown dtype": {"torch_dtype": "float17"},
    # What transformers and torch refuse by exceptions of other kinds:
    "hidden size not divisible": {"hidden_size": 130},
    "text for a size": {"hidden_size": "large"},
    "null for a size": {"hidden_size": None},
    "a list for a size": {"intermediate_size": [256]},
    "negative size": {"hidden_size": -128},
    "negative heads": {"num_attention_heads": -4},
    "odd head size": {"head_dim": 33},
    "empty vocabulary": {"vocab_size": 0},
    "padding outside of the vocabulary": {"pad_token_id": 9999},
    "text for a rope": {"rope_scaling": "linear"},
    "text for a flag": {"tie_word_embeddings": "yes"},
    "unknown layer type": {"layer_types": ["full_attention", "nope"]},
    "larger than any memory": {"intermediate_size": 10**15},
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_nonsensical_config_is_bad_input(kind):
    config = {
        "architectures": ["LlamaForCausalLM"],
        **SHAPE,
        **OWN["LlamaForCausalLM"],
        **copy.deepcopy(NONSENSE[kind]),
    }
    with pytest.raises(BadInputError, match=rf"transformers {transformers.__version__} refuses this config\.json: ."):
        Skeleton(family_of(config), config)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_is_not_changed(name):
    architecture, own = VARIANTS[name]
    config = copy.deepcopy({"architectures": [architecture], **SHAPE, **OWN[architecture], **own})
    before = copy.deepcopy(config)
    Skeleton(family_of(config), config)
    assert config == before


CANARY = """from pathlib import Path
Path({path!r}).write_text(__name__)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""


def test_code_of_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    canary = tmp_path / "canary"
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    folder = make_model(tmp_path / "model", auto_map=auto_map)
    (folder / "code.py").write_text(CANARY.format(path=str(canary)))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "code.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    checkpoint = open_folder(folder)
    skeleton = skeleton_of(checkpoint)
    skeleton.fill(read(checkpoint, checkpoint.source.infos))
    skeleton.embed(IDS)
    load_tokenizer(folder)("text")
    assert type(skeleton.model) is transformers.LlamaForCausalLM
    assert not canary.exists()
    assert not list(tmp_path.glob("modules/**/code.py"))
