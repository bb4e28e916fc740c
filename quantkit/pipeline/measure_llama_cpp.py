"""A GGUF file at work in llama.cpp, through the package xllamacpp; measure_child.py runs this.

On the CPU alone: what a GPU holds cannot be asked of it. Nothing of quantkit is imported here either.
"""

import importlib.metadata
import os
import random
import time
from collections.abc import Callable
from typing import Any


def measure(request: dict[str, Any], resident_bytes: Callable[[str], int]) -> dict[str, Any]:
    """Load, write two tokens to warm up, then let llama.cpp time one answer.

    Args:
        request: path, packages, prompt_tokens, new_tokens, vocabulary (how many ids there are).
        resident_bytes: of the process by the name of a field in /proc/self/status.
    """
    os.environ["GGML_NO_BACKTRACE"] = "1"  # where an assertion fails it would start a debugger
    import xllamacpp

    before = resident_bytes("VmRSS")
    started = time.perf_counter()
    server = xllamacpp.Server(_parameters(xllamacpp, request))
    loaded = time.perf_counter() - started
    ids = [random.Random(0).randrange(request["vocabulary"]) for _ in range(request["prompt_tokens"])]
    _answer(server, ids, 2)
    timings = _answer(server, ids, request["new_tokens"])
    if (timings["prompt_n"], timings["predicted_n"]) != (len(ids), request["new_tokens"]):
        raise ValueError(f"llama.cpp read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
    return {
        "packages": {name: importlib.metadata.version(name) for name in request["packages"]},
        "device": "cpu",
        "dtype": "as stored",
        "kernels": [],
        "peak_bytes": resident_bytes("VmHWM"),
        "before_bytes": before,
        "load_seconds": round(loaded, 2),
        "prompt_tokens": timings["prompt_n"],
        "prompt_tokens_per_second": round(timings["prompt_per_second"], 2),
        "new_tokens": timings["predicted_n"],
        "generation_tokens_per_second": round(timings["predicted_per_second"], 2),
    }


def _parameters(xllamacpp: Any, request: dict[str, Any]) -> Any:  # noqa: ANN401
    """One sequence of the asked length, and nothing kept beside it."""
    found = xllamacpp.CommonParams()
    found.model.path = request["path"]
    found.n_ctx = request["prompt_tokens"] + request["new_tokens"]
    found.n_parallel = 1
    found.n_gpu_layers = 0
    found.fit_params = found.warmup = False
    found.cache_ram_mib = found.n_ctx_checkpoints = 0
    found.port, found.hostnames = 0, ["127.0.0.1"]  # it listens, though nobody asks
    found.verbosity = 1  # errors
    return found


def _answer(server: Any, ids: list[int], new: int) -> dict[str, Any]:  # noqa: ANN401
    """llama.cpp's own timings of a prompt and as many tokens as asked for."""
    asked = {"prompt": ids, "n_predict": new, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    timings: dict[str, Any] = server.handle_completions(asked)["timings"]
    return timings
