"""quantkit and its peers side by side: wall time, CPU time, peak memory, perplexity and KL divergence.

    make bench                                              # the embedded model and 160M random weights
    python benchmarks/gptq_vs_peers.py --model DIR --text FILE --json results.json

Every tool quantizes to 4 bits, group size 128, symmetric, from the same calibration ids, one after
the other, each in a process of its own that has quantized a tiny model first: libraries are loaded and
just-in-time kernels built before the clock starts. `wall` and `CPU` then run from opening the checkpoint
to the finished files (for quantkit with planning, hashing, tokenizing and reading back). `peak` is the
resident memory of the whole process, `above libraries` what of it came after the clock's start.
Perplexity and KL divergence are measured by `quantkit.lockstep` in float32 on the files that each tool
wrote. Columns of ratios: the tool over quantkit.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quantkit.calibration import build_tokens
from quantkit.checkpoint import open_checkpoint
from quantkit.families.lookup import family_of
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.lockstep import compare
from quantkit.recipe import Calibration
from quantkit.skeleton import Skeleton
from quantkit.versions import versions
from quantkit.vocab.load import load_tokenizer

ROOT = Path(__file__).parent.parent
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OWN_SCRIPT = ROOT / "benchmarks" / "quantize_own.py"
PEER_SCRIPT = ROOT / "tests" / "peers" / "quantize_peer.py"
TINY_LLAMA = ROOT / "examples" / "tiny-llama"
WINDOW = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY_LLAMA)
    parser.add_argument("--text", type=Path, help="evaluation text; without it only costs are measured")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--calibration", default="default", help="as quantkit's --calibration")
    parser.add_argument("--tokens", type=int, default=20_480, help="evaluation tokens at the most")
    parser.add_argument("--peers", nargs="*", default=["gptqmodel", "autoround-plain-rtn"])
    parser.add_argument("--rounds", type=int, default=1, help="times each tool runs; the median is shown")
    parser.add_argument("--json", type=Path, help="append the result to this file, a line per run")
    args = parser.parse_args()
    args.model = args.model.resolve()
    if args.peers and not PEER_PYTHON.exists():
        sys.exit("the peers are not installed: make peers")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(as_table(result))
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run every tool and evaluate what it wrote."""
    checkpoint = open_checkpoint(str(args.model))
    calibration = Calibration(text=(args.calibration,), samples=args.samples, sequence_length=args.sequence_length)
    tokens = build_tokens(calibration, load_tokenizer(args.model), int(checkpoint.config["vocab_size"]))
    ids = work / "ids.json"
    ids.write_text(json.dumps(tokens.ids.tolist()))
    rows: dict[str, list[dict[str, Any]]] = {}
    for round_number in range(args.rounds):
        for tool in ("quantkit", *args.peers):
            out = work / tool
            print(f"round {round_number + 1}/{args.rounds}: {tool}", file=sys.stderr, flush=True)
            rows.setdefault(tool, []).append(run_tool(tool, command_for(tool, args, ids, out), out))
    result: dict[str, Any] = {
        "model": args.model.resolve().name,
        "calibration": {"samples": len(tokens.ids), "sequence_length": tokens.ids.shape[1], "sha256": tokens.sha256},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": versions(),
        "rounds": args.rounds,
        "tools": {tool: median_row(found) for tool, found in rows.items()},
    }
    if args.text:
        quality = evaluate(args, checkpoint, [work / tool for tool in rows])
        result["baseline"] = asdict(quality[0])
        for tool, row in zip(rows, quality[1:], strict=True):
            result["tools"][tool] |= asdict(row)
    return result


def command_for(tool: str, args: argparse.Namespace, ids: Path, out: Path) -> list[str]:
    if tool == "quantkit":
        numbers = [str(args.samples), str(args.sequence_length), args.calibration]
        return [sys.executable, str(OWN_SCRIPT), str(args.model), str(out), *numbers]
    return [str(PEER_PYTHON), str(PEER_SCRIPT), tool, str(args.model), str(ids), str(out), "--warm-up"]


def run_tool(tool: str, command: list[str], out: Path) -> dict[str, Any]:
    """One tool in a process of its own, in the folder of its output: peers leave logs where they run."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)
    if done.returncode:
        sys.exit(f"{tool} failed:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "version": said["version"],
        "wall_s": said["total_wall_s"],
        "cpu_s": said["cpu_s"],
        "peak_bytes": said["peak_rss_bytes"],
        "above_bytes": said["peak_rss_bytes"] - said["base_rss_bytes"],
        "warm": said["warm"],
        "file_bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
    }


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median wall time."""
    return sorted(rows, key=lambda row: row["wall_s"])[len(rows) // 2]


def evaluate(args: argparse.Namespace, checkpoint: Any, outs: list[Path]) -> list[Any]:
    """Perplexity and KL divergence of the baseline and of what each tool wrote, in float32."""
    tokenizer = load_tokenizer(args.model)
    ids = tokenizer(args.text.read_text("utf-8"), add_special_tokens=False)["input_ids"][: args.tokens]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    skeleton = Skeleton(family_of(checkpoint.config), checkpoint.config, torch.float32)
    sources = [checkpoint.source]
    for out in outs:
        artifact = open_checkpoint(str(out))
        sources.append(DequantizedSource(artifact.source, dict(artifact.config["quantization_config"])))
    return compare(skeleton, sources, windows)


def as_table(result: dict[str, Any]) -> str:
    """Markdown: a row per tool, ratios to quantkit."""
    own, used, machine = result["tools"]["quantkit"], result["calibration"], result["machine"]
    columns = ("tool", "wall", "", "CPU", "", "peak", "", "above libraries", "", "perplexity", "KL divergence")
    lines = [
        f"{result['model']}: {used['samples']} x {used['sequence_length']} calibration tokens, 4 bits, group 128; "
        f"{machine['cores']} cores of {machine['cpu']}; median of {result['rounds']}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    if "baseline" in result:
        lines.append(f"| unquantized | | | | | | | | | {result['baseline']['perplexity']:.4f} | |")
    for tool, row in result["tools"].items():
        cells = [f"{tool} {row['version']}"]
        for key in ("wall_s", "cpu_s"):
            cells += [f"{row[key]:.1f} s", f"{row[key] / own[key]:.1f}"]
        for key in ("peak_bytes", "above_bytes"):
            cells += [f"{row[key] / 1e6:.0f} MB", f"{row[key] / own[key]:.1f}"]
        cells += [f"{row['perplexity']:.4f}" if "perplexity" in row else ""]
        cells += [f"{row['kl_mean']:.3e} ± {row['kl_error']:.0e}" if "kl_mean" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_name() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
