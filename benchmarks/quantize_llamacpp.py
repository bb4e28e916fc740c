"""llama.cpp's quantizer on a GGUF file, as its tool llama-quantize calls it: for gguf_vs_llamacpp.py.

.venv-peers-llama-quantize/bin/python benchmarks/quantize_llamacpp.py IN.gguf OUT.gguf FTYPE_NUMBER THREADS
"""

import ctypes
import sys

import llama_cpp


def main() -> None:
    source, target, ftype, threads = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(ftype), int(threads)
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if code:
        sys.exit(f"llama_model_quantize: code {code}")


if __name__ == "__main__":
    main()
