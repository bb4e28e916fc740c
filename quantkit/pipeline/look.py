"""The first look at a checkpoint: all that headers and config.json betray, without torch or transformers."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantkit.checkpoint import local_path, open_checkpoint
from quantkit.errors import BadInputError
from quantkit.families.checks import check_config, check_model_type
from quantkit.families.gguf_experts import GGUF_EXPERTS
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.layers import check_layers
from quantkit.families.lookup import artifact_config, family_of
from quantkit.tensors import TensorInfo
from quantkit.weights.gguf_names import find_gguf
from quantkit.weights.gguf_read import open_gguf
from quantkit.weights.header import read_header
from quantkit.weights.local import find_infos
from quantkit.weights.pickle_look import NotUnderstood, look_at_pickle
from quantkit.weights.source import Checkpoint, read_config


def look(reference: str) -> Checkpoint:
    """Open a 16-bit checkpoint, and refuse what needs no more than its headers.

    Commands call it before they load torch, so that a damaged file is refused at once.

    Args:
        reference: a folder, or `org/name[@revision]`; no weights are downloaded.

    Raises:
        QuantkitError: what is wrong with it.
    """
    if found := _look_at_pickles(reference):
        _check(*found)
    checkpoint = open_checkpoint(reference, headers_only=True)
    _check(checkpoint.config, checkpoint.source.infos)
    return checkpoint


def _check(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> None:
    family = family_of(config)
    check_config(config)
    check_model_type(artifact_config(family, config), family.model_type)
    if infos:  # none of bare pickles that are not downloaded yet
        check_layers(family, config, infos)


def _look_at_pickles(reference: str) -> tuple[dict[str, Any], dict[str, TensorInfo]] | None:
    """config.json and the tensors of a folder of `.bin` files, by their opcodes: to open them takes torch, and seconds.

    Returns:
        None of any other checkpoint, and where torch's own unpickler has to judge, a little later.

    Raises:
        QuantkitError: what is wrong with the folder.
    """
    folder = local_path(reference)
    if folder is not None and any(folder.glob("*.bin")):
        with suppress(NotUnderstood):
            return read_config(folder), find_infos(folder, _look_at_shard)
    return None


def _look_at_shard(path: Path) -> dict[str, TensorInfo]:
    return look_at_pickle(path) if path.suffix == ".bin" else read_header(path)


def look_for_gguf(reference: str) -> Checkpoint:
    """The same for a checkpoint that is only converted: it may be quantized, or a mixture of experts.

    Raises:
        QuantkitError: what is wrong with it.
    """
    _look_at_pickles(reference)
    checkpoint = open_checkpoint(reference, headers_only=True)
    plain = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    family, _ = gguf_family_of(plain)
    check_config(plain)
    infos = checkpoint.source.infos
    if infos and len(plain) == len(checkpoint.config) and family.name not in GGUF_EXPERTS:
        check_layers(family, plain, infos)
    return checkpoint


def look_at_headers(baseline: str, artifacts: Iterable[str]) -> None:
    """Refuse folders and GGUF files that are damaged; of repositories nothing is asked yet.

    Args:
        baseline: the 16-bit checkpoint.
        artifacts: folders, GGUF files or repositories.

    Raises:
        QuantkitError: what is wrong with the first of them.
    """
    if file := find_gguf(baseline):
        raise BadInputError(
            f"the baseline {file.name} is a GGUF file, which has no config.json and no tokenizer.json",
            "--baseline names the checkpoint that the artifacts were made from",
        )
    for reference in (baseline, *artifacts):
        if file := find_gguf(reference):
            open_gguf(file)
        elif Path(reference).expanduser().is_dir():
            open_checkpoint(reference, headers_only=True)
