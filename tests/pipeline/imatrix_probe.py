"""Run in a process of its own: what the collection of an imatrix holds in memory.

    python imatrix_probe.py MODEL FILE

Prints JSON with the peak while FILE was made, and what was predicted.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

sys.path.insert(0, str(Path(__file__).parents[1]))

from gguf_files import Planned

from quantkit.checkpoint import open_checkpoint
from quantkit.devices import choose_device, release_memory, reset_peak
from quantkit.memory import peak_resident_bytes
from quantkit.pipeline.gguf_imatrix import imatrix_cost, imatrix_for
from quantkit.progress import Silent
from quantkit.recipe import Calibration

TEXT = Calibration(samples=8, sequence_length=256)


def main() -> None:
    model, path = sys.argv[1], Path(sys.argv[2])
    device = choose_device("cpu")
    planned = Planned(Path(model))
    planned.checkpoint = open_checkpoint(model)
    release_memory()
    reset_peak()
    predicted = imatrix_cost(planned, TEXT, device).host_bytes
    imatrix_for(path, planned, TEXT, device, "probed", Silent())
    print(json.dumps({"peak": peak_resident_bytes(), "predicted": predicted}))


if __name__ == "__main__":
    main()
