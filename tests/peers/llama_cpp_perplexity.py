"""llama.cpp's perplexity of a text: its tokenizer and its forward pass, in the loop of its tools/perplexity.

Run by the python of `make peers` (.venv-peers-llama-cpp), never imported:

    .venv-peers-llama-cpp/bin/python tests/peers/llama_cpp_perplexity.py MODEL.gguf TEXT OUT.json

xllamacpp brings libllama but not the tool, so the loop of `perplexity()` in tools/perplexity/perplexity.cpp is repeated
here over the C functions that it calls. OUT.json is {"ids", "default", "float32"}: the ids of the whole text, a BOS in
front where the model adds one, and twice

losses              [windows][511], -log probability in nats of each window's tokens after the first
perplexity, error   over the second half of every window: the tool's "Final estimate: PPL = … +/- …"

once with the attention that llama.cpp computes unasked, keys and values in float16, and once with all in float32
(`-fa off -ctk f32 -ctv f32`). A process of its own because llama.cpp aborts where an assertion fails.
"""

import ctypes
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CONTEXT = 512  # tokens of a window: the tool's default, and that of llama_context_default_params


class Params(ctypes.Structure):
    """llama_model_params or llama_context_params, filled and read by libllama and here handed on.

    Longer than either: both go through memory as the last argument, where nobody minds what is behind.
    """

    _fields_ = (("bytes", ctypes.c_uint64 * 128),)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


POINTER, INT, FLAG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
FUNCTIONS = {  # name -> (result, *arguments), from llama.h
    "llama_backend_init": (None,),
    "llama_model_default_params": (Params,),
    "llama_model_load_from_file": (POINTER, ctypes.c_char_p, Params),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_vocab_n_tokens": (INT, POINTER),
    "llama_vocab_get_add_bos": (FLAG, POINTER),
    "llama_vocab_bos": (INT, POINTER),
    "llama_tokenize": (INT, POINTER, ctypes.c_char_p, INT, ctypes.POINTER(INT), INT, FLAG, FLAG),
    "llama_context_default_params": (Params,),
    "llama_init_from_model": (POINTER, POINTER, Params),
    "llama_n_ctx": (ctypes.c_uint32, POINTER),
    "llama_set_n_threads": (None, POINTER, INT, INT),
    "llama_get_memory": (POINTER, POINTER),
    "llama_memory_clear": (None, POINTER, FLAG),
    "llama_batch_init": (Batch, INT, INT, INT),
    "llama_batch_free": (None, Batch),
    "llama_decode": (INT, POINTER, Batch),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), POINTER),
}

# llama_context_params changes with every few releases: field -> (offset in bytes, default, value for float32).
# That the defaults are found there is checked.
FLOAT32 = {"flash_attn_type": (52, -1, 0), "type_k": (104, 1, 0), "type_v": (108, 1, 0)}


def load_library() -> ctypes.CDLL:
    """xllamacpp's extension module, which holds libllama and exports its C functions."""
    (folder,) = importlib.util.find_spec("xllamacpp").submodule_search_locations
    library = ctypes.CDLL(str(next(Path(folder).glob("xllamacpp*.so"))))
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def make_context(llama: ctypes.CDLL, model: int, float32: bool) -> int:
    """A context of 512 tokens for one sequence, computed by one thread."""
    params = llama.llama_context_default_params()
    for name, (offset, default, value) in FLOAT32.items():
        field = ctypes.c_int32.from_buffer(params, offset)
        if field.value != default:
            raise SystemExit(f"{name} is {field.value} at byte {offset}, expected {default}: another llama.cpp")
        if float32:
            field.value = value
    context = llama.llama_init_from_model(model, params)
    if not context or llama.llama_n_ctx(context) != CONTEXT:
        raise SystemExit(f"no context of {CONTEXT} tokens")
    llama.llama_set_n_threads(context, 1, 1)
    return context


def tokenize(llama: ctypes.CDLL, vocab: int, text: bytes) -> list[int]:
    """The ids of a text, BOS added, as common_tokenize(text, true) makes them."""
    room = (INT * (len(text) + 2))()
    count = llama.llama_tokenize(vocab, text, len(text), room, len(room), True, False)
    return room[:count]


def windows(llama: ctypes.CDLL, vocab: int, ids: list[int]) -> Iterator[list[int]]:
    """The tool's chunks."""
    for start in range(0, len(ids) - CONTEXT + 1, CONTEXT):
        window = ids[start : start + CONTEXT]
        if llama.llama_vocab_get_add_bos(vocab):
            window[0] = llama.llama_vocab_bos(vocab)
        yield window


def window_losses(llama: ctypes.CDLL, context: int, window: list[int], vocabulary: int) -> list[float]:
    """-log softmax of the logits at each position, at the token behind it."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for position, token in enumerate(window):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = 1
    if failed := llama.llama_decode(context, batch):
        raise SystemExit(f"llama_decode returns {failed}")
    llama.llama_batch_free(batch)
    shape = (len(window), vocabulary)
    logits = np.ctypeslib.as_array(llama.llama_get_logits(context), shape)[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), window[1:]]).tolist()


def final_estimate(losses: np.ndarray) -> tuple[float, float]:
    """The tool's perplexity and its standard error."""
    perplexity = math.exp(losses.mean())
    return perplexity, perplexity * math.sqrt((np.square(losses).mean() - losses.mean() ** 2) / (losses.size - 1))


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    model_file, text_file, out_file = sys.argv[1:]
    llama = load_library()
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_file.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"{model_file} does not load")
    vocab = llama.llama_model_get_vocab(model)
    vocabulary = llama.llama_vocab_n_tokens(vocab)
    # The tool's --file drops one newline at the end.
    ids = tokenize(llama, vocab, Path(text_file).read_bytes().removesuffix(b"\n"))
    found: dict[str, object] = {"ids": ids}
    for name in ("default", "float32"):
        context = make_context(llama, model, float32=name == "float32")
        losses = [window_losses(llama, context, one, vocabulary) for one in windows(llama, vocab, ids)]
        # The logits at 256 and after it: they predict from the token at 257 on, 255 of a window.
        perplexity, error = final_estimate(np.array(losses)[:, CONTEXT // 2 :])
        found[name] = {"losses": losses, "perplexity": perplexity, "error": error}
    Path(out_file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
