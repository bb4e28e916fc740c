"""Run in a process of its own: what quantizations hold in memory beyond the loaded libraries.

    python memory_probe.py OUT SAMPLES LENGTH MODEL…

Quantizes the models one after the other and prints JSON, of each the resident bytes before (the first comes after a
tiny model was quantized: libraries and compiled kernels are then loaded), the peak, and what the plan predicted.
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
    out, samples, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_model(Path(folder) / "tiny", "LlamaForCausalLM")
        few = Recipe(calibration=Calibration(samples=2, sequence_length=32))
        run(prepare(str(tiny), few, output=Path(folder) / "out", device="cpu"))
    recipe = Recipe(calibration=Calibration(samples=samples, sequence_length=length))
    found = []
    for number, model in enumerate(sys.argv[4:]):
        release_memory()
        base = resident_bytes()
        reset_peak()
        result = run(prepare(model, recipe, output=out / str(number), device="cpu"))
        predicted = result.record["predicted"]["host_bytes"]
        found.append({"base": base, "peak": peak_resident_bytes(), "predicted": predicted})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
