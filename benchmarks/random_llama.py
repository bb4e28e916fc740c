"""Random-weight Llamas of given shapes, for timing: bf16 safetensors, a shard per few layers, never whole in memory."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    # name: hidden, intermediate, layers, heads, key-value heads, vocabulary
    "tiny": (256, 256, 1, 4, 2, 4096),
    "160M": (1024, 2816, 12, 16, 16, 4096),
    "1.1B": (2048, 5632, 22, 32, 4, 32000),
}


def write_random_llama(folder: Path, shape: str, tokenizer_from: Path, layers: int | None = None) -> Path:
    """Write a checkpoint; weights are normal with the spread that keeps activations near one.

    Args:
        folder: created.
        shape: a key of SHAPES.
        tokenizer_from: folder whose tokenizer files are copied; its ids must fit the vocabulary.
        layers: instead of the shape's own number.
    """
    hidden, inner, depth, heads, kv_heads, vocabulary = SHAPES[shape]
    depth = layers or depth
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()

    kv = kv_heads * hidden // heads
    sizes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
    sizes |= {"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    sizes |= {"mlp.down_proj": (hidden, inner)}
    weight_map: dict[str, str] = {}

    def save(tensors: dict[str, torch.Tensor], number: int) -> None:
        name = f"model-{number:05d}-of-{depth + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    for layer in range(depth):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": matrix(*size) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(hidden).bfloat16()
        save(tensors, layer + 1)
    outer = {"model.embed_tokens.weight": matrix(vocabulary, hidden) * hidden**0.5}
    outer |= {"lm_head.weight": matrix(vocabulary, hidden), "model.norm.weight": torch.ones(hidden).bfloat16()}
    save(outer, depth + 1)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": depth, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for path in tokenizer_from.glob("*token*.json"):
        shutil.copy(path, folder / path.name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tokenizer-from", type=Path, required=True)
    parser.add_argument("--layers", type=int)
    given = parser.parse_args()
    write_random_llama(given.folder, given.shape, given.tokenizer_from, given.layers)
