"""The child process in which an artifact runs; started by measure.py with any Python that has the runtime.

    python measure_child.py FD REQUEST

REQUEST is JSON: path, loader, packages, device, prompt_tokens, new_tokens and, for a GGUF file, vocabulary. One JSON
object goes to the file descriptor FD: {"missing": [packages]}, {"error": sentence}, or what was measured. Nothing of
quantkit is imported: the environment of a runtime need not have it.
"""

import importlib.metadata
import importlib.util
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer one request."""
    if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # what libraries import by the names of this file's neighbours is not them
    request = json.loads(sys.argv[2])
    missing = [name for name in request["packages"] if importlib.util.find_spec(name) is None]
    try:
        answer = {"missing": missing} if missing else RUNS.get(request["loader"], measure)(request)
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        answer = {"error": f"{type(error).__name__}: {first}"[:500]}
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as pipe:
        json.dump(answer, pipe)


def measure_gguf(request: dict[str, Any]) -> dict[str, Any]:
    """The same in llama.cpp."""
    beside = runpy.run_path(str(Path(__file__).with_name("measure_llama_cpp.py")))
    return dict(beside["measure"](request, resident_bytes))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, write two tokens to warm up, then generate by the clock."""
    import torch
    import transformers

    wanted = request["device"]
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    before = resident_bytes("VmRSS")
    started = time.perf_counter()
    model, info = LOADERS[request["loader"]](transformers, torch, request["path"], device)
    loaded = time.perf_counter() - started
    if wrong := {kind: sorted(map(str, names)) for kind, names in info.items() if names}:
        raise ValueError(f"transformers loads it with {wrong}")  # it fills what is missing with random numbers
    model.eval()
    model.generation_config.eos_token_id = None  # as many tokens as asked for
    prompt, new = request["prompt_tokens"], request["new_tokens"]
    generate(torch, model, device, prompt, 2)  # kernels are made for the shapes they meet
    times = generate(torch, model, device, prompt, new)
    gpu = device.type == "cuda"
    return {
        "packages": {name: importlib.metadata.version(name) for name in request["packages"]},
        "device": torch.cuda.get_device_name(device) if gpu else device.type,
        "dtype": str(model.dtype).replace("torch.", ""),
        "kernels": sorted({type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}),
        "peak_bytes": torch.cuda.max_memory_reserved(device) if gpu else resident_bytes("VmHWM"),
        "before_bytes": 0 if gpu else before,
        "load_seconds": round(loaded, 2),
        "prompt_tokens": prompt,
        "prompt_tokens_per_second": round(prompt / (times[1] - times[0]), 2),
        "new_tokens": new,
        "generation_tokens_per_second": round((new - 1) / (times[-1] - times[1]), 2),
    }


def load_plain(transformers: Any, torch: Any, folder: str, device: Any) -> Any:  # noqa: ANN401
    """A checkpoint in its own dtype."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    return model.to(device), info


def load_gptq(transformers: Any, torch: Any, folder: str, device: Any) -> Any:  # noqa: ANN401
    """A GPTQ checkpoint through gptqmodel; on a CPU with its plain kernel, since the others compile for minutes."""
    options: dict[str, Any] = {}
    if device.type == "cpu":
        bits = json.loads(Path(folder, "config.json").read_bytes())["quantization_config"]["bits"]
        options["quantization_config"] = transformers.GPTQConfig(bits=bits, backend="gptq_torch")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        device_map={"": str(device)},
        dtype=torch.float16,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )


LOADERS = {"plain": load_plain, "gptq": load_gptq}
RUNS = {"gguf": measure_gguf}  # others go through transformers


class Clock:
    """A streamer that notes when generation begins and when each token is there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: Any) -> None:  # noqa: ANN401
        """The prompt at first, then token by token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to close."""


def generate(torch: Any, model: Any, device: Any, prompt: int, new: int) -> list[float]:  # noqa: ANN401
    """Moments of the beginning and of every new token, for a prompt of random ids."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (1, prompt), generator=generator).to(device)
    clock = Clock()
    with torch.no_grad():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
            streamer=clock,
        )
    return clock.times


def resident_bytes(field: str) -> int:
    """VmRSS, or VmHWM as the largest so far; where there is no /proc the largest in both cases."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        line = next(line for line in lines if line.startswith(field))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
