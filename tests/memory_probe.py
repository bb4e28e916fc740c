"""Run in a process of its own: what a quantization holds in memory beyond the loaded libraries.

    python memory_probe.py MODEL OUT SAMPLES LENGTH

Prints JSON with the resident bytes after a tiny model was quantized (libraries and compiled kernels are
then loaded), the peak while MODEL is, and what the plan predicted.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tiny import make_model

from quantkit.devices import release_memory, reset_peak
from quantkit.memory import peak_resident_bytes, resident_bytes
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import Calibration, Recipe


def main() -> None:
    model, out, samples, length = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_model(Path(folder) / "tiny", "LlamaForCausalLM")
        few = Recipe(calibration=Calibration(samples=2, sequence_length=32))
        run(prepare(str(tiny), few, output=Path(folder) / "out", device="cpu"))
    release_memory()
    base = resident_bytes()
    reset_peak()
    recipe = Recipe(calibration=Calibration(samples=samples, sequence_length=length))
    result = run(prepare(model, recipe, output=out, device="cpu"))
    predicted = result.record["predicted"]["host_bytes"]
    print(json.dumps({"base": base, "peak": peak_resident_bytes(), "predicted": predicted}))


if __name__ == "__main__":
    main()
