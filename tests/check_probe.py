"""Run in a process of its own: what a check of three artifacts holds in memory.

    python check_probe.py MODEL FOLDER [gguf]

Makes three artifacts of MODEL in FOLDER without data, GPTQ folders or GGUF files, checks a tiny model first (libraries
loaded), and prints JSON with the peak and what the plan predicted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tiny import make_model

from quantkit.devices import release_memory, reset_peak
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare as prepare_gptq
from quantkit.quality.texts import evaluation_texts
from quantkit.recipe import make_recipe

RECIPES = ({"bits": 8}, {"bits": 4}, {"bits": 4, "group_size": 32})
TEXT_LENGTH = 5000  # characters, 12 windows
TYPES = ("Q8_0", "Q5_0", "Q4_K_M")


def make_folders(model: str, folder: Path) -> list[str]:
    artifacts = []
    for number, fields in enumerate(RECIPES):
        out = folder / f"artifact-{number}"
        run(prepare_gptq(model, make_recipe({**fields, "method": "rtn", "scales": "minmax"}), output=out, device="cpu"))
        artifacts.append(str(out))
    return artifacts


def make_files(model: str, folder: Path) -> list[str]:
    types = [word for name in TYPES for word in ("--type", name)]
    command = [sys.executable, "-c", "from quantkit.cli import main; main()", "gguf", model, *types, "--out"]
    subprocess.run([*command, str(folder / "files")], check=True, stdout=sys.stderr)
    return [str(path) for path in sorted((folder / "files").glob("*.gguf"))]


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    tiny = make_model(folder / "tiny", "LlamaForCausalLM", max_position_embeddings=256)
    (english,) = evaluation_texts(("english",))
    text = folder / "text.txt"
    text.write_text(english.text[:TEXT_LENGTH], encoding="utf-8")
    options = CheckOptions(text=(str(text),), context=256, device="cpu", gated=False)
    check.run(prepare([str(tiny)], str(tiny), options), write=False)
    artifacts = make_files(model, folder) if "gguf" in sys.argv else make_folders(model, folder)
    release_memory()
    reset_peak()
    record = check.run(prepare(artifacts, model, options), write=False)
    print(json.dumps({"peak": record["measured"]["host_bytes"], "predicted": record["predicted"]["host_bytes"]}))


if __name__ == "__main__":
    main()
