"""The tokenizer of a run: loaded once, carried into the artifact, and proven there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, QuantkitError
from quantkit.pipeline.job import Job
from quantkit.vocab.files import read_files, tokenizer_files
from quantkit.vocab.load import load_files, load_treated
from quantkit.vocab.proof import Portrait, difference, json_difference, portrait

Tokenizer = Any  # transformers' tokenizer


@dataclass(frozen=True)
class RunTokenizer:
    """What a run keeps of the tokenizer while it works: the files' bytes, and what they make of some texts."""

    files: Mapping[str, bytes]  # of the artifact
    portrait: Portrait | None  # None: the tokenizer was not read
    unread: str | None = None  # why

    def prove(self, output: Path, config: Mapping[str, Any]) -> dict[str, Any]:
        """Load the artifact's tokenizer as plain transformers does and compare it with the source's.

        Args:
            output: the artifact's folder, with its tokenizer files.
            config: its config.json.

        Returns:
            What run.json says about it.

        Raises:
            QuantkitError: it makes other ids of some text.
        """
        if self.portrait is None:
            return {"proven_on_texts": 0, "unread": self.unread}
        found = difference(self.portrait, portrait(load_files(read_files(output), config, output.name)))
        if found is not None:
            raise QuantkitError(
                f"the tokenizer in {output} is not that of the source: {found}",
                "remove files that do not belong there, or choose another --out",
            )
        return {"proven_on_texts": len(self.portrait.readings)}


def open_tokenizer(job: Job) -> tuple[Tokenizer | None, RunTokenizer]:
    """The source's tokenizer, mended or rebuilt where need be.

    A job without calibration does without: its files are then copied as they are, and the run says so.

    Raises:
        BadInputError: it does not load, or tokenizer.json alone does not do what it must.
        NotFoundError: XGen's, and GPT-2's vocabulary cannot be had.
    """
    folder, plan = job.checkpoint.folder, job.tokenizer
    name = job.checkpoint.repo_id or folder.name
    files = tokenizer_files(folder, plan)
    try:
        tokenizer = load_treated(plan, files, job.config, name)
    except BadInputError as error:
        if job.recipe.method == "gptq":
            raise
        return None, RunTokenizer(files, None, str(error))
    seen = portrait(tokenizer)
    if plan.as_it_is and (found := json_difference(seen, files["tokenizer.json"])) is not None:
        raise BadInputError(f"the tokenizer of {name} is read in two ways: {found}")
    return tokenizer, RunTokenizer(files, seen)
