"""The command line: exit codes, exact sentences, and what goes to which stream."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
import tiny
import torch
from huggingface_hub import constants

from quantkit.cli import _run, main
from quantkit.progress import Lines
from quantkit.versions import version

FEW = ["--samples", "8", "--sequence-length", "64", "--group-size", "32", "--device", "cpu"]
TRACEBACK = "Traceback (most recent call last)"


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("cli") / "model", dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, no waiting for the disk, no timing of the machine: nothing here depends on them."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr("quantkit.pipeline.machine.measure_rate", lambda *_: 1e11)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def model(shared_model, tmp_path, monkeypatch):
    """A checkpoint named `model` in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared_model, tmp_path / "model")
    return "model"


@pytest.fixture
def quantkit(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*arguments, debug=False):
        capsys.readouterr()
        code = _run([str(argument) for argument in arguments], debug)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def in_subprocess(*arguments, **environment):
    command = [sys.executable, "-m", "quantkit.cli", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def interrupt(_self, index, seconds):
    raise KeyboardInterrupt


# Help.


def test_help_lists_the_commands(quantkit):
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = quantkit(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith("Usage: quantkit [OPTIONS] COMMAND [ARGS]...")
        assert re.search(r"^  gptq +Quantize a checkpoint to a GPTQ checkpoint\.$", out, re.MULTILINE)
        assert re.search(r"^  plan +Say what `gptq` would make and cost", out, re.MULTILINE)


BOTH = [
    "--out", "--recipe", "--method", "--bits", "--group-size", "--sym", "--asym", "--act-order", "--damp", "--scales",
    "--rule", "--skip", "--target", "--dtype", "--max-shard-size", "--calibration", "--samples", "--sequence-length",
    "--seed", "--device", "--strict", "--stream", "--no-stream", "--context", "--json", "--help",
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "options"), [("plan", BOTH), ("gptq", [*BOTH, "--dry-run", "--imatrix", "--restart", "--check"])]
)
def test_help_of_a_command_lists_all_options_and_their_defaults(quantkit, command, options):
    code, out, err = quantkit(command, "--help")
    assert (code, err) == (0, "")
    listed = set(re.findall(r"(?<![\w'.-])--[a-z][a-z-]+", out.split("Options:")[1]))
    assert listed == set(options)
    text = " ".join(out.split())
    for default in ("4", "128", "sym", "static", "0.05", "search", "lm_head", "transformers", "auto", "5GB", "2048"):
        assert f"[default: {default}]" in text
    assert f"quantkit {command} xverse/XVERSE-13B-Chat --bits 4" in text


def test_the_defaults_in_the_help_are_those_of_a_recipe(quantkit):
    from quantkit.recipe import Recipe

    _, out, _ = quantkit("gptq", "--help")
    text = " ".join(out.split())
    recipe, stated = Recipe(), {}
    for option in ("method", "bits", "group-size", "act-order", "damp", "scales", "dtype", "max-shard-size"):
        stated[option] = re.search(rf"--{option} <\w+> .*?\[default: ([^]]*)\]", text)[1]
    assert stated == {
        "method": recipe.method,
        "bits": str(recipe.bits),
        "group-size": str(recipe.group_size),
        "act-order": recipe.act_order,
        "damp": str(recipe.damp_percent),
        "scales": recipe.scales,
        "dtype": recipe.dtype,
        "max-shard-size": recipe.max_shard_size,
    }


@pytest.mark.parametrize("arguments", [["--help"], ["gptq", "--help"], ["--version"], ["gptq"], ["nonsense"]])
def test_what_computes_nothing_imports_no_library_that_computes(arguments):
    code = (
        "import sys; from quantkit.cli import _run; _run(sys.argv[1:], False); "
        "print(sorted({'torch', 'transformers', 'numba', 'numpy', 'huggingface_hub'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_version_is_printed(quantkit):
    assert quantkit("--version") == (0, f"{version()}\n", "")


# Usage: exit code 2.


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["frobnicate"], "no such command 'frobnicate'", "quantkit --help lists the options"),
        (["--frobnicate"], "no such option: --frobnicate", "quantkit --help lists the options"),
        (["gptq"], "missing argument 'MODEL'", "quantkit gptq --help lists the options"),
        (["plan"], "missing argument 'MODEL'", "quantkit plan --help lists the options"),
        (
            ["gptq", "model", "--zzz"],
            "no such option: --zzz",
            "quantkit gptq --help lists the options",
        ),
        (
            ["gptq", "model", "more"],
            "got unexpected extra argument(s) (more)",
            "quantkit gptq --help lists the options",
        ),
        (["gptq", "model", "--bits", "5"], "option bits: Input should be 2, 3, 4 or 8, found 5", None),
        (
            ["plan", "model", "--group-size", "48"],
            "option group_size: Input should be -1, 32, 64 or 128, found 48",
            None,
        ),
        (["gptq", "model", "--method", "awq"], "option method: Input should be 'gptq' or 'rtn', found 'awq'", None),
        (
            ["gptq", "model", "--samples", "0"],
            "option calibration.samples: Input should be greater than or equal to 1, found 0",
            None,
        ),
        (
            ["gptq", "model", "--rule", "8bit"],
            "not a rule: '8bit'",
            "write PATTERN=SETTING, such as 'model.layers.0.*=8bit' or '*.down_proj=skip'",
        ),
        (
            ["gptq", "model", "--rule", "*.down_proj=5bit"],
            "not a setting: '5bit' in the rule '*.down_proj=5bit'",
            "use 2bit, 3bit, 4bit, 8bit, g32, g64, g128, g-1, skip",
        ),
        (
            ["plan", "model", "--max-shard-size", "huge"],
            "not a size: 'huge'",
            "write a number and a unit, such as 5GB or 4.5GiB",
        ),
        (
            ["gptq", "nowhere", "--bits", "3", "--target", "vllm"],
            "vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits",
            "use symmetric 4 or 8 bits; or keep it for transformers, gptqmodel, which can load it",
        ),
        (["plan", "model", "--device", "gpu"], "no device 'gpu'", "use auto, cpu, cuda, cuda:N or mps"),
        (
            ["plan", "model", "--skip", "model.layers"],
            "nothing is left to quantize: every linear stays in 16 bits",
            None,
        ),
        (
            ["plan", "model", "--skip", "*.experts"],
            "the pattern '*.experts' names no linear of this checkpoint",
            "names look like model.layers.0.self_attn.q_proj",
        ),
    ],
)
def test_wrong_usage(quantkit, model, arguments, error, hint):
    code, out, err = quantkit(*arguments)
    assert (code, out) == (2, "")
    assert err == f"quantkit: {error}\n" + (f"hint: {hint}\n" if hint else "")
    assert names() == ["model"]


def test_a_value_of_another_kind_is_named_with_its_option(quantkit, model):
    code, out, err = quantkit("gptq", model, "--bits", "four")
    assert (code, out) == (2, "")
    assert err.startswith("quantkit: invalid value for '--bits': ")
    assert err.endswith("hint: quantkit gptq --help lists the options\n")


def test_a_near_miss_of_an_option_is_answered_with_the_option(quantkit, model):
    code, _, err = quantkit("gptq", model, "--bit", "4")
    assert code == 2
    assert "--bits" in err


# Bad input: exit code 3.


@pytest.mark.parametrize(
    ("content", "error", "hint"),
    [
        ("bit: 4", "unknown recipe key 'bit'", "did you mean bits?"),
        ("bits: 5", "recipe bits: Input should be 2, 3, 4 or 8, found 5", None),
        (
            "rules: [8bit]",
            "not a rule: '8bit'",
            "write PATTERN=SETTING, such as 'model.layers.0.*=8bit' or '*.down_proj=skip'",
        ),
        ("max_shard_size: huge", "not a size: 'huge'", "write a number and a unit, such as 5GB or 4.5GiB"),
    ],
)
def test_a_mistake_in_a_recipe_file_is_bad_input(quantkit, model, tmp_path, content, error, hint):
    (tmp_path / "mine.yaml").write_text(content)
    code, out, err = quantkit("plan", model, "--recipe", "mine.yaml")
    assert (code, out) == (3, "")
    assert err == f"quantkit: mine.yaml: {error}\n" + (f"hint: {hint}\n" if hint else "")


def test_a_recipe_file_that_is_none_is_bad_input(quantkit, model, tmp_path):
    (tmp_path / "mine.yaml").write_text("- 4")
    assert quantkit("plan", model, "--recipe", "mine.yaml") == (
        3,
        "",
        "quantkit: mine.yaml: found list, expected keys such as bits: 4\n",
    )


def test_an_unknown_recipe_is_bad_input(quantkit, model):
    code, _, err = quantkit("plan", model, "--recipe", "gptq-int5")
    assert code == 3
    assert err.startswith("quantkit: no recipe 'gptq-int5'\nhint: did you mean gptq-int")


def test_an_architecture_that_is_not_known_is_bad_input(quantkit, model, tmp_path):
    config = json.loads((tmp_path / model / "config.json").read_text())
    tiny.write_json(tmp_path / model / "config.json", config | {"architectures": ["MambaForCausalLM"]})
    code, out, err = quantkit("plan", model)
    assert (code, out) == (3, "")
    assert err.startswith("quantkit: architecture MambaForCausalLM is not one quantkit knows")
    assert "\nhint: known: " in err


@pytest.mark.parametrize(("name", "content"), [("config.json", b"{"), ("model.safetensors", b"short")])
def test_a_broken_file_is_bad_input(quantkit, model, tmp_path, name, content):
    (tmp_path / model / name).write_bytes(content)
    code, out, err = quantkit("plan", model)
    assert (code, out) == (3, "")
    assert err.startswith("quantkit: ")
    assert name in err


def test_strict_refuses_linears_that_cannot_be_packed(quantkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_model(tmp_path / "model", intermediate_size=172)
    assert quantkit("plan", "model")[0] == 0
    code, _, err = quantkit("plan", "model", "--strict")
    assert code == 3
    assert err == (
        "quantkit: model.layers.0.mlp.gate_proj: out_features 172 is not divisible by 32\n"
        "hint: leave out --strict to keep such linears in 16 bits\n"
    )


# Not found: exit code 4, network: 5, disk: 6, memory: 7.


@pytest.mark.parametrize("command", ["plan", "gptq"])
def test_a_folder_that_is_not_there_is_not_found(quantkit, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert quantkit(command, "nowhere") == (
        4,
        "",
        "quantkit: no such folder: nowhere\nhint: write a folder's path, or organisation/name@revision for the Hub\n",
    )


def test_a_folder_without_weights_is_not_found(quantkit, model, tmp_path):
    (tmp_path / model / "model.safetensors").unlink()
    code, _, err = quantkit("plan", model)
    assert code == 4
    assert err.startswith("quantkit: model: found no weights, expected model.safetensors or an index")


def test_a_repository_that_cannot_be_reached_is_a_failure_of_the_network(quantkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    code, out, err = quantkit("plan", "some/other")
    assert (code, out) == (5, "")
    assert err.startswith("quantkit: some/other ")
    assert TRACEBACK not in err


def test_a_small_disk_and_a_small_memory_have_their_codes(quantkit, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
        code, _, err = quantkit("gptq", model, *FEW)
        assert (code, err.splitlines()[-2][:23]) == (6, "quantkit: the run needs")
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
        patch.setattr("quantkit.pipeline.machine.resident_bytes", lambda: 1)
        code, _, err = quantkit("gptq", model, *FEW)
        assert (code, err.splitlines()[-2][:23]) == (7, "quantkit: the run needs")
    assert names() == ["model"]


def test_memory_that_runs_out_is_said(quantkit, model, monkeypatch):
    def no_memory(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr("quantkit.pipeline.job.prepare", no_memory)
    code, out, err = quantkit("gptq", model)
    assert (code, out) == (7, "")
    assert err.endswith("quantkit: out of memory\nhint: finished layers are kept; free memory and try again\n")


# Tracebacks.


def test_a_traceback_is_shown_with_debug_only(quantkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, without = quantkit("plan", "nowhere")
    code, out, err = quantkit("plan", "nowhere", debug=True)
    assert (code, out) == (4, "")
    assert TRACEBACK not in without
    assert err.startswith(TRACEBACK)
    assert "quantkit.errors.NotFoundError: no such folder: nowhere" in err
    assert err.endswith(without)


@pytest.mark.parametrize("arguments", [["--debug", "plan", "nowhere"], ["plan", "nowhere", "--debug"]])
def test_debug_may_stand_anywhere(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == 4
    assert TRACEBACK in capsys.readouterr().err


# The plan.


def test_the_plan_is_printed_for_people(quantkit, model):
    code, out, err = quantkit("plan", model, "--bits", "8", "--context", "8192")
    assert (code, err) == (0, "")
    assert out.startswith("model: LlamaForCausalLM\nGPTQ 8 bit, group 128, symmetric, act-order static\n")
    for text in (
        "bits per weight", "model-GPTQ-Int8", "peak host memory", "download", "none", "quantized to 8 bits",
        "kept in 16 bits", "runs on, with 8192 tokens of context", "T4 16 GB", "L4 24 GB", "A100 40 GB",
        "12.7 GB of RAM", "transformers", "vllm", "sglang", "exllamav2", "llama.cpp", "gptqmodel",
    ):  # fmt: skip
        assert text in out
    assert re.search(r"exllamav2 +no: ExLlamaV2 loads 4 bits only", out)
    assert names() == ["model"]


@pytest.mark.parametrize("arguments", [["plan"], ["gptq", "--dry-run"]])
def test_the_plan_is_one_json_object(quantkit, model, arguments):
    code, out, err = quantkit(*arguments, model, "--json", "--bits", "3")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    plan = json.loads(out)
    assert plan["schema_version"] == 1
    assert plan["recipe"]["bits"] == 3
    assert plan["output"] == "model-GPTQ-Int3"
    assert names() == ["model"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(quantkit, model):
    before = files_of(model)
    planned = quantkit("plan", model, "--out", "made/deep")
    assert quantkit("gptq", model, "--out", "made/deep", "--dry-run") == planned
    assert names() == ["model"]
    assert files_of(model) == before


def test_options_override_the_recipe_file(quantkit, model, tmp_path):
    (tmp_path / "mine.yaml").write_text("bits: 8\ngroup_size: 32\ncalibration: {samples: 4, seed: 7}\n")
    _, out, _ = quantkit("plan", model, "--recipe", "mine.yaml", "--bits", "2", "--samples", "16", "--json")
    recipe = json.loads(out)["recipe"]
    assert (recipe["bits"], recipe["group_size"]) == (2, 32)
    assert recipe["calibration"] == {"text": ["default"], "samples": 16, "sequence_length": 2048, "seed": 7}


def test_every_option_reaches_the_recipe(quantkit, model):
    _, out, _ = quantkit(
        "plan", model, "--method", "gptq", "--bits", "8", "--group-size", "64", "--asym", "--act-order", "none",
        "--damp", "0.1", "--scales", "minmax", "--rule", "*.down_proj=4bit", "--rule", "*.o_proj=skip", "--skip",
        "*.[qkv]_proj", "--target", "gptqmodel", "--dtype", "float16", "--max-shard-size", "100MB", "--calibration",
        "english:2", "--calibration", "code", "--samples", "3", "--sequence-length", "17", "--seed", "5", "--json",
    )  # fmt: skip
    assert json.loads(out)["recipe"] == {
        "method": "gptq",
        "bits": 8,
        "group_size": 64,
        "symmetric": False,
        "act_order": "none",
        "damp_percent": 0.1,
        "scales": "minmax",
        "rules": ["*.down_proj=4bit", "*.o_proj=skip"],
        "skip": ["*.[qkv]_proj", "lm_head"],
        "targets": ["gptqmodel"],
        "dtype": "float16",
        "max_shard_size": "100MB",
        "calibration": {"text": ["english:2", "code"], "samples": 3, "sequence_length": 17, "seed": 5},
        "gates": dict.fromkeys(("max_ppl_increase", "max_kl", "min_top1", "max_memory")),  # options of `check`
    }


def test_a_shipped_recipe_is_taken_by_name(quantkit, model):
    _, out, _ = quantkit("plan", model, "--recipe", "rtn-int4-per-row", "--json")
    recipe = json.loads(out)["recipe"]
    assert (recipe["method"], recipe["group_size"], recipe["scales"]) == ("rtn", -1, "minmax")


def test_brackets_in_a_path_are_text(quantkit, model):
    code, out, _ = quantkit("plan", model, "--out", "draft[bold]")
    assert code == 0
    assert "draft[bold]" in out


# The run.


def test_a_run_prints_its_result_and_tells_the_rest_elsewhere(quantkit, model, tmp_path):
    code, out, err = quantkit("gptq", model, "--out", "out", *FEW)
    assert code == 0
    first, *_ = out.splitlines()
    assert re.fullmatch(r"out: [\d.]+ kB, [\d.]+ bits per weight, mean relative error of a linear \S+", first)
    assert re.search(r"^peak host memory +[\d.]+ GiB +[\d.]+ GiB", out, re.MULTILINE)
    text = " ".join(out.split())
    assert "loads in: transformers, gptqmodel, vllm, sglang, exllamav2, llama.cpp (transformers>=4.49, with " in text
    assert re.fullmatch(
        r"computing on cpu, \w+ \(.*\)\n"
        r"calibration: 8 x 64 tokens from english, .*, dialogue\n"
        r"layer 1/2 in .*\n"
        r"layer 2/2 in .*, done\n",
        err,
    )
    assert "\x1b" not in out + err
    assert (tmp_path / "out" / "config.json").exists()


def test_the_default_folder_is_named_after_model_method_and_bits(quantkit, model, tmp_path):
    assert quantkit("gptq", model, *FEW, "--method", "rtn", "--bits", "8")[0] == 0
    assert (tmp_path / "model-RTN-Int8" / "config.json").exists()


def test_the_result_is_one_json_object(quantkit, model, tmp_path):
    code, out, err = quantkit("gptq", model, "--out", "out", "--json", *FEW)
    assert code == 0
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result["output"] == "out"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {key: result[key] for key in record if key != "schema_version"} == {
        key: value for key, value in record.items() if key != "schema_version"
    }
    assert "layer 2/2" in err


def test_the_result_has_a_schema_version(quantkit, model):
    _, out, _ = quantkit("gptq", model, "--out", "out", "--json", "--method", "rtn", *FEW)
    assert json.loads(out)["schema_version"] == 1


def test_the_same_command_again_does_nothing(quantkit, model):
    assert quantkit("gptq", model, "--out", "out", *FEW)[0] == 0
    before = files_of("out")
    code, out, err = quantkit("gptq", model, "--out", "out", "--json", *FEW)
    assert code == 0
    assert json.loads(out)["schema_version"] == 1
    assert err.endswith("out is finished already; nothing to do\n")
    assert files_of("out") == before


def test_other_settings_in_the_same_folder_are_refused(quantkit, model):
    assert quantkit("gptq", model, "--out", "out", *FEW)[0] == 0
    code, out, err = quantkit("gptq", model, "--out", "out", "--bits", "8", *FEW)
    assert (code, out) == (3, "")
    assert err.endswith(
        "quantkit: out holds a run with recipe.bits 4, this one has 8\n"
        "hint: choose another --out, or --restart to begin anew\n"
    )


def test_restart_begins_a_finished_run_anew(quantkit, model):
    assert quantkit("gptq", model, "--out", "out", *FEW)[0] == 0
    assert quantkit("gptq", model, "--out", "out", "--bits", "8", "--restart", *FEW)[0] == 0
    assert json.loads((Path("out") / "config.json").read_text())["quantization_config"]["bits"] == 8
    assert quantkit("gptq", model, "--out", "other", "--bits", "8", *FEW)[0] == 0
    assert names("out") == names("other")


def test_restart_begins_an_interrupted_run_anew(quantkit, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "layer", interrupt)
        assert quantkit("gptq", model, "--out", "out", *FEW)[0] == 130
    code, _, err = quantkit("gptq", model, "--out", "out", "--bits", "8", "--restart", *FEW)
    assert code == 0
    assert "continuing" not in err
    assert json.loads((Path("out") / "config.json").read_text())["quantization_config"]["bits"] == 8


def test_a_folder_of_something_else_is_refused(quantkit, model):
    Path("out").mkdir()
    (Path("out") / "thesis.txt").write_text("mine")
    for more in ([], ["--restart"]):
        code, out, err = quantkit("gptq", model, "--out", "out", *FEW, *more)
        assert (code, out) == (3, "")
        assert "quantkit: out holds thesis.txt and no run.json: it is not a folder of quantkit\n" in err
    assert files_of("out") == {"thesis.txt": b"mine"}


def test_restart_removes_only_what_quantkit_made(quantkit, model):
    Path("out").mkdir()
    (Path("out") / "run.json").write_text('{"made by": "another program"}')
    (Path("out") / "thesis.txt").write_text("mine")
    before = files_of("out")
    assert quantkit("gptq", model, "--out", "out", "--restart", *FEW)[0] == 3
    assert files_of("out") == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--bits", "3", "--target", "vllm"], 2), (["--calibration", "english:0"], 2), (["--rule", "*.nothing=8bit"], 2)],
)
def test_restart_removes_nothing_for_a_run_that_cannot_begin(quantkit, model, arguments, code):
    assert quantkit("gptq", model, "--out", "out", "--method", "rtn", *FEW)[0] == 0
    before = files_of("out")
    assert quantkit("gptq", model, "--out", "out", "--restart", *FEW, *arguments)[0] == code
    assert files_of("out") == before


def test_notes_of_the_plan_are_told(quantkit, model):
    _, _, err = quantkit("gptq", model, "--out", "out", "--method", "rtn", "--rule", "*.q_proj=skip", *FEW)
    assert err.startswith(
        "note: what is set for one of q_proj, k_proj, v_proj holds for all of them: runtimes fuse them\n"
    )


def test_what_loads_the_artifact_and_what_does_not_is_told(quantkit, model):
    _, out, _ = quantkit("gptq", model, "--out", "out", "--method", "rtn", "--bits", "3", *FEW)
    text = " ".join(out.split())
    assert "loads in: transformers, gptqmodel (" in text
    assert "not in vllm: vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits" in text


# Interruptions.


def test_an_interrupted_run_is_continued_by_the_same_command(quantkit, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "layer", interrupt)
        code, out, err = quantkit("gptq", model, "--out", "out", *FEW)
    assert (code, out) == (130, "")
    assert TRACEBACK not in err
    code, out, err = quantkit("gptq", model, "--out", "out", *FEW)
    assert code == 0
    assert "continuing: 1 of 2 layers are finished\n" in err
    assert "layer 1/2" not in err


def test_an_interrupted_run_says_how_to_continue(quantkit, model, monkeypatch):
    monkeypatch.setattr(Lines, "layer", interrupt)
    _, _, err = quantkit("gptq", model, "--out", "out", "--method", "rtn", *FEW)
    assert err.endswith("quantkit: interrupted; the same command continues\n")


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or sys.platform == "win32", reason="needs POSIX signals")
def test_a_terminated_run_leaves_with_the_code_of_the_signal(model, monkeypatch, capsys):
    def terminate(_self, index, seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Lines, "layer", terminate)
    handler = signal.getsignal(signal.SIGTERM)
    assert _run(["gptq", model, "--out", "out", *FEW], False) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert capsys.readouterr().err.endswith("quantkit: terminated; the same command continues\n")
    assert json.loads(Path("out/run.json").read_text())["status"] == "running"


# Streams and terminals.


def test_a_pipe_gets_the_result_alone_and_no_escape_codes(model):
    ran = in_subprocess("gptq", model, "--out", "out", "--json", *FEW, TERM="xterm-256color")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "finished"
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "\r" not in ran.stdout + ran.stderr


def test_libraries_are_silent(quantkit, model, caplog):
    assert quantkit("gptq", model, "--out", "out", *FEW)[0] == 0
    assert caplog.records == []


def test_errors_of_a_process_are_one_sentence_and_a_hint(tmp_path):
    ran = in_subprocess("plan", tmp_path / "nowhere")
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ran.stderr == (
        f"quantkit: no such folder: {tmp_path / 'nowhere'}\n"
        "hint: write a folder's path, or organisation/name@revision for the Hub\n"
    )


def test_long_paths_are_whole_in_a_pipe(quantkit, model):
    folder = "/".join(["a-folder-whose-name-is-not-short"] * 4)
    _, planned, _ = quantkit("plan", model, "--out", folder)
    assert folder in planned
    _, out, _ = quantkit("gptq", model, "--out", folder, "--method", "rtn", *FEW)
    assert folder in out


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes both streams a terminal of 200 columns that can show colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")

    def attach():  # inside the test: pytest puts its own streams back before it
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return attach


def test_a_terminal_gets_bars(model, terminal):
    out, err = terminal()
    assert _run(["gptq", model, "--out", "out", *FEW], False) == 0
    assert "layers" in err.getvalue()
    assert "2/2" in err.getvalue()
    assert "calibration: 8 x 64 tokens" in err.getvalue()
    assert "loads in: transformers" in out.getvalue()


def test_no_color_is_honoured_on_a_terminal(model, terminal, monkeypatch):
    out, err = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert _run(["gptq", model, "--out", "out", *FEW], False) == 0
    assert _run(["plan", model], False) == 0
    codes = {code for text in (out.getvalue(), err.getvalue()) for code in COLOUR.findall(text)}
    assert not {code for code in codes if re.search(r"[\[;](3|4|9|10)\d", code)}


def test_json_on_a_terminal_is_json(model, terminal):
    out, _ = terminal()
    assert _run(["plan", model, "--json"], False) == 0
    assert json.loads(out.getvalue())["schema_version"] == 1


def test_a_notebook_gets_lines(model, terminal, monkeypatch):
    _, err = terminal()
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert _run(["gptq", model, "--out", "out", "--method", "rtn", *FEW], False) == 0
    assert "layer 2/2" in err.getvalue()
    assert "\x1b" not in err.getvalue()


@pytest.mark.parametrize("arguments", [["--context", "-5"], ["--context", "0"], ["--max-shard-size", "0"]])
def test_sizes_of_nothing_are_refused(quantkit, model, arguments):
    assert quantkit("plan", model, *arguments)[0] == 2
