"""The first look at a checkpoint: all that headers and config.json betray, without torch or transformers."""

from collections.abc import Iterable
from pathlib import Path

from quantkit.checkpoint import open_checkpoint
from quantkit.families.checks import check_config
from quantkit.families.layers import check_layers
from quantkit.families.lookup import family_of
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


def look_at_headers(references: Iterable[str]) -> None:
    """Refuse folders whose files are damaged; of repositories nothing is asked yet.

    Raises:
        QuantkitError: what is wrong with the first of them.
    """
    for reference in references:
        if Path(reference).expanduser().is_dir():
            open_checkpoint(reference, headers_only=True)
