"""Artifacts run in a child process: figures from real runtimes, and one sentence for whatever goes wrong there."""

import json
import shutil
import time
from pathlib import Path

import gguf_bytes as by
import psutil
import pytest
import torch
import transformers
from pipeline.artifacts import quantize
from safetensors.torch import load_file, save_file
from tiny import make_model, write_json

from quantkit.errors import UsageError
from quantkit.pipeline import measure as module
from quantkit.pipeline.measure import Runtime, measure

PEER_PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
FEW = {"prompt_tokens": 20, "new_tokens": 4, "device": "cpu"}


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # gptqmodel's kernel would be compiled at its first use


@pytest.fixture
def own(sources, tmp_path):
    """A copy of a tiny checkpoint, to be broken."""
    return Path(shutil.copytree(sources("llama", dtype=torch.bfloat16), tmp_path / "own"))


@pytest.fixture
def fake(tmp_path):
    """A program in place of Python: a shell script."""

    def write(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(0o755)
        return str(path)

    return write


def one_sentence(found):
    assert isinstance(found, str)
    assert "\n" not in found
    assert "Traceback" not in found
    return found


def test_a_16_bit_checkpoint_runs_through_transformers(tmp_path, monkeypatch):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16, **sizes)
    monkeypatch.chdir(tmp_path)
    found = measure(Path("model"), **FEW)
    assert found["runtime"] == f"transformers {transformers.__version__}"
    assert (found["device"], found["dtype"], found["kernels"]) == ("cpu", "bfloat16", [])
    assert (found["prompt_tokens"], found["new_tokens"], found["context"]) == (20, 4, 24)
    weights = (folder / "model.safetensors").stat().st_size
    assert found["peak_bytes"] - found["before_bytes"] > weights > 30_000_000
    assert found["before_bytes"] > 50_000_000  # torch is there
    for name in ("load_seconds", "prompt_tokens_per_second", "generation_tokens_per_second"):
        assert found[name] > 0
    assert list(tmp_path.iterdir()) == [folder]  # nothing is left behind
    json.dumps(found, allow_nan=False)


@pytest.mark.peers
@pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are not installed: make peers")
def test_a_gptq_artifact_runs_through_gptqmodel(sources, tmp_path):
    source = sources("llama", dtype=torch.bfloat16, hidden_size=256, intermediate_size=512)
    quantize(source, tmp_path / "artifact", bits=4)
    found = measure(tmp_path / "artifact", str(PEER_PYTHON), **FEW)
    assert not isinstance(found, str), found
    assert found["runtime"].startswith("transformers ")
    assert " + gptqmodel " in found["runtime"]
    assert (found["device"], found["dtype"], found["kernels"]) == ("cpu", "float16", ["TorchLinear"])
    assert (found["prompt_tokens"], found["new_tokens"]) == (20, 4)
    assert found["peak_bytes"] > found["before_bytes"]


def test_no_more_tokens_than_the_model_reads(own, fake):
    given = own / "given"
    python = fake(f'echo "$3" > {given}; exit 3')
    measure(own, python, prompt_tokens=5000, new_tokens=64)
    request = json.loads(given.read_text("utf-8"))
    assert (request["prompt_tokens"], request["new_tokens"]) == (448, 64)
    measure(own, python, prompt_tokens=5000, new_tokens=5000)
    request = json.loads(given.read_text("utf-8"))
    assert (request["prompt_tokens"], request["new_tokens"]) == (256, 256)


def test_a_missing_runtime_is_named_with_the_way_to_it(own, monkeypatch):
    runtime = Runtime("plain", ("no_runtime",), ("no_runtime", "json", "nor_this"), "pip install it")
    monkeypatch.setattr(module, "RUNTIMES", {None: runtime})
    said = one_sentence(measure(own))
    assert said.startswith("no_runtime, nor_this are not installed for /")
    assert said.endswith("/python: pip install it")


def test_a_broken_file_is_one_sentence(own):
    path = own / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "Error: " in one_sentence(measure(own, **FEW))


def test_a_missing_tensor_is_not_made_up(own):
    tensors = load_file(own / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    said = one_sentence(measure(own, **FEW))
    assert said == "ValueError: transformers loads it with {'missing_keys': ['model.layers.1.mlp.up_proj.weight']}"


def test_code_of_the_checkpoint_is_not_run(own):
    config = json.loads((own / "config.json").read_text("utf-8"))
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    write_json(own / "config.json", config | {"auto_map": auto_map, "model_type": "unheard_of"})
    (own / "code.py").write_text(f"open({str(own / 'was_run')!r}, 'w')\n", "utf-8")
    one_sentence(measure(own, **FEW))
    assert not (own / "was_run").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "its process was killed, as systems do when memory runs out"),
        ("kill -11 $$", "its process ended with SIGSEGV: it said nothing"),
        (
            "echo first >&2; echo 'Error: the last one' >&2; exit 7",
            "its process ended with exit code 7: Error: the last one",
        ),
        ("head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exit 1", "its process ended with exit code 1: "),
        ("exit 0", "its process ended with exit code 0: it said nothing"),
    ],
)
def test_a_child_that_fails(own, fake, script, said):
    assert one_sentence(measure(own, fake(script))).startswith(said)


def test_a_child_that_hangs_is_ended_with_its_own(own, fake):
    noted = own / "pid"
    python = fake(f"sleep 1000 & echo $! > {noted}; wait")
    assert measure(own, python, seconds=2) == "it did not end within 2.0 s"
    pid = int(noted.read_text("utf-8"))
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("its own process lives on")


def test_the_child_gets_no_token_and_no_network(own, fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    noted = own / "environment"
    measure(own, fake(f"env > {noted}; pwd >> {noted}"))
    said = noted.read_text("utf-8").splitlines()
    assert "HF_HUB_OFFLINE=1" in said
    assert not [line for line in said if line.startswith(("HF_TOKEN", "PYTHONPATH"))]
    assert said[-1] not in (str(own), str(Path.cwd()))


@pytest.mark.parametrize(("method", "said"), [("awq", "no runtime for 'awq' is known here"), ("gptq", None)])
def test_the_format_decides_the_runtime(own, fake, method, said):
    config = json.loads((own / "config.json").read_text("utf-8"))
    write_json(own / "config.json", config | {"quantization_config": {"quant_method": method, "bits": 4}})
    noted = own / "given"
    found = measure(own, fake(f'echo "$3" > {noted}; exit 3'))
    if said:
        assert found == said
    else:
        request = json.loads(noted.read_text("utf-8"))
        assert (request["loader"], request["packages"][:2]) == ("gptq", ["transformers", "gptqmodel"])


def test_an_interpreter_that_is_none_is_a_usage_error(own, tmp_path):
    with pytest.raises(UsageError, match="--runtime-python no-such-python is no program"):
        measure(own, "no-such-python")
    plain = tmp_path / "plain.py"
    plain.write_text("", "utf-8")
    with pytest.raises(UsageError, match=r"plain\.py is no program"):
        measure(own, str(plain))


def test_a_gguf_file_asks_for_llama_cpp(tmp_path, fake, monkeypatch):
    keys = [
        by.key("general.architecture", by.scalar("string", "llama")),
        by.key("llama.context_length", by.scalar("uint32", 96)),
        by.key("tokenizer.ggml.tokens", by.array("string", ["a", "b", "c"])),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(by.gguf(keys))
    noted = tmp_path / "given"
    measure(path, fake(f'echo "$3" > {noted}; exit 3'))
    request = json.loads(noted.read_text("utf-8"))
    assert (request["loader"], request["packages"], request["path"]) == ("gguf", ["xllamacpp"], str(path))
    assert (request["prompt_tokens"], request["new_tokens"], request["vocabulary"]) == (48, 48, 3)
    monkeypatch.setitem(module.RUNTIMES, "gguf", Runtime("gguf", ("no_runtime",), ("no_runtime",), "pip install it"))
    said = one_sentence(measure(path))
    assert said.startswith("no_runtime is not installed for /")
    path.write_bytes(by.gguf(keys[:2]))
    assert measure(path) == "it has no vocabulary, without which llama.cpp writes nothing"
