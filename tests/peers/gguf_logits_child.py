"""Logits of GGUF files by llama.cpp (the peer xllamacpp), all in float32; run by a Python that has it.

    python gguf_logits_child.py IN.json

IN.json: [{"model": file, "ids": .npy of int64 [tokens], "out": .npy of float32 [tokens, vocabulary]}, ...]
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp_perplexity import Batch, load_library, make_context


def logits(llama: ctypes.CDLL, model_file: str, ids: list[int]) -> np.ndarray:
    model = llama.llama_model_load_from_file(model_file.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"{model_file} does not load")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    context = make_context(llama, model, float32=True)
    batch: Batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1
    if failed := llama.llama_decode(context, batch):
        raise SystemExit(f"llama_decode returns {failed} for {model_file}")
    return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(ids), vocabulary)).copy()


def main() -> None:
    (jobs,) = sys.argv[1:]
    llama = load_library()
    llama.llama_backend_init()
    for job in json.loads(Path(jobs).read_bytes()):
        np.save(job["out"], logits(llama, job["model"], np.load(job["ids"]).tolist()))


if __name__ == "__main__":
    main()
