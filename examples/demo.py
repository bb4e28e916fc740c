"""The demo: quantize the embedded model with GPTQ and by rounding, and measure what each lost.

    python examples/demo.py [--out FOLDER]

The text is `sample.txt`, drawn from the model itself: on it the expected rise of the log-perplexity is
the KL divergence, so both columns can be trusted.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see quantkit.cli.main

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from quantkit.families.lookup import family_of
from quantkit.formats.gptq_source import DequantizedSource
from quantkit.lockstep import compare
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.progress import Shown
from quantkit.recipe import Calibration, Recipe
from quantkit.skeleton import Skeleton
from quantkit.units import format_bytes
from quantkit.vocab.load import load_tokenizer
from quantkit.weights.source import open_folder

MODEL = Path(__file__).parent / "tiny-llama"
WINDOW = 256  # tokens of a document of sample.txt
CALIBRATION = Calibration(samples=32, sequence_length=512)
RECIPES = {
    "GPTQ 4 bit": Recipe(calibration=CALIBRATION),
    "RTN 4 bit": Recipe(method="rtn"),
    "GPTQ 3 bit": Recipe(bits=3, calibration=CALIBRATION),
    "GPTQ 8 bit": Recipe(bits=8, calibration=CALIBRATION),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"))
    out = parser.parse_args().out
    folders = {}
    for name, recipe in RECIPES.items():
        with Shown() as progress:
            progress.say(f"--- {name}")
            job = prepare(str(MODEL), recipe, output=out / f"tiny-llama-{name.replace(' ', '-')}")
            folders[name] = run(job, progress).output
    print_losses(folders)


def print_losses(folders: dict[str, Path]) -> None:
    """Perplexity and KL divergence of each artifact against the model it was made from."""
    base = open_folder(MODEL)
    sources = [base.source]
    for folder in folders.values():
        artifact = open_folder(folder)
        sources.append(DequantizedSource(artifact.source, dict(artifact.config["quantization_config"])))
    skeleton = Skeleton(family_of(base.config), base.config, torch.float32)
    results = compare(skeleton, sources, sample_windows())
    table = Table(
        title="What was made, and what was lost on text drawn from the model itself",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in ("", "size", "perplexity", "change", "KL divergence", "top-1 agreement"):
        table.add_column(column, justify="left" if not column else "right")
    for name, result in zip(("unquantized", *folders), results, strict=True):
        folder = folders.get(name, MODEL)
        rise = result.perplexity / results[0].perplexity - 1
        table.add_row(
            name,
            format_bytes((folder / "model.safetensors").stat().st_size),
            f"{result.perplexity:.3f}",
            f"{rise:+.1%}" if name in folders else "",
            f"{result.kl_mean:.4f}" if name in folders else "",
            f"{result.top1_agreement:.1%}" if name in folders else "",
        )
    Console().print(table)
    for name, folder in folders.items():
        print(f"{name}: {folder}")


def sample_windows() -> torch.Tensor:
    """[documents, WINDOW] token ids of sample.txt."""
    text = (MODEL / "sample.txt").read_text("utf-8")
    ids = load_tokenizer(MODEL)(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


if __name__ == "__main__":
    main()
