"""The child process that tokenizes with llama.cpp; started by gguf_verify.py, or by any Python that has xllamacpp.

    python gguf_child.py FILE.gguf < request.json > answer.json

request.json is {"plain": [text, …], "framed": [text, …]}, answer.json {"plain": [[id, …], …], "framed": [[id, …], …],
"pieces": [bytes, …]}: the ids of the plain texts, those of the framed ones with what the tokenizer puts around a text,
and the bytes, in hexadecimal, that the plain ids stand for. Special tokens inside of a text are recognized. A process
of its own because llama.cpp aborts where an assertion fails.
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path


class Params(ctypes.Structure):
    """llama_model_params, filled by libllama and handed on unread; longer than any version of it."""

    _fields_ = (("bytes", ctypes.c_uint64 * 128),)


POINTER, INT, FLAG, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
FUNCTIONS = {  # name -> (result, *arguments), from llama.h
    "llama_backend_init": (None,),
    "llama_model_default_params": (Params,),
    "llama_model_load_from_file": (POINTER, TEXT, Params),
    "llama_model_get_vocab": (POINTER, POINTER),
    "llama_tokenize": (INT, POINTER, TEXT, INT, ctypes.POINTER(INT), INT, FLAG, FLAG),
    "llama_token_to_piece": (INT, POINTER, INT, TEXT, INT, INT, FLAG),
}
LONGEST_PIECE = 2**16  # bytes
UNABLE = 4  # exit code: there is no llama.cpp to be asked


def main() -> None:
    """Answer for one file."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    request = json.load(sys.stdin)
    llama = load_library()
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(sys.argv[1].encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp does not load the vocabulary")
    vocab = llama.llama_model_get_vocab(model)
    plain = [tokenize(llama, vocab, text, add_special=False) for text in request["plain"]]
    framed = [tokenize(llama, vocab, text, add_special=True) for text in request["framed"]]
    buffer = ctypes.create_string_buffer(LONGEST_PIECE)
    pieces = [b"".join(piece(llama, vocab, token, buffer) for token in ids).hex() for ids in plain]
    json.dump({"plain": plain, "framed": framed, "pieces": pieces}, sys.stdout)


def load_library() -> ctypes.CDLL:
    """The extension module of xllamacpp, which holds libllama and exports its C functions."""
    found = importlib.util.find_spec("xllamacpp")
    folders = (found.submodule_search_locations if found else None) or ()
    library = next((path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))), None)
    if library is None:
        sys.exit(unable("xllamacpp is not installed"))
    try:
        llama = ctypes.CDLL(str(library))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(llama, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # for another system, or of another time
        sys.exit(unable(error))
    return llama


def unable(reason: object) -> int:
    """Say why llama.cpp cannot be asked; the exit code for it."""
    print(reason, file=sys.stderr)
    return UNABLE


def tokenize(llama: ctypes.CDLL, vocab: int, text: str, add_special: bool) -> list[int]:
    """The ids of a text."""
    raw = text.encode()
    room = (INT * (len(raw) + 8))()
    count = llama.llama_tokenize(vocab, raw, len(raw), room, len(room), add_special, True)
    if count < 0:
        raise SystemExit(f"llama_tokenize returns {count} for {text!r}")
    return room[:count]


def piece(llama: ctypes.CDLL, vocab: int, token: int, buffer: "ctypes.Array[ctypes.c_char]") -> bytes:
    """The bytes that a token stands for, special tokens written out."""
    count = llama.llama_token_to_piece(vocab, token, buffer, LONGEST_PIECE, 0, True)
    if count < 0:
        raise SystemExit(f"token {token} has {-count} bytes")
    return buffer.raw[:count]


if __name__ == "__main__":
    main()
