"""The calibration sets of jobs that go through the layers together."""

from collections.abc import Sequence

from quantkit.calibration import CalibrationTokens, build_tokens
from quantkit.pipeline.job import Job, sample_length
from quantkit.pipeline.tokenizer import Tokenizer
from quantkit.progress import Progress


def calibration_sets(
    jobs: Sequence[Job], tokenizers: Sequence[Tokenizer], progress: Progress
) -> list[CalibrationTokens | None]:
    """The calibration set of each job; those that ask for the same share one.

    Args:
        jobs: of one checkpoint.
        tokenizers: theirs.
        progress: told what the sets hold.

    Returns:
        A set per job, None for a method without data.

    Raises:
        QuantkitError: a text cannot be read, or holds too little.
    """
    made: dict[str, CalibrationTokens] = {}
    found: list[CalibrationTokens | None] = []
    for job, tokenizer in zip(jobs, tokenizers, strict=True):
        length, asked = sample_length(job.recipe, job.config), job.recipe.calibration
        key = asked.model_dump_json()
        if job.recipe.method == "gptq" and key not in made:
            vocabulary = job.plan.row(f"{job.family.embedding}.weight").source.shape[0]
            made[key] = build_tokens(asked, tokenizer, vocabulary, length)
            _tell(made[key], progress)
        found.append(made[key] if job.recipe.method == "gptq" else None)
    return found


def _tell(tokens: CalibrationTokens, progress: Progress) -> None:
    samples, length = tokens.ids.shape
    progress.say(f"calibration: {samples} x {length} tokens from {', '.join(name for name, _ in tokens.sets)}")
    if samples < tokens.asked_samples:
        progress.say(
            f"calibration: the text holds {samples} of the {tokens.asked_samples} samples asked for; "
            "for a large model give more, such as --calibration c4"
        )
