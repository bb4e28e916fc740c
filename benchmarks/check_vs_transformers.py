"""`quantkit check` of three artifacts beside evaluating the same with full transformers models, one after the other.

    python benchmarks/check_vs_transformers.py                       # the embedded model
    python benchmarks/check_vs_transformers.py --model DIR --tokens 20000

Both sides read the same windows in the same dtype and the same batches. quantkit's side is one lockstep
pass over the baseline and three GPTQ artifacts: perplexity, KL divergence and agreement of each, and the damage to
every linear. The other sides load whole models:

    16-bit, perplexity      the baseline, then each artifact as an ordinary 16-bit checkpoint: perplexity alone
    16-bit, divergence      each artifact beside the baseline: perplexity, KL divergence and top-1 agreement
    gptqmodel, perplexity   each artifact through transformers + optimum + gptqmodel, its plain torch kernel, in float16

Libraries are loaded before the clocks start. Figures are seconds per 100,000 tokens and the peak of the process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent.parent
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OWN = ROOT / "benchmarks" / "check_own.py"
EVALUATE = ROOT / "benchmarks" / "full_models.py"
RECIPES = {"int8": {"bits": 8}, "int4": {"bits": 4}, "int4-g32": {"bits": 4, "group_size": 32}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny-llama")
    parser.add_argument("--text", default=str(ROOT / "examples" / "tiny-llama" / "sample.txt"))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=40_000, help="at the most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the result to this file")
    args = parser.parse_args()
    args.model = args.model.resolve()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(as_table(result))
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make the artifacts, then time every side in processes of its own."""
    from quantkit.versions import versions

    artifacts = [make(args.model, work / name, fields) for name, fields in RECIPES.items()]
    plain = [dequantize(args.model, folder, work / f"{folder.name}-16bit") for folder in artifacts]
    windows = work / "windows.json"
    settings = json.dumps({"text": args.text, "context": args.context, "tokens": args.tokens, "windows": str(windows)})
    other = [sys.executable, str(EVALUATE), "bfloat16"]
    models = [str(windows), str(args.model), *map(str, plain)]
    sides = {
        "quantkit check": [sys.executable, str(OWN), settings, str(args.model), *map(str, artifacts)],
        "16-bit, perplexity": [*other, "perplexity", *models],
        "16-bit, divergence": [*other, "divergence", *models],
    }
    if PEER_PYTHON.exists():
        gptq = [str(windows), str(args.model), *map(str, artifacts)]
        sides["gptqmodel, perplexity"] = [str(PEER_PYTHON), str(EVALUATE), "gptq", "perplexity", *gptq]
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        for name, command in sides.items():
            print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            rows.setdefault(name, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
    middle = {name: sorted(found, key=lambda row: row["seconds"])[len(found) // 2] for name, found in rows.items()}
    return {
        "benchmark": "check",
        "model": args.model.name,
        "versions": versions(),
        "rounds": args.rounds,
        "sides": middle,
    }


def make(model: Path, out: Path, fields: dict[str, int]) -> Path:
    """A GPTQ artifact; how well it was calibrated does not matter here."""
    from quantkit.pipeline.gptq import run
    from quantkit.pipeline.job import prepare
    from quantkit.recipe import make_recipe

    recipe = make_recipe({**fields, "method": "rtn", "dtype": "float16"})
    run(prepare(str(model), recipe, output=out, device="cpu"))
    return out


def dequantize(model: Path, artifact: Path, out: Path) -> Path:
    """The artifact as an ordinary 16-bit checkpoint."""
    import torch
    from safetensors.torch import save_file

    from quantkit.formats.gptq_source import DequantizedSource
    from quantkit.weights.source import open_folder

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"))
    opened = open_folder(artifact)
    source = DequantizedSource(opened.source, dict(opened.config["quantization_config"]))
    tensors = {name: source.read(name).to(torch.bfloat16) for name in source.infos}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def as_table(result: dict[str, Any]) -> str:
    """Markdown: a row per side, ratios to quantkit."""
    sides = result["sides"]
    own = sides["quantkit check"]
    lines = [
        f"{result['model']}: baseline and three artifacts, {own['tokens']} tokens; median of {result['rounds']}",
        "",
        "| | seconds per 100k tokens | | peak | perplexities |",
        "|---|---|---|---|---|",
    ]
    for name, row in sides.items():
        found = ", ".join(f"{value:.3f}" for value in row["perplexities"])
        rate = row["seconds"] / row["tokens"] * 1e5
        ratio = row["seconds"] / own["seconds"]
        lines.append(f"| {name} | {rate:.1f} | {ratio:.1f} | {row['peak_bytes'] / 1e6:.0f} MB | {found} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
