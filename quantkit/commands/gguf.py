"""`quantkit gguf`: options to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.commands.gptq import (
    AsJson,
    CalibrationText,
    Context,
    DeviceName,
    DryRun,
    RecipeName,
    Samples,
    Seed,
    SequenceLength,
    Source,
    Stream,
)
from quantkit.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from quantkit.recipe import Calibration

Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type", "-t", help="A file type such as Q4_K_M, Q8_0, IQ4_XS or BF16. Repeatable: one read for all."
    ),
]
TargetSize = Annotated[
    str | None, typer.Option("--target-size", help="In place of --type: the best that fits, such as 8.0GB.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="A folder, or the .gguf file. [default: ./NAME-GGUF]")]
ImatrixSource = Annotated[
    str | None,
    typer.Option(
        "--imatrix", help="auto (collected from the calibration text), an imatrix file, or none. [default: none]"
    ),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", help="REGEX=TYPE for tensors whose name it is found in; the first wins. Repeatable."),
]
Pre = Annotated[
    str | None, typer.Option("--pre", help="llama.cpp's pre-tokenizer, where it is not found by its expressions.")
]
SplitSize = Annotated[
    str | None, typer.Option("--split-max-size", help="Largest file, such as 40GB. [default: one file]")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Encoders at once. [default: every core]")]
RestartFile = Annotated[bool, typer.Option("--restart", help="Make files again that are there already.")]


def gguf(
    model: Source, types: Types = None, target_size: TargetSize = None, out: Out = None, recipe: RecipeName = None,
    imatrix: ImatrixSource = None, tensor_type: TensorTypes = None, pre: Pre = None,
    split_max_size: SplitSize = None, calibration: CalibrationText = None, samples: Samples = None,
    sequence_length: SequenceLength = None, seed: Seed = None, device: DeviceName = "auto",
    threads: Threads = None, stream: Stream = None, restart: RestartFile = False, context: Context = 4096,
    dry_run: DryRun = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Convert a checkpoint to quantized GGUF files, in one pass over its tensors.

    quantkit gguf xverse/XVERSE-13B-Chat --type Q4_K_M --type Q8_0

    quantkit gguf ./my-model --type IQ4_XS --imatrix auto

    quantkit gguf ./my-model --target-size 8.0GB --dry-run
    """
    wanted = _wanted(
        recipe, types, target_size=target_size, imatrix=imatrix, tensor_types=tensor_type, pre=pre,
        split_max_size=split_max_size,
    )  # fmt: skip
    if bool(wanted["types"]) == bool(wanted["target_size"]):
        raise UsageError("gguf needs either --type or --target-size", "such as --type Q4_K_M")
    from quantkit.pipeline.look import look_for_gguf

    checkpoint = look_for_gguf(model)  # refuses what it can before torch is loaded
    from quantkit.pipeline.gguf_job import GgufOptions

    options = GgufOptions(
        wanted["types"], wanted["target_size"], tuple(wanted["tensor_types"]), wanted["pre"], wanted["split_max_size"],
        out, threads,
    )  # fmt: skip
    text = _calibration(wanted["calibration"], calibration, samples, sequence_length, seed)
    from quantkit.pipeline.gguf_convert import ImatrixWish, convert, plan

    wish = ImatrixWish(wanted["imatrix"], text, device)

    if dry_run:
        _show(plan(checkpoint, options, wish, stream=stream).as_dict(context), as_json)
        return
    from quantkit.progress import Shown

    with Shown() as progress:
        result = convert(checkpoint, options, wish, progress, restart=restart, stream=stream)
    if as_json:
        print(json.dumps({"folder": str(result.folder), "outputs": list(result.records)}, ensure_ascii=False))
    else:
        from quantkit.report.gguf_table import print_result

        print_result(result.folder, result.records)


def _wanted(name: str | None, types: list[str] | None, **given: Any) -> dict[str, Any]:  # noqa: ANN401
    """What options and recipe give together; options win, and a goal among them replaces that of the recipe."""
    from quantkit.scheme import GgufRecipe, load_scheme

    fields = {key: field.get_default() for key, field in GgufRecipe.model_fields.items() if not field.is_required()}
    if name:
        made = load_scheme(name)
        if not isinstance(made, GgufRecipe):
            raise BadInputError(
                f"{name}: this recipe makes a GPTQ checkpoint (method: {made.method})",
                "take it with quantkit gptq --recipe",
            )
        fields = dict(made)
    if types or given["target_size"]:
        fields |= {"type": None, "target_size": None}
    fields |= {key: value for key, value in given.items() if value is not None}
    return fields | {"types": tuple(types or filter(None, [fields["type"]]))}


def _calibration(
    from_file: "Calibration", text: list[str] | None, samples: int | None, sequence_length: int | None, seed: int | None
) -> "Calibration":
    from quantkit.recipe import make_recipe

    given = {"text": text, "samples": samples, "sequence_length": sequence_length, "seed": seed}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        return make_recipe({"calibration": {**from_file.model_dump(), **overrides}}).calibration
    except BadInputError as error:
        raise UsageError(str(error).replace("recipe ", "option ", 1), error.hint) from error


def _show(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan, ensure_ascii=False))
    else:
        from quantkit.report.gguf_table import print_plan

        print_plan(plan)
