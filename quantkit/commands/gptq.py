"""`quantkit gptq` and `quantkit plan`: options to a recipe, one pipeline call, its result printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.errors import BadInputError, QualityError, UsageError

if TYPE_CHECKING:
    from quantkit.pipeline.job import Job
    from quantkit.pipeline.same_pass import SamePassCheck
    from quantkit.recipe import Recipe
    from quantkit.weights.source import Checkpoint

Source = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or org/name[@revision] on the Hub.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the artifact. [default: ./NAME-GPTQ-IntB]")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A recipe file, or a shipped one by name; options override it.")
]
Method = Annotated[
    str | None, typer.Option("--method", help="gptq, or rtn (round to nearest, no data). [default: gptq]")
]
Bits = Annotated[int | None, typer.Option("--bits", help="2, 3, 4 or 8. [default: 4]")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", help="32, 64, 128, or -1 for one scale per row. [default: 128]")
]
Symmetric = Annotated[
    bool | None, typer.Option("--sym/--asym", help="Grid around zero, or with zero points. [default: sym]")
]
ActOrder = Annotated[
    str | None,
    typer.Option("--act-order", help="none, static (loads everywhere) or full (permuted groups). [default: static]"),
]
Damp = Annotated[
    float | None,
    typer.Option("--damp", help="Fraction of the mean diagonal added to the Hessian. [default: 0.05]"),
]
Scales = Annotated[
    str | None, typer.Option("--scales", help="search (least weighted error) or minmax. [default: search]")
]
Rules = Annotated[
    list[str] | None,
    typer.Option("--rule", help="PATTERN=8bit, PATTERN=4bit,g32 or PATTERN=skip. Repeatable."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", help="Pattern of linears left in 16 bits. Repeatable. [default: lm_head]"),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Runtime that must load it: transformers, vllm, sglang, exllamav2, llama.cpp, gptqmodel. "
        "Repeatable. [default: transformers]",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the tensors left in 16 bits: auto, float16, bfloat16. [default: auto]"),
]
ShardSize = Annotated[str | None, typer.Option("--max-shard-size", help="Largest output file. [default: 5GB]")]
CalibrationText = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        help="Shipped set or mix, text or JSONL file, Hub set (wikitext, c4, ultrachat), each as NAME or "
        "NAME:WEIGHT. Repeatable. [default: default]",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", help="Calibration sequences. [default: 128]")]
SequenceLength = Annotated[int | None, typer.Option("--sequence-length", help="Tokens of each. [default: 2048]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Order of the calibration documents. [default: 0]")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda[:N] or mps.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse linears that cannot be packed instead of leaving them in 16 bits."),
]
Context = Annotated[int, typer.Option("--context", min=1, help="Tokens of the KV cache in the table of machines.")]
ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", help="Also write the importance matrix of the calibration, for GGUF files, to this file."
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Let a repository's shards come and go, two on the disk at a time. [default: where the disk lacks room]",
    ),
]
Checked = Annotated[
    bool, typer.Option("--check", help="Measure what was lost in the same pass; its gates decide the exit code.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew in a folder that holds an earlier run.")]


def gptq(
    model: Source, out: Out = None, recipe: RecipeName = None, method: Method = None, bits: Bits = None,
    group_size: GroupSize = None, symmetric: Symmetric = None, act_order: ActOrder = None, damp: Damp = None,
    scales: Scales = None, rule: Rules = None, skip: Skip = None, target: Targets = None, dtype: Dtype = None,
    max_shard_size: ShardSize = None, calibration: CalibrationText = None, samples: Samples = None,
    sequence_length: SequenceLength = None, seed: Seed = None, device: DeviceName = "auto",
    strict: Strict = False, imatrix: ImatrixFile = None, stream: Stream = None, check: Checked = False,
    restart: Restart = False, context: Context = 4096, dry_run: DryRun = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Quantize a checkpoint to a GPTQ checkpoint.

    quantkit gptq xverse/XVERSE-13B-Chat --bits 4

    quantkit gptq ./my-model --bits 4 --group-size 32 --target vllm --calibration c4

    quantkit gptq ./my-model --rule 'model.layers.0.*=skip' --dry-run
    """
    made = _recipe(
        recipe, method, bits, group_size, symmetric, act_order, damp, scales, rule, skip, target, dtype,
        max_shard_size, calibration, samples, sequence_length, seed,
    )  # fmt: skip
    from quantkit.pipeline.look import look

    checkpoint = look(model)  # refuses what it can before torch is loaded
    if dry_run:
        _show_plan(_prepare(checkpoint, made, out, device, strict, stream), context, as_json)
        return
    from quantkit.pipeline.gptq import run
    from quantkit.progress import Shown
    from quantkit.report.table import print_result

    with Shown() as progress:
        job = _prepare(checkpoint, made, out, device, strict, stream)
        for note in job.plan.notes:
            progress.say(f"note: {note}")
        progress.say(f"computing on {job.device.label}")
        result = run(job, progress, restart=restart, imatrix=imatrix, check=_same_pass(job) if check else None)
    measured = result.check or _earlier_check(result.output) if check else None
    if as_json:
        _print_json({"output": str(result.output), **result.record, **({"check": measured} if check else {})})
    else:
        print_result(result.output, result.record)
    if check:
        _judge(result.output, measured, as_json)


def plan(
    model: Source, out: Out = None, recipe: RecipeName = None, method: Method = None, bits: Bits = None,
    group_size: GroupSize = None, symmetric: Symmetric = None, act_order: ActOrder = None, damp: Damp = None,
    scales: Scales = None, rule: Rules = None, skip: Skip = None, target: Targets = None, dtype: Dtype = None,
    max_shard_size: ShardSize = None, calibration: CalibrationText = None, samples: Samples = None,
    sequence_length: SequenceLength = None, seed: Seed = None, device: DeviceName = "auto",
    strict: Strict = False, stream: Stream = None, context: Context = 4096, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what `gptq` would make and cost: size, memory, disk, time, and where the artifact runs.

    Reads headers and config.json only; a repo on the Hub is not downloaded.

    quantkit plan xverse/XVERSE-13B-Chat --bits 4

    quantkit plan ./my-model --bits 3 --context 8192 --json
    """
    made = _recipe(
        recipe, method, bits, group_size, symmetric, act_order, damp, scales, rule, skip, target, dtype,
        max_shard_size, calibration, samples, sequence_length, seed,
    )  # fmt: skip
    from quantkit.pipeline.look import look

    _show_plan(_prepare(look(model), made, out, device, strict, stream), context, as_json)


def _recipe(
    name: str | None, method: str | None, bits: int | None, group_size: int | None, symmetric: bool | None,
    act_order: str | None, damp: float | None, scales: str | None, rule: list[str] | None,
    skip: list[str] | None, target: list[str] | None, dtype: str | None, max_shard_size: str | None,
    calibration: list[str] | None, samples: int | None, sequence_length: int | None, seed: int | None,
) -> "Recipe":  # fmt: skip
    """The recipe that options and file give together; options win."""
    from quantkit.formats.runtimes import check_targets, layout_of
    from quantkit.recipe import load_recipe, make_recipe

    fields: dict[str, Any] = load_recipe(name) if name else {}
    try:
        make_recipe(fields)  # a mistake in the file is bad input, one in the options is bad usage
    except (BadInputError, UsageError) as error:
        raise BadInputError(f"{name}: {error}", error.hint) from error
    given: dict[str, Any] = {
        "method": method, "bits": bits, "group_size": group_size, "symmetric": symmetric, "act_order": act_order,
        "damp_percent": damp, "scales": scales, "rules": rule, "targets": target, "dtype": dtype,
        "skip": [*dict.fromkeys([*skip, "lm_head"])] if skip else None, "max_shard_size": max_shard_size,
    }  # fmt: skip
    fields |= {key: value for key, value in given.items() if value is not None}
    text: dict[str, Any] = {
        "text": calibration, "samples": samples, "sequence_length": sequence_length, "seed": seed
    }  # fmt: skip
    overrides = {key: value for key, value in text.items() if value is not None}
    if overrides:
        fields["calibration"] = {**fields.get("calibration", {}), **overrides}
    try:
        made = make_recipe(fields)
    except BadInputError as error:
        raise UsageError(str(error).replace("recipe ", "option ", 1), error.hint) from error
    check_targets(made.targets, layout_of(made, {}))
    return made


def _prepare(
    checkpoint: "Checkpoint", recipe: "Recipe", out: Path | None, device: str, strict: bool, stream: bool | None
) -> "Job":
    from quantkit.pipeline.job import prepare

    return prepare(checkpoint, recipe, output=out, device=device, strict=strict, stream=stream)


def _same_pass(job: "Job") -> "SamePassCheck":
    from quantkit.pipeline.check_job import CheckOptions
    from quantkit.pipeline.same_pass import SamePassCheck

    return SamePassCheck([job], CheckOptions())


def _earlier_check(output: Path) -> dict[str, Any] | None:
    """The check of an artifact that was finished before, where it is of these very files."""
    from quantkit.checkfile import standing

    found = standing(output)
    return found.record if found.is_of_these else None


def _judge(output: Path, record: dict[str, Any] | None, as_json: bool) -> None:
    """Print the check of the same pass; a gate that did not hold leaves with exit code 8."""
    from quantkit.commands.check import refuse_failed

    if record is None:
        raise QualityError(f"{output} was finished before, its check was not measured", "quantkit check measures it")
    if not as_json:
        from quantkit.report.check_table import print_check

        print_check(record)
    refuse_failed(record)


def _show_plan(job: "Job", context: int, as_json: bool) -> None:
    if as_json:
        _print_json(job.as_dict(context))
    else:
        from quantkit.report.table import print_plan

        print_plan(job.as_dict(context))


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False))
