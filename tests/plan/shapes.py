"""Tensor tables of published checkpoints, from their configurations: shapes only, no weights."""

from dataclasses import dataclass
from typing import Any

from quantkit.tensors import TensorInfo


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama-shaped checkpoint."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = False
    dtype: str = "BF16"

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }

    def infos(self, bias: bool = False) -> dict[str, TensorInfo]:
        """Every tensor."""
        head = self.hidden // self.heads
        keys = self.kv_heads * head
        linears = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            for name, shape in linears.items():
                shapes[f"model.layers.{layer}.{name}.weight"] = shape
                if bias and name.endswith(("q_proj", "k_proj", "v_proj")):
                    shapes[f"model.layers.{layer}.{name}.bias"] = shape[:1]
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{norm}.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return {name: TensorInfo(name, self.dtype, shape, "model.safetensors") for name, shape in shapes.items()}


XVERSE_13B_CHAT = Shape(40, 5120, 40, 40, 13824, 100278)
XVERSE_13B_2 = Shape(40, 5120, 40, 40, 13824, 100534)
XVERSE_7B = Shape(32, 4096, 32, 32, 11008, 100534)
XWIN_13B = Shape(40, 5120, 40, 40, 13824, 32000)
XWIN_70B = Shape(80, 8192, 64, 8, 28672, 32000)
XGEN_7B = Shape(32, 4096, 32, 32, 11008, 51200, dtype="F32")
TINY = Shape(2, 128, 4, 2, 256, 512)
