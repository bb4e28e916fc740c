"""Real checkpoints of tiny transformers models, made in a fraction of a second.

`make_model(folder, "LlamaForCausalLM")` writes what a published checkpoint has: config.json as its
authors write it, weights in one of the four layouts of the Hub, a byte-level BPE tokenizer that works.
"""

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

Layout = Literal["safetensors", "sharded", "bin", "bin-sharded"]

VOCABULARY = 512
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TIED = {"tie_word_embeddings": True}
# What an architecture's config.json has beside SHAPE.
OWN = {
    "LlamaForCausalLM": {"model_type": "llama", "rope_theta": 10000.0},
    "LLaMAForCausalLM": {"model_type": "llama", "rope_theta": 10000.0},
    "MistralForCausalLM": {"model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 8},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 32},
    "Phi3ForCausalLM": {"model_type": "phi3", "rope_theta": 10000.0},
    "GemmaForCausalLM": {"model_type": "gemma", "head_dim": 32} | TIED,
    "Gemma2ForCausalLM": {
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,  # low enough to be felt
        "final_logit_softcapping": 5.0,
    }
    | TIED,
    "Gemma3ForCausalLM": {
        "model_type": "gemma3_text",
        "head_dim": 64,  # heads together are wider than the hidden states
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    }
    | TIED,
    "GlmForCausalLM": {"model_type": "glm", "head_dim": 32, "attention_bias": True, "partial_rotary_factor": 0.5},
    "Glm4ForCausalLM": {"model_type": "glm4", "head_dim": 32, "attention_bias": True, "partial_rotary_factor": 0.5},
    "OlmoForCausalLM": {"model_type": "olmo", "clip_qkv": 1.0},
    "Olmo2ForCausalLM": {"model_type": "olmo2", "rope_theta": 500000.0},
    "GraniteForCausalLM": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
        "logits_scaling": 1.5,
    }
    | TIED,
    "SmolLM3ForCausalLM": {"model_type": "smollm3", "no_rope_layers": [1, 0], "no_rope_layer_interval": 2} | TIED,
    "CohereForCausalLM": {"model_type": "cohere", "logit_scale": 0.75, "use_qk_norm": True} | TIED,
    "Cohere2ForCausalLM": {
        "model_type": "cohere2",
        "logit_scale": 0.75,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    | TIED,
    "Starcoder2ForCausalLM": {"model_type": "starcoder2", "use_bias": True, "sliding_window": 8} | TIED,
    "XGLMForCausalLM": {"model_type": "xglm", "scale_embedding": True, "activation_function": "gelu"} | TIED,
}
# What an architecture calls the settings of SHAPE; None: it has no such setting.
RENAMED: Mapping[str, Mapping[str, str | None]] = {
    "XGLMForCausalLM": {
        "hidden_size": "d_model",
        "intermediate_size": "ffn_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "attention_heads",
        "num_key_value_heads": None,
        "rms_norm_eps": None,
        "hidden_act": None,
    }
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [float(n + 1) for n in range(16)]}

# Architectures with the settings that change what a layer computes: name -> arguments of make_model.
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama3-rope": ("LlamaForCausalLM", {"rope_scaling": LLAMA3_ROPE, "num_hidden_layers": 3}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-half-sliding": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"hidden_size": 64, "tie_word_embeddings": True}),
    "phi3": ("Phi3ForCausalLM", {}),
    "phi3-longrope": ("Phi3ForCausalLM", {"rope_scaling": LONG_ROPE, "original_max_position_embeddings": 16}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {}),
    "gemma3": ("Gemma3ForCausalLM", {}),
    "glm": ("GlmForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {}),
    "olmo": ("OlmoForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "cohere": ("CohereForCausalLM", {}),
    "cohere2": ("Cohere2ForCausalLM", {}),
    "starcoder2": ("Starcoder2ForCausalLM", {}),
    "xglm": ("XGLMForCausalLM", {}),
}

TEXT = """The river rose in the night, and by morning the lower fields were a sheet of brown water.
Three men stood on the bridge and counted the fence posts that still showed; there were 67, then 39.
"It will fall again," said the oldest of them, "it always has: 1897, 1921, 1954." Nobody answered him.
Le pont fut fermé à midi. Die Brücke blieb bis Dienstag gesperrt. El río volvió a su cauce.
河水在夜里上涨，到了早晨，低处的田地已是一片黄水。三个人站在桥上。
def height(level: float, base: float = 0.0) -> float:
    return max(level - base, 0.0)  # metres above the lower mark
{"station": "bridge", "level": 4.25, "unit": "m"}
"""
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def make_model(
    folder: Path | str,
    architecture: str = "LlamaForCausalLM",
    dtype: torch.dtype = torch.float32,
    layout: Layout = "safetensors",
    seed: int = 0,
    **config: object,
) -> Path:
    """Write a checkpoint with random weights, the same ones for the same arguments.

    Args:
        folder: made if it is absent.
        architecture: a key of OWN.
        dtype: of every weight.
        layout: one safetensors file, several with an index, or the same as `.bin`.
        seed: of the weights.
        config: settings of config.json beyond SHAPE and OWN, or instead of theirs.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architectures": [architecture], "torch_dtype": str(dtype).removeprefix("torch.")}
    settings |= own_config(architecture, **config)
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_weights(folder, random_weights(settings, dtype, seed), layout, bool(settings["tie_word_embeddings"]))
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": settings["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return folder


def own_config(architecture: str, **config: object) -> dict[str, object]:
    """SHAPE, OWN and what is asked for, under the names that the architecture uses."""
    renamed = RENAMED.get(architecture, {})
    asked = SHAPE | OWN[architecture] | config
    return {name: value for key, value in asked.items() if (name := renamed.get(key, key)) is not None}


def random_weights(settings: Mapping[str, object], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """A value for every parameter: outputs of a linear as large as its inputs, logits of about 2.

    Channels differ in size, as they do in trained models, so that a Hessian has a shape.
    """
    own = copy.deepcopy(dict(settings))  # transformers writes into rope_scaling
    for key in ("architectures", "model_type", "torch_dtype"):
        del own[key]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(str(settings["model_type"]), **own))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = (0.4 * value).exp()
        elif parameter.dim() == 1:
            value = 0.2 * value
        else:
            largest = 2.0 if name in ("lm_head.weight", "model.embed_tokens.weight") else 1.0
            value = value * largest / parameter.shape[1] ** 0.5
        weights[name] = value.to(dtype)
    return weights


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor], layout: Layout, tied: bool = False) -> None:
    """Weight files, and their index where there are several; a `.bin` of a tied model has the head too."""
    pickled = layout.startswith("bin")
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    weights = dict(weights)
    if pickled and tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    names = list(weights)
    count = 3 if layout.endswith("sharded") else 1
    index: dict[str, str] = {}
    for number in range(count):
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        file = f"{stem}.{suffix}" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"
        tensors = {name: weights[name] for name in part}
        if pickled:
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    if count > 1:
        total = sum(tensor.nbytes for tensor in weights.values())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_json(folder / f"{stem}.{suffix}.index.json", content)


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE of 512 entries: three special ones, 256 bytes, 253 merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer.to_str()


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def token_ids(samples: int, sequence: int, seed: int = 0) -> torch.Tensor:
    """[samples, sequence] int64 without special tokens."""
    return torch.randint(3, VOCABULARY, (samples, sequence), generator=torch.Generator().manual_seed(seed))
