"""What llama.cpp multiplies its weights with: sums of squares by column, in llama-imatrix's way of looking.

Run by the python of `make peers` (.venv-peers-llama-cpp), never imported:

    .venv-peers-llama-cpp/bin/python tests/peers/imatrix_child.py IN.json

IN.json: [{"model": file, "ids": .npy of int64 [samples, tokens], "out": .npz of a weight's sums by its name, and of
its tokens by that name and ".count"}, ...]. As the tool does, a callback is asked about every operation of the graph
and looks at the second input of the products of matrices; here the sums are taken in float64.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp_perplexity import Batch, Params, load_library

CB_EVAL = 88  # byte of llama_context_params: cb_eval; in front of type_k, whose place is checked
TYPE_K = (104, 1)
ATTENTION = 52  # flash_attn_type; 0: products of matrices
F32 = 0


class Tensor(ctypes.Structure):
    """ggml_tensor."""


Tensor._fields_ = (
    ("type", ctypes.c_int32),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int32),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, ctypes.c_void_p)


class Sums:
    """By the names of weights: sums over tokens of the squares of each column, and tokens."""

    def __init__(self, llama: ctypes.CDLL) -> None:
        self.found: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        llama.ggml_op_desc.restype, llama.ggml_op_desc.argtypes = ctypes.c_char_p, (ctypes.POINTER(Tensor),)
        self._operation = llama.ggml_op_desc
        self.callback = CALLBACK(self._look)

    def _look(self, pointer: object, ask: bool, _data: object) -> bool:
        tensor = pointer.contents
        if self._operation(pointer) != b"MUL_MAT":
            return not ask
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode()
        if not name.startswith("blk.") or not name.endswith(".weight"):
            return not ask
        if not ask:
            self._add(name, inputs)
        return True

    def _add(self, name: str, inputs: Tensor) -> None:
        columns, rows = inputs.ne[0], inputs.ne[1]
        if inputs.type != F32 or tuple(inputs.nb)[:2] != (4, 4 * columns) or tuple(inputs.ne)[2:] != (1, 1):
            raise SystemExit(f"the input of {name}: type {inputs.type}, sizes {list(inputs.ne)}")
        view = (ctypes.c_float * (columns * rows)).from_address(inputs.data)
        values = np.frombuffer(view, np.float32).reshape(rows, columns).astype(np.float64)
        self.found[name] = self.found.get(name, 0) + np.square(values).sum(0)
        self.counts[name] = self.counts.get(name, 0) + rows


def make_context(llama: ctypes.CDLL, model: int, sums: Sums) -> int:
    params: Params = llama.llama_context_default_params()
    if ctypes.c_int32.from_buffer(params, TYPE_K[0]).value != TYPE_K[1]:
        raise SystemExit("llama_context_params has another shape: another llama.cpp")
    for offset in (TYPE_K[0], TYPE_K[0] + 4, ATTENTION):  # keys and values in float32, no flash attention
        ctypes.c_int32.from_buffer(params, offset).value = 0
    ctypes.c_void_p.from_buffer(params, CB_EVAL).value = ctypes.cast(sums.callback, ctypes.c_void_p).value
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("no context")
    llama.llama_set_n_threads(context, 1, 1)
    return context


def read(llama: ctypes.CDLL, context: int, ids: list[int]) -> None:
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch: Batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1  # or the last layer sees some tokens only
    if failed := llama.llama_decode(context, batch):
        raise SystemExit(f"llama_decode returns {failed}")
    llama.llama_batch_free(batch)


def main() -> None:
    (jobs,) = sys.argv[1:]
    llama = load_library()
    llama.llama_backend_init()
    for job in json.loads(Path(jobs).read_bytes()):
        model = llama.llama_model_load_from_file(job["model"].encode(), llama.llama_model_default_params())
        if not model:
            raise SystemExit(f"{job['model']} does not load")
        sums = Sums(llama)
        context = make_context(llama, model, sums)
        for ids in np.load(job["ids"]).tolist():
            read(llama, context, ids)
        counts = {f"{name}.count": np.array(count) for name, count in sums.counts.items()}
        np.savez(job["out"], **sums.found, **counts)


if __name__ == "__main__":
    main()
