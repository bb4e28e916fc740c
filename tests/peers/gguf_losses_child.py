"""Losses of GGUF files over token windows by llama.cpp (the peer xllamacpp); run by a Python that has it.

    python gguf_losses_child.py IN.json

IN.json: [{"model": file, "ids": .npy of int64 [windows, 512], "out": .npz, "attention": [name, ...]}, ...]. In `out` is
for each name of "default" and "float32", of the attention that llama.cpp computes unasked and of one in float32,
float64 [windows, 511]: -log probability in nats of each window's tokens after the first.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp_perplexity import load_library, make_context, window_losses


def main() -> None:
    (jobs,) = sys.argv[1:]
    llama = load_library()
    llama.llama_backend_init()
    for job in json.loads(Path(jobs).read_bytes()):
        model = llama.llama_model_load_from_file(job["model"].encode(), llama.llama_model_default_params())
        if not model:
            raise SystemExit(f"{job['model']} does not load")
        vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        ids, found = np.load(job["ids"]), {}
        for name in job["attention"]:
            context = make_context(llama, model, float32=name == "float32")
            found[name] = np.array([window_losses(llama, context, row.tolist(), vocabulary) for row in ids])
        np.savez(job["out"], **found)


if __name__ == "__main__":
    main()
