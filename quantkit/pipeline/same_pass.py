"""What quantization cost, measured while it is done: source and artifacts through each layer in the run's own pass."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantkit.checkfile import SCHEMA_VERSION, write_check
from quantkit.dtypes import DTYPE_NAMES
from quantkit.errors import BadInputError, NotFoundError, UsageError
from quantkit.lockstep import Lockstep, Pass
from quantkit.memory import peak_resident_bytes
from quantkit.pipeline.check_budget import CheckBudget, check_budget
from quantkit.pipeline.check_job import CheckJob, CheckOptions
from quantkit.pipeline.check_record import entry_of, evaluation_record
from quantkit.pipeline.check_text import cut_windows, overlaps, prefix_ids
from quantkit.pipeline.gptq_pass import GptqPass
from quantkit.pipeline.job import Job
from quantkit.pipeline.machine import machine_of
from quantkit.pipeline.unfinished import Sixteen, UnfinishedArtifact
from quantkit.pipeline.weightset import baseline_of, checkpoint_name, open_artifact
from quantkit.progress import Progress
from quantkit.quality.damage import LinearDamage
from quantkit.quality.texts import EvaluationText, evaluation_texts
from quantkit.quality.windows import Windows
from quantkit.tensors import TensorInfo
from quantkit.versions import versions
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.header import read_header
from quantkit.weights.local import read_range
from quantkit.weights.shards import ShardWriter
from quantkit.weights.streamed import StreamedSource

STATE_FILE = ".check.safetensors.partial"  # activations after the last layer, for a run that is continued
TOLD = "told"  # what else is in it: JSON, as bytes


@dataclass(frozen=True)
class _Prepared:
    """What is read and how it is scored."""

    tokenizer: Any
    texts: tuple[EvaluationText, ...]
    windows: Windows


class SamePassCheck:
    """Carries a checkpoint and the artifacts that a run makes of it through the layers, each when it is done.

    The source crosses the disk or the network once for both. Where it is streamed, the activations after the last
    layer are kept beside the artifact, so that a run that is continued fetches nothing twice.

    Args:
        jobs: of the run.
        options: what is measured, and what is demanded.

    Attributes:
        budget: what the check takes beside the run.

    Raises:
        QuantkitError: the text does not open, or does not fit the model.
        UsageError: something is asked for that takes more than one pass.
    """

    def __init__(self, jobs: Sequence[Job], options: CheckOptions) -> None:
        if options.prompts or options.tasks or options.measure:
            raise UsageError("answers, tasks and measurements take passes of their own", "quantkit check gives them")
        self._options, self._job = options, jobs[0]
        job = self._job
        tokenizer = load_tokenizer(job.checkpoint.folder, job.config)
        texts = tuple(evaluation_texts(options.text))
        windows = cut_windows(texts, tokenizer, job.skeleton, context=options.context, stride=options.stride)
        self._prepared = _Prepared(tokenizer, texts, windows)
        infos = {row.name: row.source for row in job.plan.rows}
        count, context = windows.ids.shape
        self.budget: CheckBudget = check_budget(
            job.skeleton, [infos] * (1 + len(jobs)), count, context, machine_of(job.device)
        )
        self._passes: Sequence[GptqPass] = ()
        self._lockstep: Lockstep | None = None
        self._found: Pass | None = None
        self._done = 0  # layers that source and artifacts have gone through

    def open(self, passes: Sequence[GptqPass]) -> None:
        """Take part in a run, and find out where an earlier one has stopped."""
        self._passes, self._job = passes, passes[0].job
        artifacts = [UnfinishedArtifact(one.job.plan, one.writer) for one in passes]
        source = Sixteen(self._job.checkpoint.source, artifacts[0], f"{self._job.family.layers}.")
        names = [checkpoint_name(self._job.checkpoint), *(one.job.output.name for one in passes)]
        self._lockstep = Lockstep(self._job.skeleton, [source, *artifacts], self._prepared.windows, names)
        self._done = self._state_layers()

    def reads(self) -> Mapping[int, list[str]]:
        """What will be read of the source, by layer."""
        count = len(self._job.skeleton.layers)
        return {index: self._job.skeleton.layer_names(index) for index in range(self._done, count)}

    def begin(self) -> None:
        """Carry the text through the embedding; or take up what an earlier run has left."""
        lockstep = self._running()
        lockstep.begin()
        if not self._done:
            return
        infos = read_header(self._state_path())
        for number, hidden in enumerate(lockstep.hiddens):
            hidden.copy_(read_range(self._state_path(), infos[str(number)]))
        told = self._told()
        lockstep.drift[:] = told["drift"]
        lockstep.damage[:] = [[LinearDamage(**one) for one in row] for row in told["damage"]]

    def layer(self, index: int) -> None:
        """Carry everything through a layer that is done; keep the activations for a run that is interrupted."""
        if index < self._done:
            return
        lockstep = self._running()
        lockstep.layer(index)
        if isinstance(self._job.checkpoint.source, StreamedSource):
            self._keep(index + 1, lockstep)

    def score(self) -> None:
        """Norm, head and comparison, once the artifacts have all their tensors."""
        self._found = self._running().finish()

    def record(self, output: Path, progress: Progress) -> dict[str, Any]:
        """Write the check of a finished artifact beside its files.

        Args:
            output: its folder.
            progress: told what the user should know.

        Returns:
            The record, as `quantkit check` has it.
        """
        assert self._found is not None
        job, options, prepared = self._job, self._options, self._prepared
        base, infos = baseline_of(job.checkpoint, job.family, job.skeleton.tied()), job.checkpoint.source.infos
        opened = tuple(open_artifact(str(one.job.output), job.family, job.skeleton, infos) for one in self._passes)
        notes = tuple(overlaps(prepared.texts, opened))
        whole = CheckJob(
            options, base, opened, job.family, job.config, job.skeleton, prepared.tokenizer, prepared.texts,
            prepared.windows, prefix_ids(prepared.tokenizer), self.budget, job.device, notes,
        )  # fmt: skip
        number = 1 + [one.job.output for one in self._passes].index(output)
        entry = entry_of(whole, number, self._found)
        record = {
            "schema_version": SCHEMA_VERSION,
            "versions": versions(),
            "evaluation": evaluation_record(whole),
            "predicted": {"host_bytes": self.budget.host_bytes, "seconds": round(self.budget.seconds, 1)},
            "measured": {"host_bytes": peak_resident_bytes(), "seconds": None},
            "baseline": entry_of(whole, 0, self._found),
            "artifacts": [entry],
            "passed": entry["passed"],
        }
        write_check(output, record)
        self._state_path().unlink(missing_ok=True)
        for note in notes:
            progress.say(f"note: {note}")
        return record

    def _running(self) -> Lockstep:
        assert self._lockstep is not None, "open() comes first"
        return self._lockstep

    def _state_path(self) -> Path:
        return self._passes[0].job.output / STATE_FILE

    def _state_layers(self) -> int:
        """Layers that an earlier run of the same check went through."""
        try:
            told = self._told()
        except (NotFoundError, BadInputError):
            return 0
        return int(told["layers"]) if told["key"] == self._key() else 0

    def _told(self) -> dict[str, Any]:
        path = self._state_path()
        if not path.exists():
            raise NotFoundError(f"no such file: {path}")
        told: dict[str, Any] = json.loads(bytes(read_range(path, read_header(path)[TOLD]).tolist()))
        return told

    def _keep(self, layers: int, lockstep: Lockstep) -> None:
        damage = [[one.as_dict() for one in row] for row in lockstep.damage]
        told = {"layers": layers, "key": self._key(), "drift": lockstep.drift, "damage": damage}
        tensors = {str(number): hidden for number, hidden in enumerate(lockstep.hiddens)}
        tensors[TOLD] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        infos = [
            TensorInfo(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), STATE_FILE)
            for name, tensor in tensors.items()
        ]
        writer = ShardWriter(self._state_path().parent, STATE_FILE, infos)
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()

    def _key(self) -> str:
        """What the activations depend on, beside the run itself, which the folder belongs to."""
        texts = [text.sha256 for text in self._prepared.texts]
        return json.dumps([texts, *self._prepared.windows.ids.shape, [one.job.output.name for one in self._passes]])
