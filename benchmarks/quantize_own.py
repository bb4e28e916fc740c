"""quantkit in a process of its own, measured as tests/peers/quantize_peer.py measures a peer.

    python benchmarks/quantize_own.py MODEL OUT SAMPLES LENGTH TEXT

A tiny random Llama is quantized first, outside of all figures: libraries and compiled kernels are then
loaded, as the peers' are. The figures cover everything from opening the checkpoint to the finished
folder: planning, hashing, tokenizing, quantizing, writing and reading back. Prints one line of JSON.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as quantkit.cli.main does

import random_llama

from quantkit.devices import release_memory, reset_peak
from quantkit.memory import peak_resident_bytes, resident_bytes
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import Calibration, Recipe
from quantkit.versions import version


def main() -> None:
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    samples, length, text = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder), model)
    release_memory()
    reset_peak()
    base = resident_bytes()
    shutil.rmtree(out, ignore_errors=True)
    wall, cpu = time.perf_counter(), time.process_time()
    recipe = Recipe(calibration=Calibration(text=(text,), samples=samples, sequence_length=length))
    run(prepare(str(model), recipe, output=out, device="cpu"))
    result = {"peer": "quantkit", "version": version(), "total_wall_s": time.perf_counter() - wall}
    result |= {"cpu_s": time.process_time() - cpu, "peak_rss_bytes": peak_resident_bytes(), "base_rss_bytes": base}
    print(json.dumps(result | {"warm": True}))


def warm_up(folder: Path, tokenizer_from: Path) -> None:
    model = random_llama.write_random_llama(folder / "tiny", "tiny", tokenizer_from)
    recipe = Recipe(calibration=Calibration(samples=4, sequence_length=64))
    run(prepare(str(model), recipe, output=folder / "out", device="cpu"))


if __name__ == "__main__":
    main()
