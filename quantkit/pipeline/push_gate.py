"""Whether an artifact may be published: checked, passed, and the files are those that were checked."""

from dataclasses import dataclass

from quantkit.checkfile import CHECK_FILE, standing
from quantkit.manifest import read_manifest
from quantkit.pipeline.push_files import CARD, Artifact
from quantkit.weights.hashes import file_hashes


@dataclass(frozen=True)
class Verdict:
    """What speaks against publishing, and the hashes that were computed to find out."""

    objections: tuple[str, ...]
    hashes: dict[str, str]  # file name -> sha256


def judge(artifact: Artifact) -> Verdict:
    """Hold an artifact against its check and its manifest; every byte of it is read once.

    Raises:
        BadInputError: the manifest is not what quantkit wrote.
        DiskError: a file cannot be read.
    """
    objections: list[str] = []
    hashes: dict[str, str] = {}
    for model in artifact.models:
        found = standing(model)
        if found.counts and found.record:
            hashes |= found.record["artifacts"][0]["files"]
        else:
            objections.append(found.reason)
    hashes = file_hashes(artifact.folder, artifact.names, hashes)
    manifest = read_manifest(artifact.folder)
    stated = manifest.files if manifest else {}
    for name in sorted(set(stated) & set(artifact.names)):
        # Card and check come after the manifest and are entered into it when the card is written.
        is_later = name == CARD or name.endswith(CHECK_FILE)
        if not is_later and stated[name] != hashes[name]:
            objections.append(f"{name} is not the file that the run made: another sha256 than quantkit.json has")
    return Verdict(tuple(objections), hashes)
