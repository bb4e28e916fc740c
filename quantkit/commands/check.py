"""`quantkit check`: options to one pipeline call, and its result printed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.errors import QualityError, UsageError

if TYPE_CHECKING:
    from quantkit.pipeline.check_job import CheckJob

Artifacts = Annotated[
    list[str], typer.Argument(metavar="ARTIFACT...", help="Folders, GGUF files, or org/name[@revision].")
]
Baseline = Annotated[str | None, typer.Option("--baseline", help="The 16-bit checkpoint they were made from.")]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="Shipped part, text or JSONL file, folder, Hub set (wikitext). Repeatable. [default: default]"
    ),
]
Window = Annotated[
    int | None, typer.Option("--context", min=3, help="Tokens of a window. [default: 2048 or what the model has]")
]
Stride = Annotated[
    int | None, typer.Option("--stride", min=1, help="Tokens from one window to the next. [default: the context]")
]
LikeLlamaCpp = Annotated[
    bool, typer.Option("--like-llama-cpp", help="llama.cpp's windows: context 512, second half scored.")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="To compute in: auto (what the hardware does fast), float32, bfloat16, float16.")
]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda[:N] or mps.")]
MaxIncrease = Annotated[
    str | None, typer.Option("--max-ppl-increase", help="Gate: of the baseline's perplexity, such as 2%.")
]
MaxKl = Annotated[float | None, typer.Option("--max-kl", min=0, help="Gate: mean KL divergence, nats per token.")]
MinTop1 = Annotated[float | None, typer.Option("--min-top1", help="Gate: share of tokens with the same first choice.")]
MaxMemory = Annotated[
    str | None, typer.Option("--max-memory", help="Gate: predicted memory for running it, such as 10.9GB.")
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="Gates of a recipe file, or of a shipped one. [default: the artifact's own]"),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Let the shards of a baseline on the Hub come and go, two on the disk at a time. "
        "[default: where the disk lacks room]",
    ),
]
NoGates = Annotated[bool, typer.Option("--no-gates", help="Measure only; without it, gates by bits hold.")]
KvContext = Annotated[int, typer.Option("--kv-context", min=1, help="Tokens of the KV cache in the memory table.")]
Prompts = Annotated[
    str | None,
    typer.Option("--prompts", help="Answer these prompts side by side: default, or a JSONL file."),
]
BaselineAnswers = Annotated[
    bool,
    typer.Option("--baseline-answers", help="Let the baseline write its own answers too, not only judge the others'."),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="lm-evaluation-harness tasks, names or YAML files, comma-separated.")
]
TaskLimit = Annotated[int | None, typer.Option("--task-limit", min=1, help="Samples of each task. [default: all]")]
Measure = Annotated[
    bool, typer.Option("--measure", help="Load and run each in a child process: memory and tokens per second.")
]
RuntimePython = Annotated[
    str | None, typer.Option("--runtime-python", help="Python that has the runtime for --measure. [default: this one]")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the table for a model card.")]
Status = Annotated[bool, typer.Option("--status", help="Measure nothing: say whether each artifact's check counts.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what it would cost and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def check(
    artifacts: Artifacts, baseline: Baseline = None, text: Text = None, context: Window = None,
    stride: Stride = None, like_llama_cpp: LikeLlamaCpp = False, prompts: Prompts = None,
    baseline_answers: BaselineAnswers = False, tasks: Tasks = None, task_limit: TaskLimit = None,
    measure: Measure = False, runtime_python: RuntimePython = None, max_ppl_increase: MaxIncrease = None,
    max_kl: MaxKl = None, min_top1: MinTop1 = None, max_memory: MaxMemory = None, recipe: RecipeName = None,
    no_gates: NoGates = False, stream: Stream = None,
    kv_context: KvContext = 4096, dtype: Dtype = "auto", device: DeviceName = "auto", html: Html = None,
    markdown: Markdown = None, status: Status = False, dry_run: DryRun = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what quantization cost: artifacts beside their baseline, in one pass, one layer in memory.

    quantkit check ./XVERSE-13B-Chat-GPTQ-Int4 --baseline xverse/XVERSE-13B-Chat --html report.html

    quantkit check ./model-Q4_K_M.gguf ./Int8 --baseline ./model --text wikitext --max-kl 0.05

    quantkit check ./Int4 --status
    """
    if status:
        _show_status(artifacts, as_json)
        return
    if baseline is None:
        raise UsageError("check needs --baseline", "name the 16-bit checkpoint that the artifacts were made from")
    from quantkit.pipeline.look import look_at_headers

    look_at_headers(baseline, artifacts)
    from quantkit.pipeline.check_job import CheckOptions, prepare
    from quantkit.quality.gates import limits_from, overridden, parse_limits
    from quantkit.scheme import load_scheme

    gates = load_scheme(recipe).gates.model_dump() if recipe else None
    own = parse_limits(max_ppl_increase, max_kl, min_top1, max_memory)

    options = CheckOptions(
        text=tuple(text or ("default",)), context=context, stride=stride, like_llama_cpp=like_llama_cpp,
        dtype=dtype, device=device, limits=overridden(limits_from(gates), own),
        gated=not no_gates, kv_context=kv_context, prompts=prompts, baseline_answers=baseline_answers,
        tasks=tuple(name for name in (tasks or "").split(",") if name), task_limit=task_limit, measure=measure,
        runtime_python=runtime_python,
    )  # fmt: skip
    job = prepare(artifacts, baseline, options, stream=stream)
    if dry_run:
        _show_budget(job, as_json)
    else:
        _run(job, html, markdown, as_json)


def _run(job: "CheckJob", html: Path | None, markdown: Path | None, as_json: bool) -> None:
    from quantkit.pipeline.check import run
    from quantkit.progress import Shown

    with Shown() as progress:
        progress.say(f"computing on {job.device.label}")
        record = run(job, progress)
    if html:
        from quantkit.plan.runtime import MACHINES
        from quantkit.report.html import write_html

        write_html(record, html, MACHINES)
    if markdown:
        from quantkit.report.check_table import markdown_table
        from quantkit.weights.files import write_file

        write_file(markdown, markdown_table(record).encode())
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        from quantkit.report.check_table import print_check

        print_check(record)
    refuse_failed(record)


def refuse_failed(record: dict[str, Any]) -> None:
    """Say which gates of a check did not hold.

    Raises:
        QualityError: at least one.
    """
    failed = [
        f"{entry['name']}: {gate['sentence']}"
        for entry in record["artifacts"]
        for gate in entry["gates"]
        if not gate["passed"]
    ]
    if failed:
        raise QualityError(
            "; ".join(failed), "--no-gates measures without judging; other limits: quantkit check --help"
        )


def _show_budget(job: "CheckJob", as_json: bool) -> None:
    from quantkit.units import format_gib, format_seconds

    budget = job.budget.as_dict()
    if as_json:
        windows = {"windows": job.windows.rule, "tokens": job.windows.tokens}
        print(json.dumps({"schema_version": 1, **windows, "streamed": job.beside is not None, **budget}))
        return
    rows = [
        ("weight sets", ", ".join(entry.name for entry in job.sets)),
        ("windows", f"{len(job.windows.ids)} {job.windows.rule}: {job.windows.tokens} tokens are scored"),
        *([("baseline", "streamed: two shards at a time")] if job.beside else []),
        ("peak host memory", format_gib(budget["host_bytes"])),
        ("peak device memory", format_gib(budget["device_bytes"])),
        ("time", format_seconds(budget["seconds"])),
    ]
    for name, value in rows:
        print(f"{name:<20}{value}")


def _show_status(artifacts: list[str], as_json: bool) -> None:
    """Say of each folder whether its check.json still counts; a failure leaves with exit code 8."""
    from quantkit.checkfile import standing

    found: dict[str, Any] = {name: standing(Path(name)) for name in artifacts}
    if as_json:
        rows = [{"artifact": name, "counts": one.counts, "reason": one.reason} for name, one in found.items()]
        print(json.dumps({"schema_version": 1, "artifacts": rows}, ensure_ascii=False))
    else:
        for name, one in found.items():
            print(f"{name}: {one.reason}")
    missing = [name for name, one in found.items() if not one.counts]
    if missing:
        raise QualityError(f"no check that counts: {', '.join(missing)}", "quantkit check ARTIFACT --baseline SOURCE")
