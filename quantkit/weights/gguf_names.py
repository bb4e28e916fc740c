"""GGUF models by the names of their files: one file, the parts of a split one, the only one of a folder."""

import re
from pathlib import Path

from quantkit.errors import BadInputError

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
# A folder that holds these is a checkpoint, whatever lies beside them.
OTHER_WEIGHTS = ("*.safetensors", "*.bin")


def find_gguf(reference: str | Path) -> Path | None:
    """The GGUF file that a user names: by its own name, or by that of a folder which holds no other weights.

    Returns:
        The file, of a split model's folder the first part; None where the reference is something else. Whether the
        file is there is not looked at.

    Raises:
        BadInputError: the folder holds several models.
    """
    try:
        path = Path(reference).expanduser()
        if not path.is_dir():
            return path if path.name.endswith(SUFFIX) else None
        if any(next(path.glob(pattern), None) for pattern in OTHER_WEIGHTS):
            return None
        models = {gguf_parts(file)[0] for file in path.glob("*" + SUFFIX)}
    except (OSError, RuntimeError, ValueError):  # too long for a name, an unknown user's ~, a NUL byte
        return None
    if len(models) > 1:
        names = ", ".join(sorted(model.name for model in models)[:3])
        raise BadInputError(
            f"{path} holds {len(models)} GGUF models: {names}{', ...' if len(models) > 3 else ''}", "name one file"
        )
    return models.pop() if models else None


def gguf_parts(path: Path) -> list[Path]:
    """The files of the model to which a file belongs by its name, in order."""
    match = PART.fullmatch(path.name)
    if match is None or not int(match["count"]):
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}{SUFFIX}") for number in range(1, count + 1)]


def gguf_stem(path: Path) -> str:
    """What the model of a file is called: its name without the ending and the number of a part."""
    match = PART.fullmatch(path.name)
    return match["stem"] if match else path.name.removesuffix(SUFFIX)
