"""What recipes would make of a checkpoint, by its headers: predicted bytes, or why there will be none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quantkit.errors import BadInputError, UsageError
from quantkit.families.checks import check_config, check_model_type
from quantkit.families.family import Family
from quantkit.families.gguf_experts import CONVERTED_ONLY
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.layers import check_layers
from quantkit.families.lookup import artifact_config, family_of
from quantkit.pipeline.gguf_job import GgufOptions, prepare
from quantkit.pipeline.gguf_model import GgufModel, open_model
from quantkit.pipeline.imatrix import check_forward, weight_inputs
from quantkit.pipeline.job import check_tensors, expected_infos
from quantkit.plan.rows import make_plan
from quantkit.scheme import GgufRecipe, Scheme
from quantkit.skeleton import Skeleton
from quantkit.tensors import TensorInfo
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import Checkpoint


@dataclass(frozen=True)
class Candidate:
    """A sound 16-bit checkpoint, and what stands against making anything of it."""

    family: Family
    skeleton: Skeleton
    infos: Mapping[str, TensorInfo]
    no_gptq: str | None  # why not
    gguf: GgufModel | None
    no_gguf: str | None  # why not

    @property
    def parameters(self) -> int:
        """Of the model, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.skeleton.tensors().values())


def candidate(checkpoint: Checkpoint) -> Candidate:
    """Look at a checkpoint, opened for its headers, and at its tokenizer.

    Raises:
        BadInputError: it is damaged or quantized already, its architecture is unknown, or it has no tokenizer.
    """
    config = checkpoint.config
    no_gptq = None
    try:
        family = family_of(config)
    except BadInputError as error:
        if config.get("quantization_config") is not None:
            raise
        no_gptq = str(error)
        family, _ = gguf_family_of(config)  # a mixture of experts; what else fails here is unknown to both
    check_config(config)
    remapped = artifact_config(family, config)
    skeleton = Skeleton(family, remapped, torch.float32, "cpu")
    check_model_type(remapped, skeleton.model_type)
    infos = checkpoint.source.infos or expected_infos(family, remapped, getattr(checkpoint.source, "weight_map", {}))
    if family not in CONVERTED_ONLY:
        check_layers(family, config, infos)
        check_tensors(family, skeleton, infos)
    load_tokenizer(checkpoint.folder, remapped, checkpoint.repo_id)  # nothing is made without one
    gguf = no_gguf = None
    try:
        gguf = open_model(checkpoint)
    except (BadInputError, UsageError) as error:  # the checkpoint is sound: llama.cpp lacks something
        no_gguf = str(error)
    return Candidate(family, skeleton, infos, no_gptq, gguf, no_gguf)


def predicted_bytes(candidate: Candidate, scheme: Scheme) -> int:
    """Bytes of what a recipe makes: all tensors of a GPTQ checkpoint, or the GGUF files.

    Raises:
        BadInputError: it makes nothing of this checkpoint; the sentence says why.
        UsageError: the same.
    """
    if not isinstance(scheme, GgufRecipe):
        if candidate.no_gptq is not None:
            raise BadInputError(candidate.no_gptq)
        return make_plan(candidate.family, scheme, candidate.infos, tied=candidate.skeleton.tied()).artifact_bytes
    if candidate.gguf is None:
        raise BadInputError(str(candidate.no_gguf))
    important = None
    if scheme.imatrix == "auto":
        check_forward(candidate.family)
        important = weight_inputs(candidate.family, candidate.gguf.rows)
    options = GgufOptions(
        types=() if scheme.type is None else (scheme.type,),
        target_size=scheme.target_size,
        overrides=scheme.tensor_types,
        pre=scheme.pre,
        split_max_size=scheme.split_max_size,
    )
    return prepare(candidate.gguf, options, important).outputs[0].nbytes
