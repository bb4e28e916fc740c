"""The first look at a checkpoint: all that headers and config.json betray, without torch or transformers."""

from collections.abc import Iterable
from pathlib import Path

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError
from quantkit.families.checks import check_config
from quantkit.families.gguf_experts import GGUF_EXPERTS
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.families.layers import check_layers
from quantkit.families.lookup import family_of
from quantkit.weights.gguf_names import find_gguf
from quantkit.weights.gguf_read import open_gguf
from quantkit.weights.source import Checkpoint


def look(reference: str) -> Checkpoint:
    """Open a 16-bit checkpoint, and refuse what needs no more than its headers.

    Commands call it before they load torch, so that a damaged file is refused at once.

    Args:
        reference: a folder, or `org/name[@revision]`; no weights are downloaded.

    Raises:
        QuantkitError: what is wrong with it.
    """
    checkpoint = open_checkpoint(reference, headers_only=True)
    family = family_of(checkpoint.config)
    check_config(checkpoint.config)
    if infos := checkpoint.source.infos:  # none where `.bin` files are not downloaded yet
        check_layers(family, checkpoint.config, infos)
    return checkpoint


def look_for_gguf(reference: str) -> Checkpoint:
    """The same for a checkpoint that is only converted: it may be quantized, or a mixture of experts.

    Raises:
        QuantkitError: what is wrong with it.
    """
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
