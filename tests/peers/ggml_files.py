"""What ggml's own reader makes of GGUF files, and what its writer makes of what was read.

Run by the python of `make peers` (.venv-peers-llama-cpp), never imported:

    .venv-peers-llama-cpp/bin/python tests/peers/ggml_files.py FOLDER

Of each NAME.gguf in FOLDER whose header ggml takes (`no_alloc`, as llama.cpp loads a model) it writes NAME.header, the
header as gguf_write_to_file writes it from what was read; NAME.whole is there when it takes the data, too.
In child processes because ggml aborts where an assertion fails; the next one goes on behind that file.
"""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path


class Params(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def load_library() -> ctypes.CDLL:
    (folder,) = importlib.util.find_spec("xllamacpp").submodule_search_locations
    library = ctypes.CDLL(str(next(Path(folder).glob("xllamacpp*.so"))))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = (ctypes.c_char_p, Params)
    library.gguf_write_to_file.restype = ctypes.c_bool
    library.gguf_write_to_file.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool)
    return library


def ask(library: ctypes.CDLL, path: Path) -> None:
    path.with_suffix(".asked").touch()
    raw = os.fsencode(path)
    header = library.gguf_init_from_file(raw, Params(True, ctypes.pointer(ctypes.c_void_p())))
    if header:
        library.gguf_write_to_file(header, os.fsencode(path.with_suffix(".header")), True)
    if header and library.gguf_init_from_file(raw, Params(False, ctypes.pointer(ctypes.c_void_p()))):
        path.with_suffix(".whole").touch()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
    library = load_library()
    while files := [path for path in Path(sys.argv[1]).glob("*.gguf") if not path.with_suffix(".asked").exists()]:
        child = os.fork()
        if not child:
            for path in files:
                ask(library, path)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
