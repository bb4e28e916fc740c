"""A verification as text for people: where the artifact comes from, and what was compared."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantkit.manifest import MANIFEST_FILE
from quantkit.report.table import wide_console
from quantkit.units import format_bytes


def print_verification(found: Mapping[str, Any]) -> None:
    """Print what `quantkit.pipeline.verify.examine` returns on stdout."""
    out = wide_console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, said in [*_provenance(found), *_results(found)]:
        table.add_row(name, escape(said))
    out.print(f"{found['artifact']}:", markup=False)
    out.print(table)
    for problem in found["problems"]:
        out.print(f"differs: {problem}", markup=False)


def _provenance(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    manifest = found["manifest"]
    if manifest is None:
        broken = any(problem.startswith(MANIFEST_FILE) for problem in found["problems"])
        missing = "none: nothing says from what it was made, or which files belong to it"
        return [("manifest", "not to be trusted" if broken else missing)]
    base, calibration = manifest["base"], manifest["calibration"]
    commit = f" @ {base['commit']}" if base["commit"] else ", a local folder" if not base["repo"] else ""
    licence = base["card"].get("license") or "not stated"
    versions = manifest["versions"]
    return [
        ("base", base["name"] + commit),
        ("licence", f"{licence}, gated" if base["gated"] else str(licence)),
        ("recipe", _recipe(manifest)),
        ("calibration", calibration["sha256"] if calibration and "sha256" in calibration else "no text"),
        ("made with", ", ".join(f"{name} {versions[name]}" for name in ("quantkit", "torch") if name in versions)),
    ]


def _recipe(manifest: Mapping[str, Any]) -> str:
    recipe = manifest["recipe"]
    if manifest["method"] == "gguf":
        return "GGUF " + ", ".join(str(model["type"]) for model in recipe["models"].values())
    return f"{recipe['method']}, {recipe['bits']} bits, group size {recipe['group_size']}"


def _results(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    files, tensors = found["files"], found["tensors"]
    said = f"{files['hashed']} hashed"
    if found["manifest"] is not None:
        intact = files["listed"] - len(files["missing"]) - len(files["changed"])
        said = f"{intact} of {files['listed']} listed ones are intact"
    if files["unlisted"]:
        said += f"; not listed: {', '.join(files['unlisted'])}"
    checks = [f"{check['model']}: {check['reason']}" for check in found["checks"]]
    return [
        ("files", said),
        ("tensors", f"{tensors['read']} read, {format_bytes(tensors['bytes'])}"),
        *(("check", one) for one in checks),
    ]
