"""What runs leave beside the weights: the manifest with its base, licence files, and the card of GGUF files."""

import json
import shutil

import pytest
import tiny
import torch
from artifacts import job_of, quantize
from gguf_files import Planned
from gguf_runs import WIDE, asked_here, converted, random_imatrix
from huggingface_hub import ModelCard

from quantkit.hub.repository import resolve
from quantkit.manifest import read_manifest
from quantkit.pipeline.card import write_card
from quantkit.pipeline.gptq import run
from quantkit.pipeline.verify import verify_folder
from quantkit.weights.hashes import file_hash, file_hashes
from quantkit.weights.imatrix import write_imatrix

CARD = "---\nlicense: other\nlicense_name: nice\nlicense_link: LICENSE\nlanguage: zh\n---\n# Card\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tiny.make_model(tmp_path_factory.mktemp("source") / "Wide-Chat", dtype=torch.bfloat16, **WIDE)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("as is")
    (folder / "pytorch_model.bin").write_bytes(b"not this")
    write_imatrix(folder.parent / "wide-imatrix.gguf", random_imatrix(Planned(folder)))
    return folder


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)


@pytest.fixture
def repository(source, loopback, hub_client):
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    loopback.add_repo("org/Wide-Chat", files, gated=True)
    return "org/Wide-Chat"


def stated(repository):
    """The Hub's own word on the files of the base."""
    oids = resolve(repository).oids
    return {name: oids[name] for name in oids if name not in ("pytorch_model.bin", ".gitattributes")}


def test_a_gptq_run_says_from_what_it_was_made(repository, source, tmp_path):
    made = quantize(repository, tmp_path / "made")
    found = read_manifest(tmp_path / "made")
    base = found.base
    assert (base.name, base.repo, base.gated) == (repository, repository, True)
    assert base.commit == resolve(repository).commit
    assert base.files == stated(repository) | file_hashes(source, ["config.json", "model.safetensors"])
    assert base.card == {"license": "other", "license_name": "nice", "license_link": "LICENSE", "language": ["zh"]}
    assert (found.recipe, found.calibration) == (made.record["recipe"], made.record["calibration"])
    assert found.versions == made.record["versions"]
    assert found.files == file_hashes(
        tmp_path / "made", {path.name for path in made.output.iterdir()} - {"quantkit.json"}
    )
    assert {"config.json", "run.json", "layers.jsonl", "LICENSE", "tokenizer.json"} <= found.files.keys()


def test_gguf_runs_into_one_folder_share_a_manifest(repository, source, tmp_path):
    out, imatrix = tmp_path / "out", source.parent / "wide-imatrix.gguf"
    out.mkdir()
    shutil.copy(imatrix, out)
    converted(repository, out, "Q8_0")
    first = read_manifest(out)
    assert first.calibration is None
    converted(repository, out, "IQ4_NL", imatrix=out / imatrix.name)
    converted(source, out, "Q4_0")  # of another base: a folder of this machine
    found = read_manifest(out)
    assert found.base.name == "Wide-Chat"
    assert [model["type"] for model in found.recipe["models"].values()] == ["Q4_0"]
    converted(repository, out, "Q8_0")  # all is there, and the manifest is again that of this base
    found = read_manifest(out)
    assert found.base == first.base.model_copy()
    assert first.base.files == stated(repository)
    models = found.recipe["models"]
    assert {name: model["type"] for name, model in models.items()} == {
        "Wide-1.4M-Chat-IQ4_NL": "IQ4_NL", "Wide-1.4M-Chat-Q8_0": "Q8_0",
    }  # fmt: skip
    assert found.calibration == {"imatrix_sha256": file_hash(imatrix)}
    names = {"LICENSE", imatrix.name, *(f"{name}{end}" for name in models for end in (".gguf", ".quantkit.json"))}
    assert found.files == file_hashes(out, names)


def test_the_card_of_gguf_files(repository, source, tmp_path):
    out = tmp_path / "out"
    converted(repository, out, "Q8_0", "Q4_K_M", imatrix=source.parent / "wide-imatrix.gguf")
    text = write_card(out, repo_id="me/Wide-Chat-GGUF")
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data["quantized_by"]) == (repository, "gguf", "me")
    assert data.tags == ["gguf", "4-bit", "8-bit", "quantkit", "imatrix"]
    assert (data.license, data["license_link"], data.language) == ("other", "LICENSE", ["zh"])
    for said in (
        "Wide-Chat](https://huggingface.co/org/Wide-Chat)",
        "as GGUF, Q4\\_K\\_M and Q8\\_0.",
        "llama-cli -hf me/Wide-Chat-GGUF:Q4_K_M\n",
        "ollama run hf.co/me/Wide-Chat-GGUF:Q4_K_M\n",
        "hf download me/Wide-Chat-GGUF Wide-1.4M-Chat-Q4_K_M.gguf --local-dir .",
        "<s>user\n{prompt}</s>\n<s>assistant\n```",
        "importance matrix with sha256",
        "The base model is gated",
        "[LICENSE](LICENSE)",
        "> **These models were not checked:**\n> - Q4\\_K\\_M: not checked",
    ):
        assert said in text, said
    assert "llama-cli -m out/Wide-1.4M-Chat-Q4_K_M.gguf" in write_card(out)
    assert verify_folder(out)["passed"]


def test_a_licence_of_the_user_is_left_alone(source, tmp_path):
    (tmp_path / "LICENSE").write_text("mine")
    record = converted(source, tmp_path, "Q8_0").records[0]
    assert (tmp_path / "LICENSE").read_text() == "mine"
    assert record["notes"][-1] == "LICENSE is another than the checkpoint's, and left alone"
    assert "LICENSE" not in read_manifest(tmp_path).files
    converted(source, tmp_path / "named" / "mine.gguf", "Q8_0")
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == [
        "mine.gguf", "mine.quantkit.json", "quantkit.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "named" / "mine.quantkit.json").read_text())["base"]["files"].keys() == {
        "LICENSE", "README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_an_importance_matrix_beside_a_gptq_folder_is_sealed_with_the_card(source, tmp_path):
    quantize(source, tmp_path / "made", method="rtn")
    shutil.copy(source.parent / "wide-imatrix.gguf", tmp_path / "made")
    assert verify_problem(tmp_path / "made") == "wide-imatrix.gguf is not in quantkit.json"
    write_card(tmp_path / "made")
    found = verify_folder(tmp_path / "made")
    assert [check["model"] for check in found["checks"]] == ["made"]
    (tmp_path / "made" / "wide-imatrix.gguf").unlink()
    write_card(tmp_path / "made")
    assert verify_folder(tmp_path / "made")["passed"]


def test_a_run_that_begins_anew_leaves_no_card_of_the_earlier_one(source, tmp_path):
    quantize(source, tmp_path / "made", method="rtn")
    write_card(tmp_path / "made")
    assert (tmp_path / "made" / "README.md").exists()
    run(job_of(source, tmp_path / "made", method="rtn", bits=8), restart=True)
    assert not (tmp_path / "made" / "README.md").exists()
    assert verify_folder(tmp_path / "made")["files"]["unlisted"] == []


def verify_problem(folder):
    from quantkit.pipeline.verify import examine

    (problem,) = examine(folder)["problems"]
    return problem
