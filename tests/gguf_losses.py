"""llama.cpp's losses of GGUF files, beside what `quantkit check` reads from the same files."""

import json
import math
import subprocess
from pathlib import Path

import gguf
import numpy as np

from quantkit.pipeline.check import run
from quantkit.pipeline.check_job import CheckOptions, prepare

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
SCRIPT = ROOT / "tests" / "peers" / "gguf_losses_child.py"


def spelled_out(path: Path, out: Path) -> Path:
    """A file's metadata and weights, the latter as float32: llama.cpp then rounds no activations for them."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, *inner = field.types
        writer.add_key_value(key, field.contents(), kind, sub_type=inner[0] if inner else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def readings(files: list[Path], baseline: Path, text: Path, folder: Path, **options) -> list[dict[str, float]]:
    """Per file the perplexity by `quantkit check` (`ours`) and by llama.cpp: `theirs`, `float32`, `spelled_out`.

    `theirs` is what llama.cpp computes unasked, `float32` the same with its attention in float32, `spelled_out` that
    from the weights as float32. `error` is the relative standard error.
    """
    asked = CheckOptions(text=(str(text),), dtype="float32", device="cpu", gated=False, **options)
    job = prepare([str(file) for file in files], str(baseline), asked)
    record = run(job, write=False)
    np.save(folder / "ids.npy", job.windows.ids.numpy())
    pairs = [(file, spelled_out(file, folder / f"{file.stem}.F32.gguf")) for file in files]

    def question(path: Path, *attention: str) -> dict[str, object]:
        ids, out = folder / "ids.npy", folder / f"{path.stem}.npz"
        return {"model": str(path), "ids": str(ids), "out": str(out), "attention": attention}

    jobs = [one for file, plain in pairs for one in (question(file, "default", "float32"), question(plain, "float32"))]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run([PYTHON, SCRIPT, folder / "jobs.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    scored = job.windows.scored[:, 1:].numpy()

    def perplexity(path: Path, attention: str) -> float:
        return math.exp(np.load(folder / f"{path.stem}.npz")[attention][scored].mean())

    found = []
    for (file, plain), entry in zip(pairs, record["artifacts"], strict=True):
        overall = entry["metrics"]["all"]
        found.append(
            {
                "ours": overall["perplexity"],
                "error": overall["perplexity_error"] / overall["perplexity"],
                "baseline": record["baseline"]["metrics"]["all"]["perplexity"],
                "theirs": perplexity(file, "default"),
                "float32": perplexity(file, "float32"),
                "spelled_out": perplexity(plain, "float32"),
            }
        )
    return found
