"""ggml's own encoders, for the bytes and for the time they take.

Run by the python of `make peers` (.venv-peers-llama-cpp), never imported:

    .venv-peers-llama-cpp/bin/python tests/peers/ggml_quantize.py

reads a job per line and answers each with a line. A job is {"type": number, "values": NPY, "importance": NPY or null,
"row_bytes": bytes, "out": NPY or null, "rounds": times}, the answer {"seconds": least CPU time of a round}. A process
of its own because ggml aborts where an assertion fails.
"""

import ctypes
import importlib.util
import json
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np


def main() -> None:
    """Work until there are no more jobs."""
    folder = Path(importlib.util.find_spec("xllamacpp").origin).parent
    library = ctypes.CDLL(str(next(folder.glob("*.so"))))
    quantize, pointer, size = library.ggml_quantize_chunk, ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = (ctypes.c_int, pointer, pointer, size, size, size, pointer)
    quantize.restype = ctypes.c_size_t
    load = cache(np.load)
    for line in sys.stdin:
        job = json.loads(line)
        values = load(job["values"])
        importance = load(job["importance"]) if job["importance"] else None
        rows, columns = values.shape
        out = np.zeros((rows, job["row_bytes"]), np.uint8)
        shares = None if importance is None else importance.ctypes.data
        seconds = []
        for _ in range(job["rounds"]):
            start = time.process_time()
            written = quantize(job["type"], values.ctypes.data, out.ctypes.data, 0, rows, columns, shares)
            seconds.append(time.process_time() - start)
            assert written == out.nbytes, (written, out.nbytes)
        if job["out"]:
            np.save(job["out"], out)
        print(json.dumps({"seconds": min(seconds)}), flush=True)


if __name__ == "__main__":
    main()
