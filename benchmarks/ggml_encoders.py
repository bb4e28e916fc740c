"""Our encoders of ggml's types beside ggml's own: million weights per second of CPU time, on one core.

    python benchmarks/ggml_encoders.py
    python benchmarks/ggml_encoders.py --types Q4_K Q6_K --rounds 20

The two take turns on the same weights (normal, and with the importance of columns), ggml as the xllamacpp wheel has it
in a process of its own. A figure is the fastest of the rounds; the ratio is ours over ggml's. The bytes of both are
compared. At the end: seconds of CPU time that compiling our encoders took, where nothing was kept of an earlier time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PEER_PYTHON = ROOT / ".venv-peers-llama-cpp" / "bin" / "python"
GGML = ROOT / "tests" / "peers" / "ggml_quantize.py"
TYPES = [
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
]
BLIND = ("F16", "BF16", "Q8_0")  # the importance changes nothing
ROW = "{:8} {:>9} {:>9} {:>7}   {:>9} {:>9} {:>7}"
COMPILE = """
import sys, time
from quantkit.formats.ggml.encode import warm
start = time.process_time()
warm(sys.argv[1:], importance=False)
warm(sys.argv[1:], importance=True)
print(time.process_time() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))
        for types in (("Q8_0",), ("Q4_K",), ("Q4_K", "Q6_K"), TYPES):
            seconds = compiling(types, folder)
            print(f"compiling {', '.join(types) if types != TYPES else 'all of these'}: {seconds:.1f} s")


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Print the table, a line as soon as it is known."""
    generator = np.random.default_rng(0)
    values = (generator.standard_normal((args.rows, args.columns)) * 0.02).astype(np.float32)
    importance = generator.gamma(0.5, size=args.columns).astype(np.float32)
    np.save(folder / "values.npy", values)
    np.save(folder / "importance.npy", importance)
    print(ROW.format("", "plain", "", "", "importance", "", ""))
    print(ROW.format("M/s", "quantkit", "ggml", "ratio", "quantkit", "ggml", "ratio"))
    with subprocess.Popen([PEER_PYTHON, GGML], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        for name in args.types:
            cells: list[str] = []
            for given in (None, importance) if name not in BLIND else (None,):
                ours, theirs = duel(peer, name, values, given, folder, args.rounds)
                cells += [
                    f"{values.size / ours / 1e6:.1f}",
                    f"{values.size / theirs / 1e6:.1f}",
                    f"{theirs / ours:.1f}",
                ]
            print(ROW.format(name, *cells, *[""] * (6 - len(cells))), flush=True)


def duel(peer: Any, name: str, values: Any, importance: Any, folder: Path, rounds: int) -> tuple[float, float]:
    """CPU seconds of ours and of ggml's, each the least of its rounds."""
    from quantkit.formats.ggml.encode import encode
    from quantkit.weights.gguf_types import GGML_TYPES

    kind = GGML_TYPES[name]
    out = np.empty((len(values), kind.row_bytes(values.shape[1])), np.uint8)
    job = {
        "type": kind.number,
        "values": str(folder / "values.npy"),
        "importance": None if importance is None else str(folder / "importance.npy"),
        "row_bytes": out.shape[1],
        "out": str(folder / "out.npy"),
        "rounds": 2,
    }
    encode(name, values, importance, out)
    ours, theirs = [], []
    for _ in range(rounds):
        for _ in range(4):
            start = time.process_time()
            encode(name, values, importance, out)
            ours.append(time.process_time() - start)
        peer.stdin.write(json.dumps(job) + "\n")
        peer.stdin.flush()
        theirs.append(json.loads(peer.stdout.readline())["seconds"])
    if not np.array_equal(out, np.load(folder / "out.npy")):
        print(f"{name}: the bytes differ", file=sys.stderr)
    return min(ours), min(theirs)


def compiling(types: tuple[str, ...], folder: str) -> float:
    """CPU seconds of a process that begins with an empty cache of compiled code."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, *types],
            env={**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout)


if __name__ == "__main__":
    main()
