"""`quantkit gguf` and llama.cpp side by side: wall time, CPU time, peak memory, bytes written; then the bytes compared.

    scripts/make_llamacpp.sh                                              # the peer, once: minutes
    python benchmarks/gguf_vs_llamacpp.py                                 # 1.1B random weights, Q4_K_M and Q8_0
    python benchmarks/gguf_vs_llamacpp.py --model DIR --type Q6_K --rounds 3

llama.cpp takes two steps: convert_hf_to_gguf.py to a 16-bit GGUF file, and llama_model_quantize from that. Its row is
their sum, the larger of their peaks, and both files. Every step is a process of its own, measured by the kernel
(wait4): `peak` is its resident memory, pages of mapped files included, `above` what is beyond a bare Python.
`written` are the bytes that it gave to the file system. The source is read once beforehand, so both find
it in the page cache; the tools take turns; the run with the median wall time is shown. At the end every tensor of the
last two files is compared by name, type, shape and bytes, with llama.cpp's own reader. Ratios: llama.cpp over quantkit.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEER = ROOT / ".venv-peers-llama-quantize"
CONVERTER = PEER / "llama.cpp" / "convert_hf_to_gguf.py"
NUMBERS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
           "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; without it random weights are made")
    parser.add_argument("--shape", default="1.1B", help="of the random weights: a key of random_llama.SHAPES")
    parser.add_argument("--type", nargs="+", default=["Q4_K_M", "Q8_0"], choices=NUMBERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the files; three times the model must fit")
    parser.add_argument("--json", type=Path, help="append the results to this file, a line per type")
    args = parser.parse_args()
    peers = PEER.exists()
    if not peers:
        print("llama.cpp: not run here (scripts/make_llamacpp.sh builds it)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        model = args.model.resolve() if args.model else random_model(work / f"random-{args.shape}", args.shape)
        for path in model.glob("*.safetensors"):
            read_through(path)
        for ftype in args.type:
            result = measure(model, ftype, work, args.rounds, peers)
            print(as_table(result) + "\n")
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


def measure(model: Path, ftype: str, work: Path, rounds: int, peers: bool) -> dict[str, Any]:
    """Both tools in turn; the run of median wall time of each, and what differs between their files."""
    own, theirs = work / "quantkit.gguf", work / "llamacpp.gguf"
    bare = run([sys.executable, "-c", "pass"])["peak_bytes"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        print(f"{ftype}, round {number + 1}/{rounds}", file=sys.stderr, flush=True)
        runs.setdefault("quantkit", []).append(run_own(model, ftype, own))
        if peers:
            runs.setdefault("llama.cpp", []).append(run_llama_cpp(model, ftype, theirs, work))
    tools = {tool: sorted(found, key=lambda row: row["wall_s"])[len(found) // 2] for tool, found in runs.items()}
    for row in tools.values():
        row["above_bytes"] = row["peak_bytes"] - bare
    return {
        "model": model.name,
        "type": ftype,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": versions(),
        "rounds": rounds,
        "tools": tools,
        "compared": compare(own, theirs) if peers else None,
    }


def run_own(model: Path, ftype: str, out: Path) -> dict[str, Any]:
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "quantkit.cli", "gguf", str(model), "--type", ftype, "--out", str(out)]
    return run(command) | {"file_bytes": out.stat().st_size}


def run_llama_cpp(model: Path, ftype: str, out: Path, work: Path) -> dict[str, Any]:
    """The converter in quantkit's environment, which has what it needs, and the quantizer in the peer's."""
    half = work / "bf16.gguf"
    quantizer = [str(PEER / "bin" / "python"), str(ROOT / "benchmarks" / "quantize_llamacpp.py")]
    steps = {
        "convert": run([sys.executable, str(CONVERTER), str(model), "--outtype", "bf16", "--outfile", str(half)]),
        "quantize": run([*quantizer, str(half), str(out), str(NUMBERS[ftype]), str(os.cpu_count())]),
    }
    half.unlink()
    total: dict[str, Any] = {
        key: sum(step[key] for step in steps.values()) for key in ("wall_s", "cpu_s", "written_bytes")
    }
    total["peak_bytes"] = max(step["peak_bytes"] for step in steps.values())
    return total | {"steps": steps, "file_bytes": out.stat().st_size}


def run(command: list[str]) -> dict[str, float]:
    """A process and everything that it started and waited for, measured by the kernel."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "written_bytes": usage.ru_oublock * 512,
    }


def compare(own: Path, theirs: Path) -> dict[str, Any]:
    """Tensors of both files: how many there are, and the names of those that differ, and in what."""
    script = ROOT / "benchmarks" / "gguf_equal.py"
    command = [sys.executable, str(script), str(PEER / "llama.cpp" / "gguf-py"), str(own), str(theirs)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def as_table(result: dict[str, Any]) -> str:
    """Markdown: a row per tool and step; then what the comparison found."""
    machine, tools = result["machine"], result["tools"]
    own = tools["quantkit"]
    lines = [
        f"{result['model']}, {result['type']}; median of {result['rounds']}; {machine['cores']} x {machine['cpu']}",
        "",
        "| tool | wall | | CPU | | peak | above | | written | |",
        "|---|---|---|---|---|---|---|---|---|---|",
        row_of("quantkit", own, own),
    ]
    if "llama.cpp" not in tools:
        return "\n".join([*lines, "| llama.cpp | not run here | | | | | | | | |"])
    lines.append(row_of("llama.cpp", tools["llama.cpp"], own))
    for step, row in tools["llama.cpp"]["steps"].items():
        lines.append(row_of(f"- {step}", row | {"above_bytes": None}, own))
    different = result["compared"]["different"]
    lines += [
        "",
        f"{result['compared']['tensors'] - len(different)} of {result['compared']['tensors']} tensors are equal",
    ]
    lines += [f"- {name}: {what}" for name, what in list(different.items())[:20]]
    return "\n".join(lines)


def row_of(tool: str, row: dict[str, Any], own: dict[str, Any]) -> str:
    def ratio(key: str) -> str:
        return f"{row[key] / own[key]:.1f}" if row[key] is not None and own[key] else ""

    above = "" if row["above_bytes"] is None else f"{row['above_bytes'] / 1e6:.0f} MB"
    cells = [
        tool, f"{row['wall_s']:.1f} s", ratio("wall_s"), f"{row['cpu_s']:.1f} s", ratio("cpu_s"),
        f"{row['peak_bytes'] / 1e6:.0f} MB", above, ratio("above_bytes"),
        f"{row['written_bytes'] / 1e9:.2f} GB", ratio("written_bytes"),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def random_model(folder: Path, shape: str) -> Path:
    """Random weights with a SentencePiece tokenizer trained on the spot: the converter knows no other of our own."""
    folder.mkdir()
    train = (
        "import sys, sentencepiece; sentencepiece.SentencePieceTrainer.train(input=sys.argv[1], minloglevel=2,"
        " model_prefix=sys.argv[2], vocab_size=1000, model_type='bpe', byte_fallback=True,"
        " normalization_rule_name='identity', remove_extra_whitespaces=False, split_digits=True)"
    )
    text = ROOT / "examples" / "tiny-llama" / "sample.txt"
    run([sys.executable, "-c", train, str(text), str(folder / "tokenizer")])
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}', encoding="utf-8")
    script = str(ROOT / "benchmarks" / "random_llama.py")
    with tempfile.TemporaryDirectory() as nothing:
        run([sys.executable, script, str(folder), shape, "--tokenizer-from", nothing])
    return folder


def read_through(path: Path) -> None:
    """Into the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def versions() -> dict[str, str]:
    stamp = PEER / "peers.txt"
    peer = {"llama.cpp": stamp.read_text("utf-8").strip()} if stamp.exists() else {}
    return {"quantkit": metadata.version("quantkit"), "python": platform.python_version()} | peer


def cpu_name() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
