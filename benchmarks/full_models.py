"""The other sides of check_vs_transformers.py: whole transformers models, one after the other.

    python benchmarks/full_models.py bfloat16|gptq perplexity|divergence WINDOWS.json MODEL...

`perplexity` computes that alone. `divergence` also compares each model with the first one, which stays loaded and runs
beside it. `gptq` is for the python of `make peers`. Prints one line of JSON; nothing of quantkit is imported.
"""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

os.environ.update(GPTQMODEL_CPU_WORKERS="2", TORCH_COMPILE_DISABLE="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch
from transformers import AutoModelForCausalLM, GPTQConfig

BATCH_TOKENS = 2048


def main() -> None:
    kind, figure, windows, models = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    ids = torch.tensor(json.loads(Path(windows).read_text(encoding="utf-8")))
    perplexity(load(kind, models[-1]), ids[:1])  # libraries and kernels, outside of the clock
    started = time.perf_counter()
    if figure == "perplexity":
        found = [perplexity(load(kind, model), ids) for model in models]
    else:
        baseline = load(kind, models[0])
        pairs = [divergence(baseline, load(kind, model), ids) for model in models[1:]]
        found = [pairs[0][0], *(own for _, own, _, _ in pairs)]
    seconds = time.perf_counter() - started
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_bytes": peak, "perplexities": found}))


@torch.inference_mode()
def divergence(
    baseline: torch.nn.Module, model: torch.nn.Module, ids: torch.Tensor
) -> tuple[float, float, float, float]:
    """Perplexity of both, mean KL divergence and top-1 agreement."""
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in ids.split(max(1, BATCH_TOKENS // ids.shape[1])):
        p, q = (torch.log_softmax(one(batch, use_cache=False).logits[:, :-1].float(), -1) for one in (baseline, model))
        target = batch[:, 1:].unsqueeze(-1)
        losses = [-float(x.gather(-1, target).sum()) for x in (p, q)]
        apart = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
        same = (p.argmax(-1) == q.argmax(-1)).sum()
        totals += torch.tensor([*losses, float(apart), float(same)])
    mean = (totals / (ids.shape[0] * (ids.shape[1] - 1))).tolist()
    return math.exp(mean[0]), math.exp(mean[1]), mean[2], mean[3]


def load(kind: str, folder: str) -> torch.nn.Module:
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    quantized = config.get("quantization_config")
    if kind != "gptq":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False).eval()
    if not quantized:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, trust_remote_code=False).eval()
    plain = GPTQConfig(bits=quantized["bits"], backend="gptq_torch")
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float16, quantization_config=plain, trust_remote_code=False
    ).eval()


@torch.inference_mode()
def perplexity(model: torch.nn.Module, ids: torch.Tensor) -> float:
    total = 0.0
    for batch in ids.split(max(1, BATCH_TOKENS // ids.shape[1])):
        logits = model(batch, use_cache=False).logits[:, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (ids.shape[0] * (ids.shape[1] - 1)))


if __name__ == "__main__":
    main()
