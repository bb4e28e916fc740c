"""Task files of lm-evaluation-harness that a user brings: read without running code that they carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantkit.errors import BadInputError, NotFoundError, UsageError

SUFFIXES = (".yaml", ".yml")
READERS = ("arrow", "csv", "json", "parquet", "text")  # of data files; none of them unpickles
HARMLESS = "describe the task with templates and the harness's own metrics"


@dataclass(frozen=True)
class TaskName:
    """A task as `--tasks` names it: `mmlu`, `mmlu@5` with five examples, a YAML file, or a folder of them."""

    name: str
    shots: int | None = None

    @property
    def local(self) -> bool:
        """Whether it is a file or a folder of the user."""
        return "/" in self.name or self.name.endswith(SUFFIXES)

    @property
    def folder(self) -> str | None:
        """What the tasks of a folder are called together."""
        path = Path(self.name).expanduser()
        return f"{path.resolve().name}/" if self.local and path.is_dir() else None


class _Loader(yaml.SafeLoader):
    """YAML as data."""


def _refuse_function(_loader: yaml.Loader, node: yaml.Node) -> None:
    raise UsageError(f"it runs code: !function {node.value}", HARMLESS)


_Loader.add_constructor("!function", _refuse_function)


def parse_task(text: str) -> TaskName:
    """`name` or `name@shots`."""
    name, at, shots = text.strip().rpartition("@")
    return TaskName(name, int(shots)) if at and shots.isdecimal() else TaskName(text.strip())


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The task of a file, or every task of a folder: files that only group tasks or are included are left out.

    Raises:
        NotFoundError: there is none.
        BadInputError: a file is not YAML, or is no task.
        UsageError: a task runs code.
    """
    if path.is_file():
        task = _read(path)
        if not isinstance(task.get("task"), str):
            raise BadInputError(f"{path} names no task", 'expected "task: NAME"; a folder of tasks is given as such')
        return [_checked(path, task)]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else []
    read = [(file, _read(file)) for file in files]
    found = [_checked(file, task) for file, task in read if isinstance(task.get("task"), str)]
    if not found:
        raise NotFoundError(f"no task file at {path}", "--tasks takes names of tasks, YAML files and folders of them")
    return found


def needs_hub(task: Mapping[str, Any]) -> bool:
    """Whether a task's data come from the Hub."""
    return not (task.get("dataset_kwargs") or {}).get("data_files")


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file as data, with what it includes."""
    path = path.expanduser().resolve()
    if path in above:
        raise BadInputError(f"the task file {path} includes itself")
    try:
        read = yaml.load(path.read_bytes(), _Loader)
    except UsageError as error:
        raise UsageError(f"the task file {path} is refused: {error}", error.hint) from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"the task file {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise BadInputError(f"the task file {path} holds a {type(read).__name__}, expected a mapping")
    merged: dict[str, Any] = {}
    for other in _listed(read.pop("include", [])):
        merged |= _read(path.parent / str(other), (*above, path))
    return merged | _with_data_beside(path.parent, read)


def _with_data_beside(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Data files are meant from where the task file lies, or else from the working directory."""
    options = task.get("dataset_kwargs")
    if not isinstance(options, dict) or "data_files" not in options:
        return task

    def full(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: full(one) for key, one in value.items()}
        if isinstance(value, list):
            return [full(one) for one in value]
        beside = folder / str(value)
        elsewhere = "://" in str(value) or (Path(str(value)).exists() and not beside.exists())
        return str(value) if elsewhere else str(beside)

    return task | {"dataset_kwargs": options | {"data_files": full(options["data_files"])}}


def _checked(path: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Refuse what would run code by other ways than `!function`."""
    for metric in _listed(task.get("metric_list") or []):
        if isinstance(metric, dict) and metric.get("hf_evaluate"):
            raise UsageError(f"the task file {path} is refused: the metric {metric.get('metric')!r} is code", HARMLESS)
    reader = task.get("dataset_path")
    if not needs_hub(task) and reader not in READERS:
        raise UsageError(f"the task file {path} reads data files as {reader!r}, expected one of {', '.join(READERS)}")
    return task


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    return value if isinstance(value, list) else [value]
