"""`quantkit verify`: a flipped byte anywhere is found, every tensor is read, and nothing that is whole is refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from artifacts import Recorder, quantize
from corruption import spoil
from gguf_runs import WIDE, asked_here, converted
from report.records import record

from quantkit.checkfile import SCHEMA_VERSION, bound_files, write_check
from quantkit.cli import _run
from quantkit.errors import BadInputError, NotFoundError
from quantkit.manifest import CARD, MANIFEST_FILE, PICTURE, read_manifest
from quantkit.pipeline.card import write_card
from quantkit.pipeline.verify import examine, verify_folder, verify_reference
from quantkit.weights.gguf_read import read_gguf
from quantkit.weights.hashes import file_hashes

LINEAR = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A GPTQ folder and a folder of two GGUF models, checked, with their cards. Not to be changed."""
    root = tmp_path_factory.mktemp("made")
    source = tiny.make_model(root / "wide", dtype=torch.bfloat16, **WIDE)
    (source / "LICENSE").write_text("as is")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    quantize(source, root / "gptq", method="rtn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
        converted(source, root / "gguf", "Q4_K_M", "Q8_0", split_max_size="700KB")
    for path in (root / "gptq", *(root / "gguf").glob("*Q4_K_M*00001*.gguf")):
        home = path if path.is_dir() else path.parent
        check = record(1)
        check["artifacts"][0]["files"] = file_hashes(home, bound_files(path))
        write_check(path, check)
    for folder in (root / "gptq", root / "gguf"):
        write_card(folder, repo_id=f"org/{folder.name}")
    return root


@pytest.fixture(params=["gptq", "gguf"])
def folder(request, made, tmp_path):
    return Path(shutil.copytree(made / request.param, tmp_path / request.param))


@pytest.fixture
def gptq(made, tmp_path):
    return Path(shutil.copytree(made / "gptq", tmp_path / "gptq"))


def problems(folder):
    return examine(folder)["problems"]


def test_what_is_whole_passes(folder):
    progress = Recorder()
    found = verify_folder(folder, progress)
    names = {path.name for path in folder.iterdir()}
    assert found["passed"]
    assert found["files"]["listed"] == len(names) - 1 == len(read_manifest(folder).files)
    assert found["files"]["unlisted"] == []
    assert {MANIFEST_FILE, CARD, PICTURE, "LICENSE"} <= names
    assert found["manifest"]["base"]["name"] == "wide"
    assert found["manifest"]["base"]["card"] == {"license": "mit"}
    assert progress.layers == ([0, 1] if folder.name == "gptq" else [0, 1, 0, 1])
    states = [check["standing"] for check in found["checks"]]
    assert states == (["passed"] if folder.name == "gptq" else ["passed", "not checked"])
    assert found["tensors"]["read"] == (21 if folder.name == "gptq" else 2 * 21)
    assert str(folder.parent) not in json.dumps(found)


def test_forty_flipped_bytes_of_forty_are_found(folder):
    names = sorted(path.name for path in folder.iterdir())
    generator = random.Random(0)
    for number in range(40):
        path = folder / names[number % len(names)]
        raw = path.read_bytes()
        place = generator.randrange(len(raw))
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << generator.randrange(8)]) + raw[place + 1 :])
        with pytest.raises(BadInputError, match=path.name.replace(".", r"\.")):
            verify_folder(folder)
        path.write_bytes(raw)
    assert problems(folder) == []


def test_files_that_went_came_or_changed_are_named(gptq):
    (gptq / "LICENSE").unlink()
    (gptq / "extra.safetensors").write_bytes((gptq / "model.safetensors").read_bytes())
    (gptq / "modeling.py").write_text("raise SystemExit")
    (gptq / "notes.txt").write_text("mine")
    (gptq / "tokenizer.json").write_text("{}")
    found = examine(gptq)
    assert found["files"]["unlisted"] == ["notes.txt"]
    assert found["problems"][:4] == [
        "LICENSE is missing",
        "tokenizer.json is another file than quantkit.json lists",
        "extra.safetensors is not in quantkit.json",
        "modeling.py is not in quantkit.json",
    ]
    assert found["problems"][4].startswith("extra.safetensors is new since the check")


def test_every_tensor_is_read_where_nothing_lists_the_files(gptq):
    for name in (MANIFEST_FILE, "check.json"):
        (gptq / name).unlink()
    found = verify_folder(gptq)
    assert (found["manifest"], found["tensors"]["read"]) == (None, 21)
    spoil(gptq, lambda tensors: tensors.pop(f"{LINEAR}.qzeros"))
    assert problems(gptq) == [f"{LINEAR}.qzeros is missing beside {LINEAR}.qweight"]


def test_each_wrong_tensor_is_named(gptq):
    for name in (MANIFEST_FILE, "check.json"):
        (gptq / name).unlink()

    def change(tensors):
        tensors[f"{LINEAR}.scales"][0, 5] = float("inf")
        tensors["model.norm.weight"][3] = float("nan")
        tensors["model.layers.0.mlp.up_proj.g_idx"][7] = 1000

    spoil(gptq, change)
    assert problems(gptq) == [
        "model.norm.weight: 1 of 256 values are not finite",
        "model.layers.0.mlp.up_proj: g_idx names groups 0 to 1000, expected 0 to 7",
        f"{LINEAR}.weight: 32 of 32768 values are not finite",
    ]


def test_a_tensor_of_a_gguf_file_that_is_not_finite_is_named(made, tmp_path):
    (tmp_path / "x").mkdir()
    for part in (made / "gguf").glob("*Q8_0*.gguf"):
        shutil.copy(part, tmp_path / "x")
    assert problems(tmp_path / "x") == []
    part = sorted((tmp_path / "x").iterdir())[0]
    tensor = next(one for one in read_gguf(part).tensors.values() if one.type == "Q8_0")
    raw = bytearray(part.read_bytes())
    raw[tensor.offset : tensor.offset + 2] = b"\x00\x7c"  # the first block's scale
    part.write_bytes(raw)
    assert problems(tmp_path / "x") == [f"{part.name}: {tensor.name}: 32 of {tensor.elements} values are not finite"]
    part.write_bytes(raw[:-100])
    (said,) = problems(tmp_path / "x")
    assert part.name in said
    part.unlink()
    (said,) = problems(tmp_path / "x")
    assert said == f"no such file: {part.name}"


def test_a_check_of_other_files_differs_and_one_that_failed_does_not(gptq):
    check = json.loads((gptq / "check.json").read_text())
    check["artifacts"][0]["passed"] = False
    write_check(gptq, check)
    write_card(gptq)
    found = verify_folder(gptq)
    assert [one["standing"] for one in found["checks"]] == ["failed"]
    check["artifacts"][0]["files"]["config.json"] = "0" * 64
    write_check(gptq, check)
    write_card(gptq)
    assert problems(gptq) == ["config.json has changed since the check; it no longer counts"]


@pytest.mark.parametrize(
    "content", [[], "x", {"schema_version": SCHEMA_VERSION}, {"schema_version": 1, "artifacts": [3]}]
)
def test_a_check_of_strangers_is_no_crash(gptq, content):
    (gptq / "check.json").write_text(json.dumps(content))
    said = problems(gptq)
    assert said[0] == "check.json is another file than quantkit.json lists"
    assert said[1].startswith("check.json is not")


def test_what_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="holds no weights"):
        verify_folder(tmp_path)
    with pytest.raises(NotFoundError, match="is a file, expected a folder"):
        verify_reference(__file__)
    with pytest.raises(NotFoundError, match="no such folder: /nowhere"):
        verify_reference("/nowhere")


def test_a_repository_is_downloaded_whole_and_verified(made, loopback, hub_client):
    files = {path.name: path.read_bytes() for path in (made / "gptq").iterdir()}
    loopback.add_repo("org/gptq", files | {".gitattributes": b"x", "more/notes.txt": b"x"})
    found = verify_reference("org/gptq")
    assert found["passed"]
    assert (found["artifact"], len(found["commit"]), found["files"]["unlisted"]) == ("org/gptq", 40, [])
    loopback.add_repo("org/other", files | {"LICENSE": b"as was"})
    assert verify_reference("org/other")["problems"] == ["LICENSE is another file than quantkit.json lists"]


def test_the_command_prints_what_was_found_and_leaves_with_3(gptq, capsys):
    assert _run(["verify", str(gptq)], debug=False) == 0
    out = capsys.readouterr().out
    for said in (
        "base",
        "wide, a local folder",
        "mit",
        "rtn, 4 bits, group size 32",
        "listed ones are intact",
        "21 read",
    ):
        assert said in out
    (gptq / "LICENSE").write_text("as was")
    assert _run(["verify", str(gptq), "--json"], debug=False) == 3
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["schema_version"], found["passed"], found["files"]["changed"]) == (1, False, ["LICENSE"])
    assert printed.err.splitlines()[-2] == ("quantkit: gptq: LICENSE is another file than quantkit.json lists")
