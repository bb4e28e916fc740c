"""Tasks of lm-evaluation-harness on every weight set of a check, with one layer in memory."""

import difflib
import importlib.util
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from quantkit.errors import BadInputError, NetworkError, UsageError
from quantkit.pipeline.streamed import StreamedWeights
from quantkit.pipeline.taskfiles import TaskName, needs_hub, parse_task, read_tasks
from quantkit.pipeline.weightset import WeightSet
from quantkit.progress import Progress
from quantkit.skeleton import Skeleton

BOOTSTRAPS = 1000  # for the error of metrics without a formula for it
NOT_METRICS = ("name", "alias", "sample_len", "sample_count")
# What the harness raises for tasks that make no sense.
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TemplateError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to be run on any number of models."""

    loaded: Mapping[str, Any]  # the harness's tasks and groups by name
    results: tuple[str, ...]  # whose figures were asked for
    limit: int | None  # samples of each task; None: all
    offline: bool


def open_tasks(names: Sequence[str], limit: int | None = None) -> Tasks:
    """Find tasks and read their data.

    Args:
        names: tasks and groups of the harness, `name@shots`, YAML files and folders of them.
        limit: samples of each task; None: all.

    Raises:
        UsageError: lm-evaluation-harness is not installed, there is no such task, or it runs code.
        BadInputError: a task file makes no sense, or its data do not fit.
        NetworkError: the data of one of the harness's tasks cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("--tasks needs lm-evaluation-harness, which is not installed", "pip install 'quantkit[tasks]'")
    asked = [parse_task(name) for name in names]
    files = [read_tasks(Path(task.name).expanduser()) if task.local else [] for task in asked]
    offline = all(read and not any(map(needs_hub, read)) for read in files)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    results: list[str] = []

    from quantkit.pipeline.harness import surroundings

    with surroundings(offline):
        from lm_eval.tasks import TaskManager

        _seed()
        manager = TaskManager(include_defaults=not all(files))  # half a minute for the harness's own
        for task, read in zip(asked, files, strict=True):
            found = _load(manager, task, read)
            if twice := loaded["tasks"].keys() & found["tasks"].keys():
                raise UsageError(f"the task {min(twice)} is asked for twice")
            for kind, members in loaded.items():
                members |= found[kind]
            group = found["groups"].get(task.folder or task.name)
            results += [group.name] if group is not None and group.has_aggregation else list(found["tasks"])
    return Tasks(loaded, tuple(results), limit, offline)


def run_tasks(
    tasks: Tasks,
    skeleton: Skeleton,
    config: Mapping[str, Any],
    tokenizer: Any,  # noqa: ANN401
    sets: Sequence[WeightSet],
    progress: Progress,
) -> list[dict[str, dict[str, Any]]]:
    """Run tasks on weight sets, one after the other.

    Args:
        tasks: from `open_tasks`.
        skeleton: of the common architecture.
        config: config.json, for a second skeleton in float32 that writes answers.
        tokenizer: of the baseline.
        sets: the baseline and the artifacts.
        progress: told what happens.

    Returns:
        For each weight set by name of task: `metric`, `value`, `error` (one standard error or None), `samples`,
        `shots`; `others` with further metrics, and for a group `tasks` with its members.

    Raises:
        BadInputError: a task does not fit its data.
        QuantkitError: a weight set cannot be read or computed.
    """
    from quantkit.pipeline.harness import StreamedModel, surroundings

    exact = skeleton
    if skeleton.dtype != torch.float32:
        exact = Skeleton(skeleton.family, config, torch.float32, skeleton.device)
    found = []
    with surroundings(tasks.offline):
        for weights in sets:
            model = StreamedModel(StreamedWeights(weights, skeleton, exact, tokenizer, progress))
            found.append(_evaluated(tasks, model))
            if model.shortened and weights is sets[0]:
                longer = f"have more than the {model.max_length} tokens that the model reads at once"
                progress.say(f"note: {model.shortened} prompts {longer}, and lost their beginning")
    return found


def _load(manager: Any, task: TaskName, read: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """The harness's tasks and groups that a name stands for, their data read."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    if not read and task.name not in manager.all_tasks:
        near = difflib.get_close_matches(task.name, manager.all_tasks, 3)
        raise UsageError(f"no task {task.name!r}", f"did you mean {', '.join(near)}?" if near else None)
    try:
        found = manager.load(list(read) if read else [task.name])
        if task.folder:
            metrics = {metric: None for one in found["tasks"].values() for metric in one.aggregation()}
            group = Group(task.folder, aggregate_metric_list=[AggMetricConfig(metric) for metric in metrics])
            for one in found["tasks"].values():
                group.add(one)
            found["groups"] = {group.name: group}
    except OSError as error:
        if read:
            raise BadInputError(f"the data of {task.name} cannot be read: {_reason(error)}") from error
        hint = "download it beforehand, or write a task file that reads your own data"
        raise NetworkError(f"the data of the task {task.name} cannot be had: {_reason(error)}", hint) from error
    except REFUSALS as error:
        raise BadInputError(f"the task {task.name} cannot be used: {_reason(error)}") from error
    for name, one in found["tasks"].items():
        _set_shots(name, one, task.shots)
    return {"tasks": found["tasks"], "groups": found["groups"]}


def _set_shots(name: str, task: Any, shots: int | None) -> None:  # noqa: ANN401
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise UsageError(f"the task {name} is defined without examples", f"leave @{shots} out")
    task.set_config(key="num_fewshot", value=shots if shots is not None else own or 0)


def _evaluated(tasks: Tasks, model: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate

    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)  # the same examples for every weight set
    try:
        found = evaluate(model, tasks.loaded, limit=tasks.limit, bootstrap_iters=BOOTSTRAPS, log_samples=False)
    except REFUSALS as error:
        raise BadInputError(f"the tasks cannot be run: {_reason(error)}") from error
    rows = {}
    for name in tasks.results:
        rows[name] = _row(found, name)
        if name in tasks.loaded["groups"]:
            members = [task.task_name for task in tasks.loaded["groups"][name].get_all_tasks()]
            rows[name]["tasks"] = {member: _row(found, member) for member in members}
    return rows


def _row(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The task's first metric, which is the one it is known by, and the others."""
    result = found["results"][name]
    metrics = []
    for key, value in result.items():
        metric, _, filtered = key.partition(",")
        if key in NOT_METRICS or metric.endswith("_stderr"):
            continue
        error = result.get(f"{metric}_stderr,{filtered}")
        metrics.append(
            {
                "metric": metric if filtered == "none" else key,
                "value": float(value),
                "error": float(error) if isinstance(error, int | float) else None,
            }
        )
    if not metrics:
        raise BadInputError(f"the task {name} has no metric that sums up its samples")
    return metrics[0] | {
        "samples": int(result["sample_len"]),
        "shots": found["n-shot"].get(name),
        "others": metrics[1:],
    }


def _reason(error: BaseException) -> str:
    """The first line of what a library says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _seed() -> None:
    """As the harness's own command does, since some tasks draw their samples."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
