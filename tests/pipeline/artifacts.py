"""What the tests of the pipeline share: make an artifact, read it, load it into a plain transformers model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from quantkit.formats.gptq_source import DequantizedSource
from quantkit.pipeline.gptq import Result, run
from quantkit.pipeline.job import Job, prepare
from quantkit.progress import Progress, Silent
from quantkit.recipe import Calibration, make_recipe
from quantkit.tensors import TensorSource
from quantkit.weights.source import open_folder

CALIBRATION = Calibration(samples=8, sequence_length=64)
SMALL = {"group_size": 32, "calibration": CALIBRATION.model_dump()}


class Recorder(Silent):
    """Keeps what it is told; raises KeyboardInterrupt at the event asked for."""

    def __init__(self, layer: int | None = None, linear: int | None = None) -> None:
        self.said: list[str] = []
        self.started: tuple[int, int] | None = None
        self.linears: list[str] = []
        self.layers: list[int] = []
        self.stops = 0
        self._layer, self._linear = layer, linear

    def say(self, line: str) -> None:
        self.said.append(line)

    def start(self, layers: int, done: int) -> None:
        self.started = (layers, done)

    def linear(self, record: dict[str, Any]) -> None:
        self.linears.append(record["name"])
        if self._linear is not None and len(self.linears) > self._linear:
            raise KeyboardInterrupt

    def layer(self, index: int, seconds: float) -> None:
        self.layers.append(index)
        if self._layer == index:
            raise KeyboardInterrupt

    def transfer(self, done: int, total: int) -> None:
        """Downloads are watched elsewhere."""

    def stop(self) -> None:
        self.stops += 1


def job_of(source: Path | str, output: Path, **fields: Any) -> Job:
    strict = fields.pop("strict", False)
    return prepare(str(source), make_recipe(SMALL | fields), output=output, device="cpu", strict=strict)


def quantize(source: Path | str, output: Path, progress: Progress | None = None, **fields: Any) -> Result:
    return run(job_of(source, output, **fields), progress)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder as its files have it."""
    source = open_folder(folder).source
    return {name: source.read(name) for name in source.infos}


def dequantized(folder: Path) -> TensorSource:
    opened = open_folder(folder)
    return DequantizedSource(opened.source, opened.config["quantization_config"])


def model_of(config: Mapping[str, Any], source: TensorSource) -> torch.nn.Module:
    """The plain transformers model of a configuration, in float32, with the tensors of a source."""
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype", "dtype")}
    model_class = getattr(transformers, plain["architectures"][0])
    model = model_class(model_class.config_class.from_dict(plain)).float()
    weights = {name: source.read(name).float() for name in source.infos}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if plain["tie_word_embeddings"] else set())
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """[samples, sequence, vocabulary] float32 of a checkpoint, quantized or not."""
    opened = open_folder(folder)
    quantized = "quantization_config" in opened.config
    source = dequantized(folder) if quantized else opened.source
    return model_of(opened.config, source)(input_ids=ids, use_cache=False).logits


def divergence(baseline: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(baseline || other) in nats per token."""
    p, q = torch.log_softmax(baseline.double(), -1), torch.log_softmax(other.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def digests(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "layers.jsonl").read_text("utf-8").splitlines()]


def linears_of(folder: Path) -> list[str]:
    return [row["name"] for row in log_of(folder) if "name" in row]
