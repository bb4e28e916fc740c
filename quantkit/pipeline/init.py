"""A release file for a checkpoint: variants that fit its size, each with the size that the plan predicts."""

import math
import os
from pathlib import Path
from typing import Any

from quantkit.basecard import carried, licence_files, read_front_matter
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline.init_sizes import candidate, predicted_bytes
from quantkit.pipeline.init_text import Draft, release_text
from quantkit.release_file import is_repository
from quantkit.scheme import load_scheme
from quantkit.weights.files import write_file

# Parameters of the model, and the recipes that are sensible below: small models suffer most, large ones cost most.
BY_SIZE: tuple[tuple[float, tuple[str, ...]], ...] = (
    (3e9, ("gptq-int8", "gptq-int4-g32", "gguf-q8_0", "gguf-q4_k_m")),
    (20e9, ("gptq-int4", "gptq-int8", "gguf-q4_k_m", "gguf-q5_k_m", "gguf-q8_0")),
    (60e9, ("gptq-int4", "gguf-q4_k_m", "gguf-iq4_xs")),
    (math.inf, ("colab-70b", "gguf-q4_k_m", "gguf-iq4_xs")),
)


def write_release(
    reference: str, out: Path | None = None, *, namespace: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Write a release file.

    Args:
        reference: a folder, or `org/name[@revision]`; no weights are downloaded.
        out: the file; by default named after the model, in the working directory.
        namespace: user or organisation where the release is to be published.
        force: replace a file that is there.

    Returns:
        The file, and what is in it, for --json.

    Raises:
        UsageError: the file is there already, or the namespace is none.
        QuantkitError: whatever is wrong with the checkpoint.
    """
    file = out or Path(_file_name(reference))
    if namespace is not None and not is_repository(f"{namespace}/x"):
        raise UsageError(f"no user or organisation of the Hub: {namespace!r}", "such as --namespace my-organisation")
    if os.path.lexists(file) and not force:
        raise UsageError(f"{file} is there already", "give --force to replace it, or another --out")
    made = draft(reference, file.parent, namespace)
    write_file(file, release_text(made).encode())
    return {**made.as_dict(), "file": str(file)}


def draft(reference: str, folder: Path, namespace: str | None = None) -> Draft:
    """What can be made of a checkpoint, from headers, configuration and tokenizer alone.

    Args:
        reference: a folder, or `org/name[@revision]`.
        folder: of the release file, at which the path of a local checkpoint starts.
        namespace: user or organisation where the release is to be published.

    Raises:
        BadInputError: nothing can be made of it: it is damaged, quantized already or of an unknown architecture.
        NotFoundError: there is none, or no access to it.
        NetworkError: the Hub was not reached.
    """
    checkpoint = open_checkpoint(reference, headers_only=True)
    base = checkpoint.repo_id or _path_from(folder, checkpoint.folder)
    found = candidate(checkpoint)
    sizes, left_out = {}, {}
    for name in recipes_for(found.parameters):
        try:
            sizes[name] = predicted_bytes(found, load_scheme(name))
        except (BadInputError, UsageError) as error:
            left_out[name] = str(error)
    if not sizes:
        raise BadInputError(f"nothing can be made of {reference}: {'; '.join(dict.fromkeys(left_out.values()))}")
    licence = carried(read_front_matter(checkpoint.folder)).get("license")
    return Draft(
        base=base,
        revision=checkpoint.commit,
        architecture=str(checkpoint.config["architectures"][0]),
        parameters=found.parameters,
        source_bytes=sum(info.nbytes for info in found.infos.values()),
        gated=checkpoint.gated,
        licence=licence if isinstance(licence, str) else None,
        licence_files=tuple(licence_files(checkpoint.files)),
        namespace=namespace,
        sizes=sizes,
        left_out=left_out,
    )


def recipes_for(parameters: int) -> tuple[str, ...]:
    """The recipes that are sensible for a model of so many parameters."""
    return next(names for limit, names in BY_SIZE if parameters < limit)


def _file_name(reference: str) -> str:
    """`xverse-13b-chat.yaml` for xverse/XVERSE-13B-Chat@main, or for a folder of that name."""
    repository = reference.partition("@")[0]
    name = (repository if is_repository(repository) else reference.rstrip("/")).rpartition("/")[2]
    if name in ("", ".", ".."):
        name = Path(reference or ".").resolve().name
    return f"{name.lower() or 'release'}.yaml"


def _path_from(start: Path, folder: Path) -> str:
    """A folder as a release file names it: from where that file stands."""
    path = os.path.relpath(folder, start)
    if not path.isprintable():
        raise UsageError(f"the folder {path!r} has a name that no YAML file holds", "rename it, or link to it")
    return path if path.startswith(".") else f"./{path}"
