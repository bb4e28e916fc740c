"""Quantizes a checkpoint with a peer to a 4-bit GPTQ folder and prints what that cost as one line of JSON.

Run by the python of `make peers` (.venv-peers), never imported:

    .venv-peers/bin/python tests/peers/quantize_peer.py gptqmodel MODEL_DIR IDS.json OUT_DIR --warm-up

IDS.json is a list of lists of token ids: the calibration samples. MODEL_DIR needs its tokenizer files.
The peers log to stdout and stderr; the JSON is the last line of stdout.

wall_s, cpu_s       the peer's quantize call alone, all threads of this process (auto-round saves within that call)
total_wall_s        load + quantize + save; the peer's imports too, unless --warm-up did them before
peak_rss_bytes      highest resident memory of this process from load to save
base_rss_bytes      resident memory before, with all libraries loaded
warm                no kernel was compiled meanwhile: gptqmodel builds one (about 40 s) at its first use by a user.
                    --warm-up sees to it by quantizing a tiny random Llama first, outside all figures
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# Read by the peers and torch while they are imported, so they are set before that.
os.environ.update(
    GPTQMODEL_CPU_WORKERS="2",  # gptqmodel refuses to start its pools on two cores otherwise
    TORCH_COMPILE_DISABLE="1",
    HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="",
)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja builds the kernel
sys.dont_write_bytecode = False  # compiling the peers' sources costs about 10 s at every start

BITS, GROUP_SIZE = 4, 128
Samples = list[list[int]]


def quantize_gptqmodel(model_dir: Path, ids: Samples, out_dir: Path) -> dict[str, float]:
    """GPTQ with GPTQModel's defaults: symmetric, damp 0.05, act_group_aware order, bf16 weights."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=BITS, group_size=GROUP_SIZE, device="cpu", offload_to_disk=False)
    model = GPTQModel.load(str(model_dir), config, backend=BACKEND.TORCH)
    samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    cost = timed(lambda: model.quantize(samples, batch_size=1))
    model.save(str(out_dir))
    return cost


def quantize_autoround(model_dir: Path, ids: Samples, out_dir: Path, **options: object) -> dict[str, float]:
    """AutoRound, symmetric, exported as GPTQ; the options choose between rounding to nearest and tuned rounding."""
    import torch
    from auto_round import AutoRound

    lengths = {len(row) for row in ids}
    if len(lengths) > 1:  # it would drop the shorter samples without a word
        raise SystemExit(f"auto-round takes samples of one length, these have {sorted(lengths)}")
    peer = AutoRound(
        str(model_dir),
        bits=BITS,
        group_size=GROUP_SIZE,
        sym=True,
        dataset=[torch.tensor([row]) for row in ids],
        nsamples=len(ids),
        seqlen=lengths.pop(),
        batch_size=1,
        device_map="cpu",
        **options,
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as parent:  # it makes a folder of its own naming in the one given
        cost = timed(lambda: peer.quantize_and_save(parent, format="auto_gptq"))
        for file in Path(parent).glob("*/*"):
            file.replace(out_dir / file.name)
    return cost


# name -> (distribution, run): what `peer` accepts
PEERS: dict[str, tuple[str, Callable[[Path, Samples, Path], dict[str, float]]]] = {
    "gptqmodel": ("gptqmodel", quantize_gptqmodel),
    # Scales searched with the activations' importance, codes rounded to nearest.
    "autoround-rtn": ("auto-round", lambda *a: quantize_autoround(*a, iters=0)),
    # Nothing searched, the calibration samples unused.
    "autoround-plain-rtn": ("auto-round", lambda *a: quantize_autoround(*a, iters=0, disable_opt_rtn=True)),
    # Rounding and clipping tuned by signed gradients, 200 steps a layer; without the torch.compile it would use.
    "autoround": ("auto-round", lambda *a: quantize_autoround(*a, iters=200)),
}


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of wall clock and of all threads' processor time that the call took."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def compiled_kernels() -> set[Path]:
    """The kernels that gptqmodel has compiled for this user so far."""
    root = os.environ.get("GPTQMODEL_TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "gptqmodel" / "torch_extensions")
    return set(Path(root).rglob("*.so"))


def write_tiny_llama(folder: Path) -> None:
    """One random decoder layer and a tokenizer of 512 words: enough to make a peer compile and import all it needs."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(512)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        unk_token="w0",
        eos_token="w1",
        pad_token="w2",
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def warm_up(run: Callable[[Path, Samples, Path], object]) -> None:
    """Runs the peer once on a tiny model, then restarts the count of the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_llama(Path(folder, "tiny"))
        run(
            Path(folder, "tiny"),
            [[(7 * i + j) % 509 + 3 for j in range(64)] for i in range(8)],
            Path(folder, "out"),
        )
    Path("/proc/self/clear_refs").write_text("5")


def rss_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak): unlike getrusage's figure it does not count the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is read on Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("ids", type=Path, help="JSON: list of lists of token ids")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--warm-up", action="store_true", help="quantize a tiny model first, outside the measurement")
    args = parser.parse_args()
    distribution, run = PEERS[args.peer]
    if args.warm_up:
        warm_up(run)
    ids = json.loads(args.ids.read_text())
    kernels, base = compiled_kernels(), rss_bytes("VmRSS")
    start = time.perf_counter()
    cost = run(args.model_dir, ids, args.out_dir)
    cost["total_wall_s"] = time.perf_counter() - start
    result = {"peer": args.peer, "version": version(distribution)} | {k: round(v, 3) for k, v in cost.items()}
    result |= {"peak_rss_bytes": rss_bytes("VmHWM"), "base_rss_bytes": base, "warm": compiled_kernels() == kernels}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
