"""Run in a process of its own: what conversions to GGUF hold in memory.

    python gguf_probe.py OUT MODEL…

Converts the models one after the other with an importance for their first layer, and prints JSON: of each the measured
peak and what was predicted, and whether torch was loaded.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from quantkit.pipeline.gguf_convert import ImatrixWish, convert
from quantkit.pipeline.gguf_job import GgufOptions
from quantkit.pipeline.look import look_for_gguf
from quantkit.progress import Silent
from quantkit.weights.imatrix import Entry, Imatrix, write_imatrix

TYPES = ("Q4_K_M", "Q8_0")


def main() -> None:
    out, found = Path(sys.argv[1]), []
    for number, model in enumerate(sys.argv[2:]):
        checkpoint = look_for_gguf(model)
        columns = checkpoint.config["hidden_size"]
        file = out.with_name(f"{out.name}-{number}.imatrix")
        entry = Entry(np.ones((1, columns), np.float32), np.ones(1, np.float32))
        write_imatrix(file, Imatrix({"blk.0.attn_q.weight": entry}, ("ones",), 1, 1))
        options = GgufOptions(TYPES, out=out / str(number), threads=2)
        (record, _) = convert(checkpoint, options, ImatrixWish(str(file)), Silent()).records
        found.append({"peak": record["measured"]["host_bytes"], "predicted": record["predicted"]["host_bytes"]})
    print(json.dumps({"found": found, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
