"""The job on disk: run.json, layers.jsonl, what is finished, and the fingerprint of its inputs."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError, DiskError
from quantkit.weights.files import write_file

RUN_FILE = "run.json"
LAYERS_FILE = "layers.jsonl"
OWN_FILES = (LAYERS_FILE, "config.json", "quantize_config.json", "model.safetensors.index.json")
SCHEMA_VERSION = 1


def check_folder(folder: Path) -> None:
    """Refuse a folder that a run could not use, without touching it.

    Raises:
        BadInputError: it is a file, or holds something that is not of quantkit.
        DiskError: it cannot be created or written.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file, expected a folder", "choose another --out")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise DiskError(f"{parent} is not writable", "choose another --out")
    if not folder.exists() or (folder / RUN_FILE).exists():
        return
    for item in sorted(folder.iterdir()):
        if not (item.name.startswith(".") and item.name.endswith(".partial")):
            raise BadInputError(
                f"{folder} holds {item.name} and no {RUN_FILE}: it is not a folder of quantkit", "choose another --out"
            )


def restart_folder(folder: Path) -> None:
    """Remove what an earlier run of quantkit made, and nothing else; a folder of something else is left alone."""
    if not (folder / RUN_FILE).is_file() or _read_record(folder / RUN_FILE) is None:
        return
    # An empty fingerprint first: from here on this is a folder in which a new run may begin.
    begun = {"schema_version": SCHEMA_VERSION, "status": "running", "fingerprint": {}}
    write_file(folder / RUN_FILE, json.dumps(begun).encode())
    for path in folder.iterdir():
        if path.name in OWN_FILES or path.suffix in (".safetensors", ".partial"):
            path.unlink()


class RunFolder:
    """The output folder of one run.

    `run.json` says what is being made (`status: running`) from the first second on and what was made
    at the end; `layers.jsonl` has a line per linear and, once a layer's tensors are on the disk, a
    line `{"finished": N}`. A run that died is continued from there.

    Args:
        folder: created if absent.
        fingerprint: every input that decides the bytes of the artifact, by name.

    Raises:
        BadInputError: the folder holds something else, or a run with other inputs.
        DiskError: it cannot be created or written.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        self.finished_layers = 0
        self.complete = False
        check_folder(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"cannot create {folder}: {error.strerror}", "choose another --out") from error
        previous = self._previous()
        if previous is not None:
            self._compare(previous["fingerprint"], fingerprint)
            # config.json is written after run.json, as the very last file.
            self.complete = previous["status"] == "finished" and (folder / "config.json").exists()
            self.finished_layers = 0 if self.complete else self._read_layers()
        else:
            (folder / LAYERS_FILE).unlink(missing_ok=True)  # of a run that was restarted
            begun = {"schema_version": SCHEMA_VERSION, "status": "running", "fingerprint": dict(fingerprint)}
            self.write_run(begun)

    def reopen(self) -> None:
        """Go on with a finished run of which a file was lost."""
        self.complete = False
        self.finished_layers = self._read_layers()

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_file(self.folder / RUN_FILE, json.dumps(record, indent=2).encode() + b"\n")

    def record_linear(self, record: Mapping[str, Any]) -> None:
        """Append a linear's line to layers.jsonl."""
        self._append(record)

    def record_finished(self, layer: int) -> None:
        """Append the line that makes a layer final; its tensors must be on the disk already."""
        self._append({"finished": layer})
        self.finished_layers = layer + 1

    def forget_from(self, layer: int) -> None:
        """Count a layer and those after it as unfinished: their bytes are gone."""
        if layer < self.finished_layers:
            self.finished_layers = self._read_layers(layer)

    def linears(self) -> list[dict[str, Any]]:
        """The lines of finished layers, in order."""
        path = self.folder / LAYERS_FILE
        if not path.exists():
            return []
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [row for row in rows if "name" in row]

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            with (self.folder / LAYERS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskError(f"cannot write {self.folder / LAYERS_FILE}: {error.strerror}") from error

    def _previous(self) -> dict[str, Any] | None:
        path = self.folder / RUN_FILE
        if not path.exists():
            return None
        record = _read_record(path)
        if record is None:
            raise BadInputError(f"{path} is not a record of quantkit", "choose another --out")
        return record if record["fingerprint"] else None

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        new = json.loads(json.dumps(new))  # as the file would give it back
        for key in sorted(old.keys() | new.keys()):
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


def _read_record(path: Path) -> dict[str, Any] | None:
    """run.json, or None where it is not one of ours."""
    try:
        record = json.loads(path.read_text("utf-8"))
        ours = isinstance(record["fingerprint"], dict) and isinstance(record["status"], str)
    except (ValueError, TypeError, KeyError):
        return None
    return dict(record) if ours else None
