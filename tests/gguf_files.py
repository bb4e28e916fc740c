"""GGUF files of tiny models, encoded and written by the gguf library, without a vocabulary."""

import json
from pathlib import Path

import gguf
import numpy as np
import tiny
import torch

from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.lookup import artifact_config
from quantkit.formats.gguf_transforms import assemble
from quantkit.formats.mixtures import assign
from quantkit.plan.gguf_card import naming
from quantkit.plan.gguf_metadata import metadata
from quantkit.plan.gguf_rows import gguf_rows
from quantkit.plan.gguf_settings import complete_config, experts
from quantkit.weights.local import LocalSource

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}
SLAB = 24  # rows: not a multiple of a head


class Planned:
    """A checkpoint's folder, and the plan of its GGUF file."""

    def __init__(self, folder: Path) -> None:
        stated = json.loads((folder / "config.json").read_bytes())
        self.family, self.gguf = gguf_family_of(stated)
        self.config = complete_config(self.family, artifact_config(self.family, stated))
        self.source = LocalSource(folder)
        self.rows = gguf_rows(self.family, self.gguf, self.config, self.source.infos)
        self.read: dict[str, np.ndarray] = {}

    def values(self, name: str, first: int, out: np.ndarray) -> None:
        """Fill `out` with a source tensor's values, as `assemble` asks for them."""
        if name not in self.read:
            self.read[name] = self.source.read(name).to(torch.float32).reshape(-1).numpy()
        out[:] = self.read[name][first : first + out.size]

    def tensor(self, row) -> np.ndarray:
        """A GGUF tensor in float32, made slab by slab."""
        out = np.full((row.assembly.rows, row.assembly.columns), np.nan, np.float32)
        for first in range(0, len(out), SLAB):
            end = min(first + SLAB, len(out))
            assemble(row.assembly, first, end, self.values, out[first:end])
        return out.reshape(row.shape)

    def metadata(self, file_type: str):
        """Its metadata without a vocabulary: llama.cpp then makes as many empty tokens as it has rows."""
        named = naming("tiny/Tiny", {row.name: row.shape for row in self.rows}, experts(self.config))
        return metadata(self.gguf, self.config, named, FILE_TYPES[file_type])


def write_gguf(planned: Planned, path: Path, file_type: str = "F16") -> Path:
    """The file, most matrices in `file_type`, vectors in float32."""
    told = planned.metadata(file_type)
    writer = gguf.GGUFWriter(path, planned.gguf.architecture)
    for key, value in told.items():
        if key != "general.architecture":
            kind = gguf.GGUFValueType[value.kind.upper()]
            if value.is_array:
                writer.add_key_value(key, list(value.value), gguf.GGUFValueType.ARRAY, sub_type=kind)
            else:
                writer.add_key_value(key, value.value, kind)
    writer.add_tokenizer_model("no_vocab")
    sizes = {key.partition(".")[2]: value.value for key, value in told.items()}
    types = assign(
        planned.rows,
        file_type,
        heads=sizes["attention.head_count"],
        kv_heads=sizes["attention.head_count_kv"],
        layers=sizes["block_count"],
        experts=sizes.get("expert_count", 0),
        architecture=planned.gguf.architecture,
        has_importance=False,
    )
    for row, kind in zip(planned.rows, types, strict=True):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(row.name, gguf.quants.quantize(planned.tensor(row), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


EXPERTS = {
    "MixtralForCausalLM": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 160,
    },
    "Qwen3MoeForCausalLM": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "head_dim": 64,
        "norm_topk_prob": True,
    },
}
MIXTRAL_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def make_experts(folder: Path, architecture: str, fused: bool, **config: object) -> Path:
    """A checkpoint of a mixture of experts, as it is published or as transformers 5 computes with it."""
    settings = {"architectures": [architecture], "torch_dtype": "float32"}
    settings |= tiny.SHAPE | {"rope_theta": 10000.0} | EXPERTS[architecture] | config
    weights = tiny.random_weights(settings, torch.float32, 0)
    folder.mkdir(parents=True)
    tiny.write_json(folder / "config.json", settings)
    tiny.write_weights(folder, weights if fused else unfused(weights, architecture), "safetensors")
    return folder


def unfused(weights: dict[str, torch.Tensor], architecture: str) -> dict[str, torch.Tensor]:
    """The same weights with a tensor per expert and matrix."""
    found = {}
    for name, weight in weights.items():
        prefix, _, leaf = name.partition("mlp.experts.")
        matrices = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf, ())
        for expert in range(len(weight) if matrices else 0):
            for matrix, part in zip(matrices, weight[expert].chunk(len(matrices)), strict=True):
                found[f"{prefix}mlp.experts.{expert}.{matrix}.weight"] = part.contiguous()
        if not matrices:
            found[name] = weight
    if architecture != "MixtralForCausalLM":
        return found

    def published(name: str) -> str:
        *head, matrix, leaf = name.replace(".mlp.", ".block_sparse_moe.").split(".")
        return ".".join([*head, MIXTRAL_NAMES.get(matrix, matrix), leaf])

    return {published(name): weight for name, weight in found.items()}
