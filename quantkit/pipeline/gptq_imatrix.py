"""The importance matrix of a GPTQ run: the diagonals of its Hessians, so that one pass over the text gives both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantkit.calibration import CalibrationTokens, public_name
from quantkit.errors import UsageError
from quantkit.families.gguf_lookup import gguf_family_of
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.pipeline.imatrix import collect, weight_inputs
from quantkit.pipeline.imatrix_file import assembled, kept_or_made, origin_of, own_imatrix
from quantkit.pipeline.job import Job
from quantkit.pipeline.layerwise import QuantizedLinear
from quantkit.plan.gguf_rows import gguf_rows
from quantkit.plan.gguf_settings import complete_config
from quantkit.progress import Progress
from quantkit.weights.imatrix import Entry, Imatrix
from quantkit.weights.source import open_folder


class GptqImatrix:
    """Takes what a GPTQ run learns of the inputs of its linears, and puts it into an imatrix file.

    Args:
        path: of the file.
        job: of the run, downloaded or not.

    Raises:
        UsageError: the run looks at no text.
        BadInputError: llama.cpp has no place for the model; the file is of another tool.
        DiskError: there is no folder for the file.
    """

    def __init__(self, path: Path, job: Job) -> None:
        if job.recipe.method != "gptq":
            raise UsageError(f"--imatrix needs calibration, which --method {job.recipe.method} does without")
        own_imatrix(path)
        self._path = path
        _, gguf = gguf_family_of(job.checkpoint.config)
        infos = {row.name: row.source for row in job.plan.rows}
        self._rows = gguf_rows(job.family, gguf, complete_config(job.family, job.config), infos)
        self._inputs = weight_inputs(job.family, self._rows)
        self._means: dict[str, torch.Tensor] = {}

    def note(self, linear: QuantizedLinear) -> None:
        """Keep the mean squares of a linear's inputs."""
        if linear.mean_square is not None and linear.name in self._inputs.values():
            self._means[linear.name] = linear.mean_square.cpu()

    def write(self, job: Job, tokens: CalibrationTokens, inputs: Mapping[str, Any], progress: Progress) -> None:
        """Write the file, once the artifact is whole.

        Where the run has not seen every linear's input, as one that was continued or leaves linears in 16 bits,
        the artifact is run over the text once more: the inputs of its linears are those that GPTQ saw.

        Args:
            job: of the run.
            tokens: what the model has read.
            inputs: fingerprint of the run.
            progress: told what happens.
        """
        origin = origin_of(tokens, dict(inputs), job.skeleton.dtype)

        def made() -> Imatrix:
            entries = self._entries(tokens.ids.numel()) or self._again(job, tokens, progress)
            return assembled(entries, tokens, map(public_name, job.recipe.calibration.text), origin)

        kept_or_made(self._path, origin, made, progress)

    def _entries(self, count: int) -> dict[str, Entry] | None:
        if not set(self._inputs.values()) <= self._means.keys():
            return None
        sums = {name: (mean.double() * count).numpy()[None] for name, mean in self._means.items()}
        counts = np.array([count], np.float32)
        return {name: Entry(sums[linear], counts) for name, linear in self._inputs.items()}

    def _again(self, job: Job, tokens: CalibrationTokens, progress: Progress) -> dict[str, Entry]:
        progress.say("imatrix: not all of its sums are of this run; one more pass over the text takes them")
        artifact = open_folder(job.output)
        source = DequantizedSource(artifact.source, artifact.config["quantization_config"])
        return collect(job.skeleton, source, self._rows, tokens.ids, progress)
