"""A checkpoint as it will stand in GGUF files, whatever their types: its tensors, settings, name and vocabulary."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.families.family import Family
from quantkit.families.gguf_family import GgufFamily
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.lookup import artifact_config
from quantkit.formats.mixture_tables import FTYPES
from quantkit.memory import resident_bytes
from quantkit.pipeline.gguf_told import Told, told_apart
from quantkit.plan.gguf_card import Naming
from quantkit.plan.gguf_limits import differences
from quantkit.plan.gguf_metadata import metadata
from quantkit.plan.gguf_rows import GgufRow
from quantkit.plan.gguf_settings import experts, head_dim, size_of
from quantkit.plan.target_size import Shape
from quantkit.tensors import TensorSource
from quantkit.weights.gguf_types import Value
from quantkit.weights.source import Checkpoint
from quantkit.weights.streamed import streamed


@dataclass(frozen=True)
class GgufModel:
    """What is the same in all GGUF files of a checkpoint."""

    checkpoint: Checkpoint
    source: TensorSource  # 16-bit tensors; dequantized where the checkpoint is quantized
    family: Family
    gguf: GgufFamily
    config: Mapping[str, Any]  # as an artifact of the checkpoint has it
    told: Told  # what transformers said of it
    base_bytes: int  # memory of this process before it compiled an encoder

    @property
    def rows(self) -> tuple[GgufRow, ...]:
        """Every tensor, in the order of the files."""
        return self.told.rows

    @property
    def naming(self) -> Naming:
        """What the files are called."""
        return self.told.naming

    @property
    def is_dequantized(self) -> bool:
        """Whether the checkpoint is quantized itself."""
        return self.checkpoint.config.get("quantization_config") is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the run."""
        again = ("the source is quantized itself: what it lost stays lost",) if self.is_dequantized else ()
        return (*again, *differences(self.gguf, self.told.config), *self.told.vocabulary.notes)

    def stored(self, name: str) -> tuple[str, ...]:
        """The tensors of the checkpoint that one of `source` is read from, in the order in which they are read."""
        if not self.is_dequantized:
            return (name,)
        from quantkit.formats.gptq_source import DequantizedSource

        assert isinstance(self.source, DequantizedSource)
        return self.source.stored(name)

    def shards(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The files that hold tensors of `source`, in the order of the repository."""
        infos = self.checkpoint.source.infos
        return tuple(sorted({infos[stored].file for name in names for stored in self.stored(name)}))

    def streamed(self, folder: Path, say: Callable[[str], None]) -> "GgufModel":
        """The same model of a repository whose shards are fetched as they are read.

        Args:
            folder: where they stand while they are needed.
            say: told of every shard that is fetched.

        Raises:
            BadInputError: the headers of its weights cannot be read without a download.
        """
        checkpoint = streamed(self.checkpoint, folder, say)
        return replace(self, checkpoint=checkpoint, source=dequantized(checkpoint)[0])

    def sizes(self) -> dict[str, Any]:
        """What the memory of a runtime depends on, by the names of Llama's config.json."""
        shape = self.shape()
        return {
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "hidden_size": size_of(self.gguf, self.told.config, "embedding_length"),
            "head_dim": head_dim(self.gguf, self.told.config),
        }

    def shape(self) -> Shape:
        """What the type mixtures ask."""
        return Shape(
            heads=size_of(self.gguf, self.told.config, "attention.head_count"),
            kv_heads=size_of(self.gguf, self.told.config, "attention.head_count_kv"),
            layers=size_of(self.gguf, self.told.config, "block_count"),
            experts=experts(self.told.config),
            architecture=self.gguf.architecture,
        )

    def metadata(self, ftype: str, more: Mapping[str, Value]) -> dict[str, Value]:
        """Everything in front of the tensors of a file of this type."""
        number = FTYPES[ftype].number
        told = metadata(self.gguf, self.told.config, self.naming, number, self.told.card, self.told.generation)
        return {**told, **self.told.vocabulary.metadata, **more}


def open_model(
    checkpoint: Checkpoint,
    pre: str | None = None,
    *,
    verified: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> GgufModel:
    """Plan the GGUF side of a checkpoint from headers, configuration and tokenizer.

    Args:
        checkpoint: 16-bit or GPTQ, headers alone will do.
        pre: llama.cpp's pre-tokenizer; None: found by its regular expressions.
        verified: compare the tokenizer with llama.cpp's own, where that is installed.
        meanwhile: called while transformers is asked, which takes seconds.

    Raises:
        QuantkitError: whatever makes it impossible, in one sentence.
    """
    source, plain = dequantized(checkpoint)
    family, gguf = gguf_family_of(plain)
    base_bytes = resident_bytes()
    told = told_apart(checkpoint, plain, source.infos, pre, verified, meanwhile)
    return GgufModel(checkpoint, source, family, gguf, artifact_config(family, plain), told, base_bytes)


def dequantized(checkpoint: Checkpoint) -> tuple[TensorSource, dict[str, Any]]:
    """Tensors in 16 bits and the configuration of a model that is not quantized, also of one that is."""
    plain = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    quantized = checkpoint.config.get("quantization_config")
    if quantized is None:
        return checkpoint.source, plain
    from quantkit.formats.gptq_source import DequantizedSource  # with torch, which plain conversions do without

    return DequantizedSource(checkpoint.source, dict(quantized)), plain
