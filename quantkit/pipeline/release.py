"""A whole release: every variant made, checked, given its card and published; a rerun redoes nothing that stands."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import BadInputError
from quantkit.hub.target import MAIN, Target, page
from quantkit.pipeline.card import write_card
from quantkit.pipeline.check_job import CheckOptions
from quantkit.pipeline.gguf_convert import AUTO, convert
from quantkit.pipeline.gptq import run_together
from quantkit.pipeline.job import Job
from quantkit.pipeline.look import look, look_for_gguf
from quantkit.pipeline.machine import available_bytes
from quantkit.pipeline.preflight import host_bytes
from quantkit.pipeline.push import PushOptions
from quantkit.pipeline.push import prepare as prepare_push
from quantkit.pipeline.push import run as run_push
from quantkit.pipeline.push_options import branch_name
from quantkit.pipeline.release_aside import set_aside, take_back
from quantkit.pipeline.release_check import Verdict, check_all, options_of
from quantkit.pipeline.release_plan import GgufGroup, Made, ReleasePlan, base_name, plan_release, with_imatrix
from quantkit.pipeline.same_pass import SamePassCheck
from quantkit.progress import Progress
from quantkit.release_file import ReleaseFile
from quantkit.rundir import RUN_FILE
from quantkit.runlock import locked
from quantkit.versions import version
from quantkit.weights.files import write_file

RELEASE_FILE = "release.json"
SCHEMA_VERSION = 1


def default_folder(file: ReleaseFile) -> Path:
    """`XVERSE-13B-Chat-release`, in the current folder."""
    return Path(f"{base_name(file)}-release")


def pinned_plan(
    file: ReleaseFile, folder: Path, *, only: Sequence[str] = (), device: str = "auto", restart: bool = False
) -> ReleasePlan:
    """The plan of a release, for the commit of the base that its first run found.

    Args:
        file: what to make.
        folder: where everything goes.
        only: names of variants; none: all of them.
        device: where to compute.
        restart: look for the commit anew.

    Raises:
        BadInputError: the folder holds the release of another base.
        QuantkitError: whatever makes a variant impossible, in one sentence.
    """
    known = _known(folder)
    if known and known["base"]["name"] != base_name(file):
        raise BadInputError(
            f"{folder} holds the release of {known['base']['name']}, the file names {file.base}", "choose another --out"
        )
    same = known is not None and not restart and known["base"]["asked"] == file.revision
    commit = known["base"]["commit"] if known and same else None
    return plan_release(file, folder, commit, only=only, device=device)


def run(
    plan: ReleasePlan, progress: Progress, *, push: bool = True, device: str = "auto", restart: bool = False
) -> dict[str, Any]:
    """Make, check and publish every variant of a plan.

    Args:
        plan: from `pinned_plan`.
        progress: told what happens.
        push: publish what passed, where the release file says so.
        device: where to compute.
        restart: make again what is there.

    Returns:
        release.json: what became of every variant.

    Raises:
        QuantkitError: input, network, disk or memory fail; what is finished is kept, and the same call goes on. A
            variant whose gates do not hold ends nothing: it is not published, and the record says why.
    """
    with locked(plan.folder) as protected:
        if not protected:
            progress.say(f"note: the file system of {plan.folder} has no locks; start no second run there")
        _write(plan, {"status": "running"})
        for group in plan.groups:
            take_back(group.made[0].folder)
        imatrix = _make_gptq(plan, progress, restart)
        for group in plan.groups:
            _make_gguf(plan, group, imatrix, progress, restart)
        verdicts = check_all(plan, device, progress)
        for one in plan.made:
            for sentence in verdicts[one.name].failed:
                progress.say(f"{one.name} did not pass: {sentence}")
        for folder in {group.made[0].folder for group in plan.groups}:
            set_aside(folder, {one.path: verdicts[one.name].passed for one in plan.made})
        published = _publish(plan, verdicts, progress, push)
        return _write(plan, _summary(plan, verdicts, published))


def _make_gptq(plan: ReleasePlan, progress: Progress, restart: bool) -> Path | None:
    """Every GPTQ variant, as many in one pass as memory holds; the importance matrix on the way.

    Returns:
        The importance matrix, where a GGUF variant wants one and the calibration is the same.
    """
    if not plan.jobs:
        return None
    imatrix = _imatrix(plan)
    options = options_of(plan) if plan.streamed else None
    for number, jobs in enumerate(_batches(plan.jobs, options)):
        progress.say(f"making {', '.join(job.output.name for job in jobs)}")
        _report(jobs, progress)
        check = SamePassCheck(jobs, options) if options else None
        run_together(jobs, progress, restart=restart, imatrix=None if number else imatrix, check=check)
    return imatrix


def _batches(jobs: Sequence[Job], options: CheckOptions | None) -> list[list[Job]]:
    """Jobs that go through the layers together: as many as memory holds, at least one."""
    batches: list[list[Job]] = [[]]
    for job in jobs:
        together = [*batches[-1], job]
        check = SamePassCheck(together, options).budget if options and batches[-1] else None
        if batches[-1] and host_bytes(together, check) > available_bytes():
            batches.append([job])
        else:
            batches[-1] = together
    return batches


def _report(jobs: Sequence[Job], progress: Progress) -> None:
    for note in dict.fromkeys(note for job in jobs for note in job.plan.notes):
        progress.say(f"note: {note}")
    progress.say(f"computing on {jobs[0].device.label}")


def _imatrix(plan: ReleasePlan) -> Path | None:
    """Where the GPTQ pass leaves an importance matrix, if it reads the text that one is wanted from."""
    first = next((job for job in plan.jobs if job.recipe.method == "gptq"), None)
    wants = [group for group in plan.groups if group.wish.where == AUTO]
    if first is None or not wants or any(group.wish.calibration != first.recipe.calibration for group in wants):
        return None
    folder = wants[0].made[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder / wants[0].job.model.naming.file_name("imatrix")


def _make_gguf(plan: ReleasePlan, group: GgufGroup, imatrix: Path | None, progress: Progress, restart: bool) -> None:
    progress.say(f"making {', '.join(one.path.name for one in group.made)}")
    wished = with_imatrix(group, imatrix) if imatrix and group.wish.where == AUTO else group
    # Opened again: a repository that the GPTQ variants have downloaded is here now.
    checkpoint = (look if plan.jobs else look_for_gguf)(plan.reference)
    stream = group.job.streamed if checkpoint.download_bytes else None
    convert(checkpoint, wished.options, wished.wish, progress, restart=restart, stream=stream)


def _publish(
    plan: ReleasePlan, verdicts: Mapping[str, Verdict], progress: Progress, push: bool
) -> dict[Path, dict[str, Any]]:
    """Card and push of every folder with something that passed.

    Returns:
        What `quantkit push` says of each folder that was published.
    """
    passed = [one for one in plan.made if verdicts[one.name].passed]
    folders = {one.folder: one for one in passed}  # of a folder of GGUF files, any of its variants
    homes = {folder: _home(one) if push else "" for folder, one in folders.items()}
    published = {}
    for folder, one in folders.items():
        siblings = {other: home for other, home in homes.items() if other != folder}
        if one.repo_id is None or not push or plan.file.push is None:
            write_card(folder, siblings=siblings)
            continue
        asked = plan.file.push
        options = PushOptions(
            branch=one.branch, private=asked.private, collection=asked.collection, tag=asked.tag, siblings=siblings
        )
        progress.say(f"publishing {folder.name} as {one.repo_id}")
        job = prepare_push(folder, one.repo_id, options)
        for note in job.notes:
            progress.say(note)
        published[folder] = run_push(job, progress)
        if not published[folder]["changed"]:
            progress.say(f"{one.repo_id} holds it already")
    return published


def _home(made: Made) -> str:
    """The address of a variant's repository."""
    return page(Target(made.repo_id, _branch(made))) if made.repo_id else ""


def _branch(made: Made) -> str:
    if made.branch is None:
        return MAIN
    return branch_name(json.loads((made.path / RUN_FILE).read_bytes()))


def _summary(
    plan: ReleasePlan, verdicts: Mapping[str, Verdict], published: Mapping[Path, Mapping[str, Any]]
) -> dict[str, Any]:
    variants = []
    for one in plan.made:
        verdict, there = verdicts[one.name], published.get(one.folder)
        pushed = there is not None and verdict.passed
        variants.append(
            {
                "name": one.name,
                "path": str(one.path.relative_to(plan.folder)),
                "status": "published" if pushed else "passed" if verdict.passed else "did not pass",
                "bytes": one.nbytes,
                "bits_per_weight": round(one.bits_per_weight, 4),
                "perplexity": verdict.metrics["perplexity"],
                "perplexity_ratio": verdict.metrics["perplexity_ratio"],
                "kl_mean": verdict.metrics["kl_mean"],
                "top1_agreement": verdict.metrics["top1_agreement"],
                "failed": list(verdict.failed),
                "repo": there["repo"] if there and pushed else None,
                "branch": there["branch"] if there and pushed else None,
                "commit": there["commit"] if there and pushed else None,
                "url": there["url"] if there and pushed else None,
            }
        )
    return {"status": "finished", "variants": variants, "passed": all(one.passed for one in verdicts.values())}


def _write(plan: ReleasePlan, said: Mapping[str, Any]) -> dict[str, Any]:
    base = {
        "name": plan.name, "repo": plan.checkpoint.repo_id, "commit": plan.checkpoint.commit,
        "asked": plan.file.revision,
    }  # fmt: skip
    record = {"schema_version": SCHEMA_VERSION, "version": version(), "base": base, **said}
    write_file(plan.folder / RELEASE_FILE, json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
    return record


def _known(folder: Path) -> dict[str, Any] | None:
    """release.json of an earlier run.

    Raises:
        BadInputError: it is none of ours.
    """
    try:
        record = json.loads((folder / RELEASE_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("base"), dict):
        raise BadInputError(f"{folder / RELEASE_FILE} is not a record of quantkit", "choose another --out")
    return record
