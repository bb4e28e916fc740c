"""The Python API in ten lines: the embedded model to 4 bits in out/, as `quantkit gptq` would do it."""

from pathlib import Path

from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.progress import Lines
from quantkit.recipe import Calibration, Recipe

ROOT = Path(__file__).parent.parent

recipe = Recipe(bits=4, group_size=128, calibration=Calibration(samples=32, sequence_length=512))
job = prepare(str(ROOT / "examples/tiny-llama"), recipe, output=ROOT / "out/quantize-example")
print(f"planned: {job.plan.artifact_bytes} bytes, {job.plan.bits_per_weight:.2f} bits per weight")
result = run(job, Lines())
print(f"made {result.output.relative_to(ROOT)}: {sorted(path.name for path in result.output.iterdir())}")
