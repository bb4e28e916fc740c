"""quantkit's side of check_vs_transformers.py: one measured lockstep pass, in a process of its own.

    python benchmarks/check_own.py SETTINGS MODEL ARTIFACT...

Writes the windows for the other sides to read, and prints one line of JSON.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from quantkit.memory import peak_resident_bytes
from quantkit.pipeline import check
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.quality.windows import Windows


def main() -> None:
    settings, model, artifacts = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
    options = CheckOptions(
        text=(settings["text"],), context=settings["context"], dtype="bfloat16", device="cpu", gated=False
    )
    job = prepare(artifacts, model, options)
    windows = whole(job.windows, settings["tokens"])
    job = replace(job, windows=windows)
    Path(settings["windows"]).write_text(json.dumps(windows.ids.tolist()), encoding="utf-8")
    check.run(replace(job, windows=whole(windows, 1)), write=False)  # compiled kernels and thread pools, as the others
    started = time.perf_counter()
    record = check.run(job, write=False)
    seconds = time.perf_counter() - started
    sets = [record["baseline"], *record["artifacts"]]
    figures = [entry["metrics"]["all"]["perplexity"] for entry in sets]
    row = {"seconds": seconds, "tokens": windows.tokens, "peak_bytes": peak_resident_bytes(), "perplexities": figures}
    print(json.dumps(row))


def whole(windows: Windows, tokens: int) -> Windows:
    """Full windows alone, scored from their second token on, and no more than so many tokens."""
    full = windows.ids[windows.scored[:, -1]]
    ids = full[: max(1, tokens // full.shape[1])]
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    return Windows(ids, scored, torch.zeros(len(ids), dtype=torch.int64), windows.rule)


if __name__ == "__main__":
    main()
