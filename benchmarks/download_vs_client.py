"""`quantkit download` beside huggingface_hub's own snapshot_download, over HTTP from a server on this machine.

    python benchmarks/download_vs_client.py                    # 4 files of 256 MB, three rounds
    python benchmarks/download_vs_client.py --files 2 --megabytes 64 --rounds 1

Both fetch the same repository into an empty cache, each in a process of its own, in turn. quantkit hashes every byte;
the client compares sizes. Then both are killed in the middle and begun again: what crosses the network in all is the
second figure. The server is the tests' own, written in Python, and takes one of the cores: the seconds say whether
hashing costs speed, not how fast either could be.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

REPO = "some/model"
CLIENT = "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1])"
SIDES = {
    "quantkit": [sys.executable, "-m", "quantkit.cli", "download", REPO],
    "huggingface_hub": [sys.executable, "-c", CLIENT, REPO],
}
KILLED_AT = 0.5  # of all bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=256, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the result to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(as_table(result))
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every side in turn, as often as asked for."""
    from loopback.hub import Hub

    from quantkit.versions import versions

    hub = Hub(work / "hub")
    hub.start()
    try:
        names = [f"model-{number + 1:05}-of-{args.files:05}.safetensors" for number in range(args.files)]
        index = json.dumps({"weight_map": {name: name for name in names}}).encode()
        files = {name: os.urandom(args.megabytes * 10**6) for name in names}
        hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors.index.json": index, **files})
        size = sum(map(len, files.values()))
        rounds = [
            {side: once(hub, command, work / f"{side}-{number}", size) for side, command in SIDES.items()}
            for number in range(args.rounds)
        ]
    finally:
        hub.stop()
    return {"benchmark": "download", "bytes": size, "files": args.files, "versions": versions(), "rounds": rounds}


def once(hub: Any, command: list[str], home: Path, size: int) -> dict[str, float]:
    """Seconds of a whole download, and what crosses the network for one that was killed."""
    begun, used = time.perf_counter(), os.times()
    subprocess.run(command, env=os.environ | hub.environment(home), check=True, capture_output=True)
    seconds, spent = time.perf_counter() - begun, os.times()
    hub.log.clear()
    killed = subprocess.Popen(
        command, env=os.environ | hub.environment(home.with_name(f"{home.name}-killed")), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while here(home.with_name(f"{home.name}-killed")) < KILLED_AT * size and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = os.environ | hub.environment(home.with_name(f"{home.name}-killed"))
    subprocess.run(command, env=again, check=True, capture_output=True)
    cpu = spent.children_user + spent.children_system - used.children_user - used.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, "sent_after_a_kill": hub.sent() / size}


def here(home: Path) -> int:
    """Bytes of a cache so far."""
    return sum(path.stat().st_size for path in home.rglob("blobs/*") if path.is_file())


def as_table(result: dict[str, Any]) -> str:
    """Medians, and the client over quantkit."""
    rows = [
        "| | seconds | | CPU seconds | | bytes moved for a download that was killed in the middle |",
        "|---|---|---|---|---|---|",
    ]
    figures = {
        side: {key: statistics.median(one[side][key] for one in result["rounds"]) for key in result["rounds"][0][side]}
        for side in SIDES
    }
    own = figures["quantkit"]
    for side, found in figures.items():
        cells = [f"{found[key]:.1f} | {found[key] / own[key]:.1f}" for key in ("seconds", "cpu_seconds")]
        rows.append(f"| {side} | {' | '.join(cells)} | {found['sent_after_a_kill']:.2f} of its size |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
