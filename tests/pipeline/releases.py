"""A tiny release for tests: the base on the loopback Hub, its release file, and a process of its own that makes it."""

import json
import os
from pathlib import Path

import processes
import pytest
import yaml
from gguf_runs import asked_here
from huggingface_hub import constants
from processes import tiny_source

from quantkit.cli import main
from quantkit.weights import remote, transfer

BASE = "some/tiny"
NAME = "tiny"
TEXT = {"text": ["english"], "samples": 2, "sequence_length": 16}
GATES = {"max_ppl_increase": "900%", "max_kl": 9.0, "min_top1": 0.0}
RECIPES = {
    "int4": {"method": "gptq", "bits": 4, "group_size": 32, "calibration": TEXT, "gates": GATES},
    "int8": {"method": "gptq", "bits": 8, "group_size": 32, "calibration": TEXT, "gates": GATES},
    "q8": {"method": "gguf", "type": "Q8_0", "gates": GATES},
    "q4": {"method": "gguf", "type": "Q4_0", "gates": GATES},
    "iq4": {"method": "gguf", "type": "IQ4_NL", "imatrix": "auto", "calibration": TEXT, "gates": GATES},
}
FOUR = ("int8", "int4", "q8", "q4")
CARD = "---\nlicense: apache-2.0\nlanguage: [en, fr]\npipeline_tag: text-generation\n---\n# Tiny\n"


def publish_base(hub, folder: Path, **how) -> str:
    """The base as a repository; returns its commit."""
    source = tiny_source(folder)
    (source / "README.md").write_text(CARD)
    (source / "LICENSE").write_text("Apache License, Version 2.0\n")
    return hub.add_repo(BASE, {path.name: path for path in source.iterdir()}, **how)


def write_release(folder: Path, variants=FOUR, push=True, base=BASE, **fields) -> Path:
    """A release file and its recipes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in variants:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(RECIPES[name]))
    content = {
        "base": base,
        "variants": [{"recipe": f"{name}.yaml"} for name in variants],
        "check": {"text": ["spanish"], "context": 256},
        **({"push": {"namespace": "tester", "collection": "Tiny, quantized", "tag": "v1"}} if push else {}),
        **fields,
    }
    path = folder / "release.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes processes and seconds and is not tried here."""
    patch.setattr("quantkit.pipeline.card.render", lambda *_, **__: ["a prompt"])
    patch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
    processes.quicken(patch)


def release_there(folder: Path, file: Path, url: str, token: str, cache: Path) -> None:
    """`quantkit release FILE --out FOLDER` in a process of its own."""
    quicken(pytest.MonkeyPatch())
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = url, template
    constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = str(cache), True
    remote.RETRY_SECONDS = transfer.WAITS = (0.01, 0.01)
    os.environ["HF_TOKEN"] = token
    main(["release", str(file), "--out", str(folder), "--device", "cpu", "--json"])


def record_of(folder: Path) -> dict:
    return json.loads((folder / "release.json").read_bytes())
