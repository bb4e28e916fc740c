"""`quantkit gguf` on the command line: tables and JSON, and every refusal with its sentence and exit code."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from gguf_files import Planned
from gguf_runs import WIDE, asked_here, content, random_imatrix
from safetensors.torch import load_file, save_file
from test_imports import loaded
from vocab.gguf_tiny import llama

from quantkit.cli import _run
from quantkit.weights.imatrix import write_imatrix

WITHOUT_GGML = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is not None, reason="ggml is installed")
OPTIONS = [
    "--type", "--target-size", "--out", "--recipe", "--imatrix", "--tensor-type", "--pre", "--split-max-size",
    "--calibration", "--samples", "--sequence-length", "--seed", "--device", "--threads", "--stream", "--no-stream",
    "--restart", "--context", "--dry-run", "--json", "--help",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A checkpoint, and imatrix files: of it, of a wider one, and of another architecture."""
    folder = tmp_path_factory.mktemp("gguf-cli")
    planned = Planned(tiny.make_model(folder / "model", dtype=torch.bfloat16))
    wide = Planned(tiny.make_model(folder / "wide", **WIDE))
    write_imatrix(folder / "own.gguf", random_imatrix(planned))
    write_imatrix(folder / "wide.gguf", random_imatrix(wide))
    entries = {f"encoder.{name}": entry for name, entry in random_imatrix(planned).entries.items()}
    write_imatrix(folder / "other.gguf", type(random_imatrix(planned))(entries, ("random",), 1, 64))
    return folder


@pytest.fixture
def model(shared, tmp_path, monkeypatch):
    """A checkpoint named `model` in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared / "model", tmp_path / "model")
    return "model"


@pytest.fixture
def quantkit(capsys):
    """`quantkit gguf …` in this process: exit code, stdout, stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = _run(["gguf", *map(str, arguments)], False)
        return code, *capsys.readouterr()

    return call


# What is printed.


def test_help_lists_all_options(quantkit):
    code, out, err = quantkit("--help")
    assert (code, err) == (0, "")
    assert set(re.findall(r"(?<![\w'.-])--[a-z][a-z-]+", out.split("Options:")[1])) == set(OPTIONS)


def test_a_dry_run_tells_and_writes_nothing(quantkit, model):
    code, out, err = quantkit(model, "--type", "q8_0", "--type", "F16", "--dry-run")
    assert (code, err) == (0, "")
    assert "model: LlamaForCausalLM\nGGUF architecture llama, vocabulary gpt2, pre-tokenizer gpt-2\n" in out
    assert re.search(r"model-427K-Q8_0\.gguf +\d+\.\d+ kB +8\.50 +16 Q8_0, 5 F32", out)
    assert re.search(r"output +model-GGUF", out)
    assert [path.name for path in Path().iterdir()] == ["model"]


def test_json_is_the_plan_and_then_the_result(quantkit, model):
    code, out, _ = quantkit(model, "--type", "Q8_0", "--type", "Q4_0", "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["gguf_architecture"], plan["vocabulary"]) == (0, "llama", {"model": "gpt2", "pre": "gpt-2"})
    code, out, err = quantkit(model, "--type", "Q8_0", "--type", "Q4_0", "--json")
    made = json.loads(out)
    assert (code, made["folder"]) == (0, "model-GGUF")
    assert "layer 2/2" in err
    for output, record in zip(plan["outputs"], made["outputs"], strict=True):
        assert output["files"] == record["files"]
        for name, size in record["files"].items():
            assert (Path("model-GGUF") / name).stat().st_size == size
        stem = next(iter(record["files"])).removesuffix(".gguf")
        assert json.loads((Path("model-GGUF") / f"{stem}.quantkit.json").read_text("utf-8")) == record


def test_a_run_prints_what_was_predicted_and_measured(quantkit, model):
    code, out, _ = quantkit(model, "--type", "Q8_0", "--out", "x.gguf")
    assert code == 0
    assert re.search(r"x\.gguf +\d+\.\d+ kB +8\.50 +16 Q8_0, 5 F32", out)
    for what in ("peak host memory", "disk", "time"):
        assert re.search(rf"{what} +[\d.]+ \w+ +[\d.]+ \w+", out), what
    assert quantkit(model, "--type", "Q8_0", "--out", "x.gguf")[2] == "x.gguf is finished already; nothing to do\n"


def test_the_command_itself(model):
    """A process as the user starts it, and the other one that it starts: torch's 400 MB are in that for seconds."""
    code = (
        "import sys; from quantkit.cli import _run; code = _run(sys.argv[1:], False);"
        "print(code, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "gguf", "model", "--type", "Q8_0", "--type", "Q4_0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert content(Path("model-GGUF/model-427K-Q8_0.gguf"))["blk.1.ffn_down.weight"][0] == "Q8_0"


def test_a_recipe_says_what_options_do_not(quantkit, model):
    Path("mine.yaml").write_text(
        "method: gguf\ntype: Q4_0\ntensor_types: ['ffn_down=Q8_0']\nsplit_max_size: 300kB\nimatrix: auto\n"
        "calibration: {samples: 2, sequence_length: 16}\n"
    )
    assert quantkit(model, "--recipe", "mine.yaml", "--imatrix", "none")[0] == 0
    parts = sorted(Path("model-GGUF").glob("*.gguf"))
    assert [part.name for part in parts] == [f"model-427K-Q4_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    types = {name: entry[0] for part in parts for name, entry in content(part).items()}
    assert (types["blk.1.ffn_down.weight"], types["blk.1.ffn_up.weight"]) == ("Q8_0", "Q4_0")
    plan = json.loads(quantkit(model, "--recipe", "mine.yaml", "--type", "Q8_0", "--dry-run", "--json")[1])
    assert [output["type"] for output in plan["outputs"]] == ["Q8_0"]
    assert quantkit(model, "--recipe", "gguf-q8_0", "--target-size", "1GB", "--dry-run")[0] == 0


def test_a_recipe_for_gptq_makes_no_gguf_files(quantkit, model):
    code, _, err = quantkit(model, "--recipe", "gptq-int4")
    assert (code, err.splitlines()) == (
        3,
        ["quantkit: gptq-int4: this recipe makes a GPTQ checkpoint (method: gptq)",
         "hint: take it with quantkit gptq --recipe"],
    )  # fmt: skip


# Wrong options.

REFUSED = {
    "neither": ([], 2, "gguf needs either --type or --target-size", "such as --type Q4_K_M"),
    "both": (["--type", "Q8_0", "--target-size", "1GB"], 2, "gguf needs either --type or --target-size", "Q4_K_M"),
    "unknown": (["--type", "Q9_K"], 2, "unknown file type 'Q9_K'", "known are F32, F16, BF16, Q8_0"),
    "two for one file": (
        ["--type", "Q8_0", "--type", "Q4_0", "--out", "x.gguf"], 2,
        "--out x.gguf names one file for 2 types", "name a folder",
    ),
    "not without imatrix": (
        ["--type", "IQ2_XXS"], 2,
        r"IQ2_XXS needs an importance matrix, and none is there for blk\.0\.ffn_down\.weight, which would be IQ2_XXS",
        "--imatrix auto",
    ),
    "no override": (["--type", "Q8_0", "--tensor-type", "ffn_up"], 2, "not REGEX=TYPE: 'ffn_up'", "attn_v=Q8_0"),
    "no type": (["--type", "Q8_0", "--tensor-type", "ffn=Q9"], 2, "unknown tensor type 'Q9' in 'ffn=Q9'", "known are"),
    "no expression": (["--type", "Q8_0", "--tensor-type", "ffn(=Q4_0"], 2, r"not a regular expression: 'ffn\('", None),
    "nothing to override": (["--type", "F16", "--tensor-type", "ffn=Q4_0"], 2, "--tensor-type changes nothing", "type"),
    "too small": (
        ["--target-size", "10kB"], 2, r"nothing fits in 10\.00 kB: the smallest is Q3_K_S with \d+\.\d+ kB", "raise"
    ),
    "no size": (["--target-size", "much"], 2, "not a size: 'much'", "5GB"),
    "no limit": (["--type", "Q8_0", "--split-max-size", "x"], 2, "not a size: 'x'", "5GB"),
    "no pre": (["--type", "Q8_0", "--pre", "gpt3"], 2, "--pre gpt3: llama.cpp has no such pre-tokenizer", "gpt"),
    "no threads": (["--type", "Q8_0", "--threads", "0"], 2, "invalid value for '--threads'", "--help"),
    "no imatrix": (["--type", "Q8_0", "--imatrix", "x.gguf"], 4, "no such imatrix file: x.gguf", "--imatrix auto"),
    "no samples": (["--type", "Q8_0", "--samples", "0"], 2, "option calibration.samples: ", None),
    "a streamed folder": (["--type", "Q8_0", "--stream"], 2, "model is a folder: only a repository", "leave --st"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_refused(quantkit, model, case):
    arguments, expected, sentence, hint = REFUSED[case]
    for more in ([], ["--dry-run"]):
        code, out, err = quantkit(model, *arguments, *more)
        error, *rest = err.splitlines()
        assert (code, out) == (expected, "")
        assert re.match(f"quantkit: {sentence}", error), err
        if hint:
            assert re.match(f"hint: .*{hint}", rest[-1]), err
    assert [path.name for path in Path().iterdir()] == ["model"]


@WITHOUT_GGML
@pytest.mark.parametrize("arguments", [["--type", "TQ2_0"], ["--type", "IQ2_XXS", "--imatrix", "wide.gguf"]])
def test_types_of_ggml_ask_for_the_extra(quantkit, shared, monkeypatch, arguments):
    monkeypatch.chdir(shared)
    code, _, err = quantkit("wide", *arguments, "--out", "never")
    assert (code, err.splitlines()) == (
        2,
        ["quantkit: types of ggml's own encoders need ggml, which is not installed",
         "hint: pip install 'quantkit[ggml]'"],
    )  # fmt: skip
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("other.gguf", r"\S+other\.gguf tells of no tensor of this model, but of encoder\.blk\.0\.\S+ and such"),
        ("wide.gguf", r"wide\.gguf: found 2 times 128 values for blk\.0\.attn_k\.weight, expected 1 times"),
        ("model/config.json", "config.json: found \\d+ as the number of entries, expected 1 to 100000"),
        ("model/model.safetensors", "model.safetensors: found 0 as the length of the name of entry 0, .*"),
    ],
)
def test_the_imatrix_of_another_model_is_refused(quantkit, shared, model, file, sentence, tmp_path):
    code, _, err = quantkit(model, "--type", "Q4_0", "--out", "out", "--imatrix", shared / file)
    assert code == 3
    assert re.search(f"^quantkit: {sentence}$", err, re.MULTILINE), err
    assert list(Path().rglob("*.gguf")) == []


def test_a_pre_tokenizer_for_a_tokenizer_that_has_none(quantkit, model):
    tokenizer = llama()
    tiny.make_model(model, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)
    code, _, err = quantkit(model, "--type", "Q8_0", "--pre", "llama-bpe")
    assert code == 2
    assert re.match("quantkit: --pre llama-bpe", err), err
    assert quantkit(model, "--type", "Q8_0")[0] == 0


# Damaged weights.


def spoiled(name, value):
    weights = load_file("model/model.safetensors")
    weights[name].view(-1)[-67] = value
    save_file(weights, "model/model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"])
def test_weights_that_are_no_numbers_are_refused_and_mended(quantkit, model, name, value):
    sound = Path("model/model.safetensors").read_bytes()
    spoiled(name, float(value))
    code, _, err = quantkit(model, "--type", "Q8_0", "--type", "Q4_0", "--out", "out")
    assert code == 3
    assert f"quantkit: tensor {name} has 1 values that are NaN or infinite\n" in err
    assert list(Path("out").glob("*.gguf")) == []
    Path("model/model.safetensors").write_bytes(sound)
    assert quantkit(model, "--type", "Q8_0", "--type", "Q4_0", "--out", "out")[0] == 0
    assert quantkit(model, "--type", "Q8_0", "--type", "Q4_0", "--out", "clean")[0] == 0
    for path in Path("clean").glob("*.gguf"):
        assert (Path("out") / path.name).read_bytes() == path.read_bytes()
    assert list(Path("out").glob("*.partial*")) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def foreign(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:67\nsize 39\n")


def counted_wrongly(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize("spoil", [cut, foreign, counted_wrongly, Path.unlink])
def test_a_damaged_file_is_refused_before_torch_is_loaded(model, spoil):
    spoil(Path("model/model.safetensors"))
    code = (
        "import sys; from quantkit.cli import _run; code = _run(['gguf', 'model', '--type', 'Q8_0'], False);"
        "print(code, [name for name in ('torch', 'transformers', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"[34] \[\]\n", done.stdout), done
    assert done.stderr.startswith("quantkit: ")
    assert not Path("model-GGUF").exists()


def test_a_first_look_does_not_wait_for_torch():
    modules = "quantkit.commands.gguf, quantkit.recipe, quantkit.pipeline.look"
    assert loaded(modules, ("torch", "transformers", "numba")) == "[]"


def test_what_is_there_is_overwritten_only_if_asked(quantkit, model):
    Path("mine.gguf").write_text("mine")
    code, _, err = quantkit(model, "--type", "Q8_0", "--out", "mine.gguf")
    assert (code, err.splitlines()[-2:]) == (
        3,
        ["quantkit: mine.gguf is there already, and it is not known from what it was made",
         "hint: name another --out, or give --restart to make it again"],
    )  # fmt: skip
    assert Path("mine.gguf").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} == {"mine.gguf", "model"}
    assert quantkit(model, "--type", "Q8_0", "--out", "mine.gguf", "--restart")[0] == 0
    assert Path("mine.gguf").read_bytes().startswith(b"GGUF")


def test_an_out_that_is_a_file(quantkit, model):
    Path("mine").write_text("mine")
    code, _, err = quantkit(model, "--type", "Q8_0", "--out", "mine")
    assert code in (3, 6)
    assert re.search("^quantkit: .*mine", err, re.MULTILINE)
    assert Path("mine").read_text() == "mine"
