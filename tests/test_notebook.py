"""The notebook for a Colab machine, executed to its end with a tiny model through the Hub on this machine."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import tiny
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[1] / "examples" / "colab_70b.ipynb"
MODEL, TARGET, FOLDER = "some/tiny-llama", "tester/tiny-llama-GPTQ-Int8", "tiny-llama-GPTQ-Int8"
CANARY = "hf_canary"
RECIPE = """\
bits: 8
group_size: 32
calibration: {text: [english], samples: 2, sequence_length: 32}
gates: {max_ppl_increase: 50%, max_kl: 1.0, min_top1: 0.1}
"""
# What Colab has in place of its module `google.colab`, as far as the notebook asks it.
USERDATA = """
import os


class SecretNotFoundError(Exception):
    pass


class NotebookAccessError(Exception):
    pass


def get(name):
    if "COLAB_SECRET" not in os.environ:
        raise SecretNotFoundError(name)
    assert name == "HF_TOKEN"
    return os.environ["COLAB_SECRET"]
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def execute(loopback, tmp_path, notebook):
    """Runs the notebook in a kernel of its own as if on Colab; `secret` is the token that Colab keeps for it.

    Gives the notebook as it was left, and the error that ended it.
    """
    source = tiny.make_model(tmp_path / "source", dtype=torch.bfloat16, layout="sharded")
    files = {path.name: path for path in source.iterdir()}
    loopback.add_repo(MODEL, files | {"README.md": b"---\nlicense: mit\n---\nTiny.\n"})
    colab = tmp_path / "modules" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    (colab / "userdata.py").write_text(USERDATA)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= loopback.environment(tmp_path / "home") | {
        "PYTHONPATH": str(tmp_path / "modules"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    del environment["HF_TOKEN"]

    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(secret=None, without=(), **values):
        values = {"MODEL": MODEL, "RECIPE": "recipe.yaml", "FOLDER": FOLDER} | values
        ours = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in values.items()))
        made = nbformat.from_dict(notebook)
        place = next(index for index, cell in enumerate(made.cells) if "parameters" in cell.metadata.get("tags", ()))
        made.cells.insert(place + 1, ours)
        made.cells = [cell for cell in made.cells if cell.id not in without]
        client = NotebookClient(made, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
        error = None
        try:
            client.execute(env=environment | ({"COLAB_SECRET": secret} if secret else {}))
        except CellExecutionError as raised:
            error = raised
        return made, error

    return run


def said(cell):
    """Everything that a cell has put out, pictures aside."""
    texts = [output.get("text", "") + "\n".join(output.get("traceback", ())) for output in cell.outputs]
    return "".join(texts)


def cell_of(made, name):
    return next(cell for cell in made.cells if cell.id == name)


def test_the_file_is_a_notebook_that_holds_no_run_of_anybody(notebook):
    nbformat.validate(notebook)
    told = json.loads(NOTEBOOK.read_text("utf-8"))
    assert set(told["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert told["metadata"]["colab"] == {"gpuType": "T4"}
    assert told["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata in ({}, {"tags": ["parameters"]}), cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_from_the_plan_to_the_repository_and_again(execute, loopback, tmp_path):
    made, error = execute(loopback.token, TARGET=TARGET)
    assert error is None, error
    folder = tmp_path / FOLDER
    assert json.loads((folder / "check.json").read_bytes())["passed"]
    assert not (folder / ".source.partial").exists()
    held = loopback.repo(TARGET).files()
    del held[".gitattributes"]  # the Hub's own
    assert held == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "logged in as tester" in said(cell_of(made, "log-in"))
    assert re.search(r"^RAM +[\d.]+ GB free of", said(cell_of(made, "machine")), re.MULTILINE)
    assert f"$ quantkit plan {MODEL} --recipe recipe.yaml" in said(cell_of(made, "plan"))
    assert "layer 2/2" in said(cell_of(made, "run"))
    assert "NOT KEPT" not in said(cell_of(made, "lost"))
    for name in ("fits", "lost"):
        assert any("image/png" in output.get("data", {}) for output in cell_of(made, name).outputs), name
    assert loopback.url in said(cell_of(made, "push"))
    assert CANARY not in nbformat.writes(made)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]

    published = loopback.head(TARGET)
    fail_the_check(folder)
    made, error = execute(without=("plan", "fits"))  # without a token, and TARGET as it stands
    assert error is None, error
    assert "Colab shows this notebook no secret HF_TOKEN\nnot logged in" in said(cell_of(made, "log-in"))
    assert f"{FOLDER} is finished already" in said(cell_of(made, "run"))
    assert "The artifact fails its limits" in said(cell_of(made, "run"))
    assert re.search(r"^NOT KEPT: perplexity", said(cell_of(made, "lost")), re.MULTILINE)
    assert "nothing is published" in said(cell_of(made, "push"))
    assert loopback.head(TARGET) == published


def fail_the_check(folder):
    """As if the first gate had not held."""
    record = json.loads((folder / "check.json").read_bytes())
    artifact = record["artifacts"][0]
    record["passed"] = artifact["passed"] = artifact["gates"][0]["passed"] = False
    (folder / "check.json").write_text(json.dumps(record))


def test_a_command_that_fails_stops_the_notebook(execute):
    made, error = execute(MODEL="some/nothing")
    assert "quantkit ended with code 4; the last lines above say why" in str(error)
    assert "the Hub shows no repository some/nothing" in said(cell_of(made, "plan"))
    assert not cell_of(made, "run").outputs
