"""The checks of a release: one pass for all that lack one, gates applied again where only they have changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.checkfile import standing, write_check
from quantkit.pipeline.check import run
from quantkit.pipeline.check_job import CheckOptions, prepare
from quantkit.pipeline.release_plan import Made, ReleasePlan
from quantkit.progress import Progress
from quantkit.quality.gates import apply_gates, limits_for, overridden
from quantkit.quality.texts import evaluation_texts


@dataclass(frozen=True)
class Verdict:
    """What the check of a variant says."""

    passed: bool
    metrics: Mapping[str, Any]  # over all texts, as check.json has them
    failed: tuple[str, ...]  # sentences of the gates that did not hold


def options_of(plan: ReleasePlan) -> CheckOptions:
    """What every check of the release measures and demands."""
    asked = plan.file.check
    limits = {one.check_name: one.limits for one in plan.made}
    return CheckOptions(text=asked.text, context=asked.context, limits_by_name=limits)


def check_all(plan: ReleasePlan, device: str, progress: Progress) -> dict[str, Verdict]:
    """The verdict of every variant, by name; measured together where there is none that holds for its files.

    Args:
        plan: of the release; its artifacts are finished.
        device: where to compute.
        progress: told what happens.

    Raises:
        QuantkitError: a weight set cannot be read or computed.
    """
    options = options_of(plan)
    records = {one.name: _known(plan, one, options) for one in plan.made}
    due = [one for one in plan.made if records[one.name] is None]
    if due:
        progress.say(f"checking {', '.join(one.name for one in due)}")
        stream = True if plan.streamed else None
        job = prepare([str(one.path) for one in due], plan.reference, options, stream=stream)
        found = run(job, progress)
        for one, entry in zip(due, found["artifacts"], strict=True):
            records[one.name] = {**found, "artifacts": [entry], "passed": entry["passed"]}
    return {name: _verdict(record["artifacts"][0]) for name, record in records.items() if record}


def _known(plan: ReleasePlan, made: Made, options: CheckOptions) -> dict[str, Any] | None:
    """A check of these very files, against this base, over this text; judged by the gates of today."""
    found = standing(made.path)
    if found.record is None or not found.is_of_these:
        return None
    record = found.record
    texts = [[text.name, text.sha256] for text in evaluation_texts(options.text)]
    evaluation, base = record["evaluation"], record["baseline"]
    same_text = [[text["name"], text["sha256"]] for text in evaluation["texts"]] == texts
    same_context = options.context in (None, evaluation["context"]) and not evaluation["like_llama_cpp"]
    same_base = (base["repo"], base["commit"]) == (plan.checkpoint.repo_id, plan.checkpoint.commit)
    return _judged(made, record) if same_text and same_context and same_base else None


def _judged(made: Made, record: dict[str, Any]) -> dict[str, Any]:
    """The record with the gates of today; written anew where they say something else."""
    entry = record["artifacts"][0]
    gates = apply_gates(overridden(limits_for(entry["bits"]), made.limits), entry)
    told = [asdict(gate) | {"sentence": gate.sentence} for gate in gates]
    if told == entry["gates"]:
        return record
    passed = all(gate.passed for gate in gates)
    judged = {**record, "artifacts": [{**entry, "gates": told, "passed": passed}], "passed": passed}
    write_check(made.path, judged)
    return judged


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    failed = tuple(gate["sentence"] for gate in entry["gates"] if not gate["passed"])
    return Verdict(entry["passed"], entry["metrics"]["all"], failed)
