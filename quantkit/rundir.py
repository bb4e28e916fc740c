"""The job on disk: run.json, layers.jsonl, what is finished, and the fingerprint of its inputs."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.files import disk_failure, write_file
from quantkit.weights.streamed import SHARD_FOLDER

RUN_FILE = "run.json"
LAYERS_FILE = "layers.jsonl"
CONFIG_FILE = "config.json"
OWN_FILES = (
    CONFIG_FILE,
    LAYERS_FILE,
    "quantize_config.json",
    "model.safetensors.index.json",
    "check.json",
    "quantkit.json",
    "README.md",
    "quality.svg",
)
SCHEMA_VERSION = 1


def check_folder(folder: Path) -> None:
    """Refuse a folder that a run could not use, without touching it.

    Raises:
        BadInputError: it is a file, or holds something that is not of quantkit.
        DiskError: it cannot be created or written.
    """
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise BadInputError(f"{parent} is a file, expected a folder", "choose another --out")
    if not os.access(parent, os.W_OK):
        raise DiskError(f"{parent} is not writable", "choose another --out")
    # One listing: another run may be about to give run.json its name.
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strangers = [name for name in names if not (name.startswith(".") and name.endswith((".partial", ".lock")))]
    if strangers and RUN_FILE not in names:
        raise BadInputError(
            f"{folder} holds {strangers[0]} and no {RUN_FILE}: it is not a folder of quantkit", "choose another --out"
        )


def says_finished(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return _finished_record(folder) is not None


def is_finished(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """The same of a run with these inputs."""
    record = _finished_record(folder)
    return record is not None and record.get("fingerprint") == json.loads(json.dumps(fingerprint))


def _finished_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    ended = isinstance(record, dict) and record.get("status") == "finished" and (folder / CONFIG_FILE).exists()
    return record if ended else None


class RunFolder:
    """The output folder of one run, which must hold its lock.

    `run.json` says what is being made (`status: running`) from the first second on and what was made
    at the end; `layers.jsonl` has a line per linear and, once a layer's tensors are on the disk, a
    line `{"finished": N}` with what it cost. A run that died is continued from there.

    Args:
        folder: created if absent.
        fingerprint: every input that decides the bytes of the artifact, by name.
        restart: begin anew, whatever an earlier run of quantkit left there.

    Raises:
        BadInputError: the folder holds something else, or a run with other inputs.
        DiskError: it cannot be created or written.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        self.finished_layers = 0
        self.complete = False
        self._fingerprint = fingerprint
        check_folder(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"cannot create {folder}: {error.strerror}", "choose another --out") from error
        previous = self._previous()
        if previous is None or restart:
            if previous is not None:
                self._clear()
            self._begin()
            return
        self._compare(previous["fingerprint"], fingerprint)
        left = (path.name for path in folder.glob(".*.partial") if path.name != SHARD_FOLDER)
        self._remove(*(name for name in left if ".safetensors." not in name))
        # config.json is written after run.json, as the very last file.
        self.complete = previous["status"] == "finished" and (folder / CONFIG_FILE).exists()
        if not self.complete:
            self.reopen()

    def reopen(self) -> None:
        """Go on with a run that is not finished, or of which a file was lost."""
        self._remove(CONFIG_FILE)  # a folder that has it is whole
        self._begin()
        self.complete = False
        self.finished_layers = self._read_layers()

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_file(self.folder / RUN_FILE, json.dumps(record, indent=2).encode() + b"\n")

    def record_linear(self, record: Mapping[str, Any]) -> None:
        """Append a linear's line to layers.jsonl."""
        self._append(record)

    def record_finished(self, layer: int, cost: Mapping[str, float] | None = None, beside: Iterable[str] = ()) -> None:
        """Append the line that makes a layer final, with its cost; its tensors must be on the disk already.

        `beside` names the tensors outside of the layers that are on the disk by now.
        """
        self._append({"finished": layer, **(cost or {}), **({"beside": names} if (names := sorted(beside)) else {})})
        self.finished_layers = layer + 1

    def forget_from(self, layer: int) -> None:
        """Count a layer and those after it as unfinished: their bytes are gone."""
        if layer < self.finished_layers:
            self.finished_layers = self._read_layers(layer)

    def linears(self) -> list[dict[str, Any]]:
        """The lines of the linears of finished layers, in order."""
        return [row for row in self._rows() if "name" in row]

    def costs(self) -> list[dict[str, Any]]:
        """What each finished layer cost, in order."""
        return [row for row in self._rows() if "finished" in row]

    def beside(self) -> set[str]:
        """Tensors outside of the layers that were on the disk when the last finished layer was."""
        return set(next((row.get("beside", ()) for row in reversed(self.costs())), ()))

    def _rows(self) -> list[dict[str, Any]]:
        path = self.folder / LAYERS_FILE
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def _begin(self) -> None:
        fingerprint = dict(self._fingerprint)
        self.write_run({"schema_version": SCHEMA_VERSION, "status": "running", "fingerprint": fingerprint})

    def _clear(self) -> None:
        """Remove what an earlier run made, in an order in which no crash leaves more than an unfinished run."""
        names = [path.name for path in self.folder.iterdir()]
        weights = [name for name in names if name.endswith(".safetensors")]
        partial = [path.name for path in self.folder.glob(".*.partial") if path.name != SHARD_FOLDER]
        self._remove(*OWN_FILES, *weights, *partial)

    def _remove(self, *names: str) -> None:
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise DiskError(f"cannot remove {self.folder / name}: {error.strerror}") from error

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            with (self.folder / LAYERS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            disk_failure(error, self.folder / LAYERS_FILE, 0)

    def _previous(self) -> dict[str, Any] | None:
        """run.json of an earlier run."""
        path = self.folder / RUN_FILE
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text("utf-8"))
            ours = isinstance(record["fingerprint"], dict) and isinstance(record["status"], str)
        except (ValueError, TypeError, KeyError):
            ours = False
        if not ours:
            raise BadInputError(f"{path} is not a record of quantkit", "choose another --out")
        return dict(record)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        old, new = _flat(old), _flat(json.loads(json.dumps(new)))  # as the file would give it back
        # What a user has set comes first: it is the reason why other inputs differ.
        for key in sorted(old.keys() | new.keys(), key=lambda key: (not key.startswith("recipe."), key)):
            if old.get(key) != new.get(key):
                raise BadInputError(
                    f"{self.folder} holds a run with {key} {old.get(key)}, this one has {new.get(key)}",
                    "choose another --out, or --restart to begin anew",
                )

    def _read_layers(self, limit: float = math.inf) -> int:
        """Count finished layers below a limit and cut the lines of all others."""
        path = self.folder / LAYERS_FILE
        if not path.exists():
            return 0
        kept: list[str] = []
        pending: list[str] = []
        finished = 0
        for line in path.read_text("utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that a crash cut off
                break
            pending.append(line)
            if "finished" in row:
                if row["finished"] >= limit:
                    break
                kept, pending, finished = kept + pending, [], row["finished"] + 1
        write_file(path, "".join(line + "\n" for line in kept).encode())
        return finished


def _flat(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """File hashes as inputs of their own: `source.config.json`."""
    flat: dict[str, Any] = {}
    for key, value in fingerprint.items():
        flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat
