"""Importance matrices collected layer by layer: the sums of the whole model, files kept and refused, memory."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import psutil
import pytest
import torch
import transformers
from artifacts import CALIBRATION, Recorder
from gguf_files import Planned, make_experts
from gguf_variants import NAMES, make
from imatrix_sums import collected, counted_passes, hooked, same
from safetensors.torch import load_file, save_file
from tiny import make_model, token_ids

from quantkit.checkpoint import open_checkpoint
from quantkit.devices import Device
from quantkit.errors import BadInputError, DiskError, OutOfMemoryError, UsageError
from quantkit.pipeline import gguf_imatrix, imatrix, layerwise
from quantkit.pipeline.gguf_imatrix import imatrix_cost, imatrix_for
from quantkit.pipeline.imatrix_file import imatrix_metadata
from quantkit.recipe import Calibration
from quantkit.weights.gguf_types import Value
from quantkit.weights.imatrix import Entry, Imatrix, read_imatrix, write_imatrix

CPU = Device(torch.device("cpu"), torch.float32, "to be exact")
FAMILIES = [name for name in NAMES if "-" not in name]  # one dense variant of each
SHALLOW, DEEP = 4, 24  # decoder layers


@pytest.mark.parametrize("name", FAMILIES)
def test_sums_are_those_of_the_whole_model(tmp_path, monkeypatch, name):
    monkeypatch.setattr(layerwise, "BATCH_TOKENS", 80)  # two samples and one
    monkeypatch.setattr(imatrix, "SLAB_TOKENS", 32)  # the last slab of each batch is not full
    planned = Planned(make(tmp_path / name, name))
    ids = token_ids(3, 37, seed=1)
    entries = collected(planned, ids)
    matrices = {row.name for row in planned.rows if row.name.startswith("blk.") and len(row.shape) == 2}
    assert set(entries) == matrices  # not token_embd, output, position_embd, norms and biases
    model_class = getattr(transformers, planned.family.model_class)
    config = model_class.config_class.from_dict(dict(planned.config))
    attention = planned.family.attention
    model = model_class.from_pretrained(
        tmp_path / name, config=config, dtype=torch.float32, attn_implementation=attention
    )
    same(entries, hooked(model.eval(), ids), planned.rows, ids.numel(), 1e-5)


def test_a_sum_over_many_tokens_is_exact():
    """One float32 sum would stand still at 2**24."""
    sums = imatrix.SquareSums(2)
    sums.add(torch.tensor([[[4096.0, 1.0]]]))
    for _ in range(4):
        sums.add(torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16))
    assert sums.finish("x").sums.tolist() == [[2**24 + 4, 2]]
    assert sums.finish("x").counts.tolist() == [5]


def test_weights_that_are_not_finite(tmp_path):
    folder = make_model(tmp_path / "model")
    spoiled = load_file(folder / "model.safetensors")
    spoiled["model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    save_file(spoiled, folder / "model.safetensors")
    with pytest.raises(BadInputError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight has 1 values that are NaN"):
        collected(Planned(folder), token_ids(1, 8))


def test_activations_that_are_not_finite(tmp_path):
    folder = make_model(tmp_path / "model")
    spoiled = load_file(folder / "model.safetensors")
    spoiled["model.layers.0.mlp.up_proj.weight"].fill_(1e38)
    save_file(spoiled, folder / "model.safetensors")
    progress = Recorder()
    with pytest.raises(
        BadInputError, match=r"the input of model\.layers\.0\.mlp\.down_proj is NaN or infinite in \d+ of 256"
    ):
        collected(Planned(folder), token_ids(1, 8), progress)
    assert progress.stops == 1


def test_mixtures_of_experts_need_a_file(tmp_path):
    planned = Planned(make_experts(tmp_path / "model", "MixtralForCausalLM", fused=False))
    with pytest.raises(UsageError, match="--imatrix auto needs a forward pass") as caught:
        imatrix.check_forward(planned.family)
    assert "--imatrix FILE" in (caught.value.hint or "")


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    return counted_passes(monkeypatch, gguf_imatrix)


class Wanted:
    """A model, and what is wanted of it."""

    def __init__(self, model, folder):
        self.model = model
        self.path = folder / "model-imatrix.gguf"
        self.options = {"calibration": CALIBRATION, "device": CPU, "source": {"model.safetensors": "abc"}}

    def make(self, progress=None, **other):
        options = self.options | other
        return imatrix_for(self.path, self.model, progress=progress or Recorder(), **options)


@pytest.fixture(scope="module")
def opened(sources):
    """What `imatrix_for` asks of a GgufModel."""
    planned = Planned(sources("llama"))
    planned.checkpoint = open_checkpoint(str(sources("llama")))
    return planned


@pytest.fixture
def wanted(opened, tmp_path):
    return Wanted(opened, tmp_path)


def test_the_file_says_where_it_comes_from(wanted, passes):
    progress = Recorder()
    made, record = wanted.make(progress)
    assert passes == [8 * 64]
    assert progress.layers == [0, 1]
    assert "imatrix: 8 x 64 tokens from" in progress.said[0]
    fields = gguf.GGUFReader(wanted.path).fields
    told = {key: fields[key].contents() for key in fields if key.startswith(("imatrix.", "quantkit."))}
    assert told == {
        "imatrix.datasets": ["default"],
        "imatrix.chunk_count": 8,
        "imatrix.chunk_size": 64,
        "quantkit.calibration_sha256": record["calibration_sha256"],
        "quantkit.source": told["quantkit.source"],
        "quantkit.compute": "F32",
    }
    assert len(told["quantkit.source"]) == len(record["calibration_sha256"]) == 64
    assert (record["entries"], record["chunks"], record["chunk_tokens"], record["kept"]) == (14, 8, 64, False)
    assert [path.name for path in wanted.path.parent.iterdir()] == [wanted.path.name]
    again = read_imatrix(wanted.path)
    assert made == again or all(np.array_equal(made.entries[k].sums, v.sums) for k, v in again.entries.items())


def test_what_is_there_is_not_collected_again(wanted, passes):
    first, record = wanted.make()
    raw = wanted.path.read_bytes()
    progress = Recorder()
    second, other = wanted.make(progress)
    assert len(passes) == 1
    assert wanted.path.read_bytes() == raw
    assert other == record | {"kept": True}
    assert "taken as it is" in progress.said[-1]
    for name, entry in first.entries.items():
        assert np.array_equal(entry.sums, second.entries[name].sums)
        assert np.array_equal(first.importance(name), second.importance(name))


@pytest.mark.parametrize(
    "other",
    [
        {"calibration": Calibration(samples=7, sequence_length=64)},
        {"device": Device(CPU.device, torch.bfloat16, "")},
        {"source": "0123abcd"},
    ],
    ids=["text", "dtype", "weights"],
)
def test_other_inputs_are_collected_anew(wanted, passes, other):
    _, record = wanted.make()
    progress = Recorder()
    _, anew = wanted.make(progress, **other)
    assert len(passes) == 2
    assert (anew["kept"], anew["sha256"] == record["sha256"]) == (False, False)
    assert "made anew" in progress.said[0]
    assert wanted.make(**other)[1] == anew | {"kept": True}


def test_the_file_of_another_tool_is_left_alone(wanted, passes):
    write_imatrix(wanted.path, Imatrix({"blk.0.attn_q.weight": Entry(np.ones((1, 4)), np.ones(1))}))
    raw = wanted.path.read_bytes()
    with pytest.raises(BadInputError, match="did not make and will not replace") as caught:
        wanted.make()
    assert "--imatrix" in (caught.value.hint or "")
    assert passes == []
    assert wanted.path.read_bytes() == raw


def test_no_folder_for_the_file(wanted, passes):
    wanted.path = wanted.path.parent / "no" / "such.gguf"
    with pytest.raises(DiskError, match="no is not a folder"):
        wanted.make()
    assert passes == []


def test_a_collection_that_was_interrupted_leaves_nothing(wanted, passes):
    with pytest.raises(KeyboardInterrupt):
        wanted.make(Recorder(layer=0))
    assert list(wanted.path.parent.iterdir()) == []
    assert wanted.make()[1]["kept"] is False


def test_what_gguf_files_say_of_it(wanted):
    """The keys and types of llama-quantize, and one more."""
    made, record = wanted.make(calibration=Calibration(text=("english", "code:2"), samples=4, sequence_length=64))
    assert imatrix_metadata(made, "m-imatrix.gguf") == {
        "quantize.imatrix.file": Value("string", "m-imatrix.gguf"),
        "quantize.imatrix.dataset": Value("string", "english, code:2"),
        "quantize.imatrix.entries_count": Value("uint32", 14),
        "quantize.imatrix.chunks_count": Value("uint32", 4),
        "quantize.imatrix.calibration_sha256": Value("string", record["calibration_sha256"]),
    }
    plain = Imatrix({"w": Entry(np.ones((1, 4)), np.ones(1))})
    assert imatrix_metadata(plain, "old.dat") == {
        "quantize.imatrix.file": Value("string", "old.dat"),
        "quantize.imatrix.entries_count": Value("uint32", 1),
    }


# Costs


@pytest.fixture(scope="module")
def by_depth(tmp_path_factory):
    """What the collection holds for models of one width and two depths, and what their weights take."""
    folder = tmp_path_factory.mktemp("deep")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4}
    measured, weights = {}, {}
    for depth in (SHALLOW, DEEP):
        model = make_model(folder / f"{depth}", dtype=torch.bfloat16, num_hidden_layers=depth, **sizes)
        weights[depth] = (model / "model.safetensors").stat().st_size
        probe = [sys.executable, Path(__file__).parent / "imatrix_probe.py", model, folder / f"{depth}.gguf"]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(probe, env=one_thread, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        measured[depth] = json.loads(done.stdout)
    return measured, weights


def test_the_peak_does_not_grow_with_the_number_of_layers(by_depth):
    measured, weights = by_depth
    assert measured[DEEP]["peak"] - measured[SHALLOW]["peak"] < (weights[DEEP] - weights[SHALLOW]) / 2


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_the_peak_is_predicted(by_depth, depth):
    assert by_depth[0][depth]["predicted"] == pytest.approx(by_depth[0][depth]["peak"], rel=0.15)


def test_too_little_memory_is_said_beforehand(wanted, passes, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=-400 * 2**20))
    with pytest.raises(
        OutOfMemoryError, match=r"the imatrix needs \d\.\d\d GiB of memory, \S+ GiB is available"
    ) as caught:
        wanted.make()
    assert "--samples" in (caught.value.hint or "")
    assert passes == []
    assert not wanted.path.exists()


def test_costs_follow_from_the_text(opened, monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    few, many = (imatrix_cost(opened, Calibration(samples=n, sequence_length=64), CPU) for n in (1000, 3000))
    assert many.seconds == pytest.approx(3 * few.seconds)
    assert many.host_bytes - few.host_bytes == pytest.approx(2000 * 64 * 128 * 4, rel=0.05)
    assert few.device_bytes == 0
