"""A check prepared: weight sets opened, text cut, costs predicted, and everything refused that can be."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from quantkit.devices import Device, choose_device
from quantkit.errors import OutOfMemoryError, UsageError
from quantkit.families.family import Family
from quantkit.pipeline.check_budget import CheckBudget, check_budget
from quantkit.pipeline.check_text import cut_windows, other_vocabularies, overlaps, prefix_ids
from quantkit.pipeline.machine import machine_of
from quantkit.pipeline.tasks import Tasks, open_tasks
from quantkit.pipeline.weightset import WeightSet, open_artifact, open_baseline, weight_bytes
from quantkit.quality.gates import Limits
from quantkit.quality.prompts import Prompt, load_prompts
from quantkit.quality.texts import EvaluationText, evaluation_texts
from quantkit.quality.windows import Windows
from quantkit.skeleton import Skeleton
from quantkit.units import format_gib
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.streamed import SHARD_FOLDER, StreamedSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class CheckOptions:
    """What a check measures, and what it demands."""

    text: tuple[str, ...] = ("default",)
    context: int | None = None
    stride: int | None = None
    like_llama_cpp: bool = False
    dtype: str = "auto"
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)  # instead of the defaults by bits
    limits_by_name: Mapping[str, Limits] = field(default_factory=dict)  # of single artifacts
    gated: bool = True
    kv_context: int = 4096  # tokens of the KV cache in the memory table
    prompts: str | None = None  # `default` or a JSONL file
    baseline_answers: bool = False
    tasks: tuple[str, ...] = ()
    task_limit: int | None = None
    measure: bool = False
    runtime_python: str | None = None


@dataclass(frozen=True)
class CheckJob:
    """What `prepare` found; `run` executes it."""

    options: CheckOptions
    baseline: WeightSet
    artifacts: tuple[WeightSet, ...]
    family: Family
    config: Mapping[str, Any]
    skeleton: Skeleton
    tokenizer: Any
    texts: tuple[EvaluationText, ...]
    windows: Windows
    prefix: tuple[int, ...]
    budget: CheckBudget
    device: Device
    notes: tuple[str, ...]
    prompts: tuple[Prompt, ...] = ()
    tasks: Tasks | None = None
    beside: Path | None = None  # the folder in which shards of the baseline come and go; None: all are here

    @property
    def sets(self) -> tuple[WeightSet, ...]:
        """The baseline and the artifacts."""
        return (self.baseline, *self.artifacts)


def prepare(
    artifacts: Sequence[str], baseline: str, options: CheckOptions | None = None, *, stream: bool | None = None
) -> CheckJob:
    """Open everything, cut the text into windows and predict the costs; no weight is read.

    Args:
        artifacts: folders, GGUF files, or `org/name[@revision]`.
        baseline: the 16-bit checkpoint that they were made from.
        options: what is measured.
        stream: let the shards of a baseline on the Hub come and go; None: where the disk does not hold them all.

    Raises:
        UsageError: streaming is asked for with what takes several passes.
        QuantkitError: something does not open, or does not fit together.
    """
    options = options or CheckOptions()
    if options.prompts or options.tasks or options.measure:
        if stream:
            raise UsageError(
                "answers, tasks and measurements read the baseline several times: it cannot be streamed",
                "leave --stream out, or --prompts, --tasks and --measure",
            )
        stream = False
    texts = tuple(evaluation_texts(options.text))
    prompts = tuple(load_prompts(options.prompts)) if options.prompts else ()
    tasks = open_tasks(options.tasks, options.task_limit) if options.tasks else None
    device = _device(options)
    beside = _beside(artifacts)
    base, family, config = open_baseline(baseline, beside / SHARD_FOLDER, stream)
    skeleton = Skeleton(family, config, device.dtype, device.device)
    base = replace(base, weight_bytes=weight_bytes(base.source, family, skeleton.tied()))
    opened = tuple(open_artifact(reference, family, skeleton, base.source.infos) for reference in artifacts)
    tokenizer = load_tokenizer(base.folder, config)
    windows = cut_windows(
        texts,
        tokenizer,
        skeleton,
        context=options.context,
        stride=options.stride,
        as_llama_cpp=options.like_llama_cpp,
    )
    machine = machine_of(device)
    count, context = windows.ids.shape
    budget = check_budget(
        skeleton,
        [entry.source.infos for entry in (base, *opened)],
        count,
        context,
        machine,
        different_heads=1 + sum(entry.has_own_head for entry in opened),
        reading_bytes=max((entry.reading_bytes for entry in opened), default=0),
    )
    if budget.host_bytes > machine.available_bytes:
        raise OutOfMemoryError(
            f"the check needs {format_gib(budget.host_bytes)} of memory, "
            f"{format_gib(machine.available_bytes)} is available",
            f"{format_gib(budget.activation_bytes)} of it holds activations: check fewer artifacts or less --text",
        )
    notes = (*overlaps(texts, opened), *other_vocabularies(tokenizer, opened))
    return CheckJob(
        options, base, opened, family, config, skeleton, tokenizer, texts, windows, prefix_ids(tokenizer), budget,
        device, notes, prompts, tasks, beside if isinstance(base.source, StreamedSource) else None,
    )  # fmt: skip


def _beside(artifacts: Sequence[str]) -> Path:
    """The folder in which shards of a baseline may stand: of an artifact on the disk, else the working folder."""
    for reference in artifacts:
        with suppress(OSError, RuntimeError, ValueError):  # what is wrong with a name is said where it is opened
            path = Path(reference).expanduser()
            home = path if path.is_dir() else path.parent
            if path.exists() and os.access(home, os.W_OK):
                return home
    return Path.cwd()


def _device(options: CheckOptions) -> Device:
    device = choose_device(options.device)
    if options.dtype == "auto":
        return device
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype {options.dtype!r} is none of auto, {', '.join(DTYPES)}")
    return Device(device.device, DTYPES[options.dtype], "as asked")
