"""Imports point one way, and a `--help` does not wait for torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit

ROOT = Path(quantkit.__file__).parent
# From the lowest to the highest; rooms of one level do not import one another.
LEVELS = (
    {"tensors", "dtypes", "errors", "units", "versions", "signals", "memory", "strict_yaml"},
    {"weights", "recipe", "distributed", "devices", "texts", "recording"},
    {"methods", "formats", "families", "rundir", "runlock", "hub", "quality", "checkfile", "manifest", "basecard"},
    {"vocab", "scheme"},
    {"plan", "skeleton", "report", "checkpoint", "lockstep", "generate", "progress", "calibration", "release_file"},
    {"gguf_source"},
    {"pipeline"},
    {"commands"},
    {"cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SAME_LEVEL = {
    ("lockstep", "skeleton"),
    ("generate", "skeleton"),
    ("units", "errors"),
    ("tensors", "errors"),
    ("strict_yaml", "errors"),
    ("texts", "recipe"),
}
TABLES = {"families", "methods", "formats"}  # rooms whose __init__.py may hold a literal table
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path):
    """Modules of quantkit that a file imports anywhere, as dotted names inside the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            while parts[0] == "quantkit" and len(parts) > 1:
                inside = ".".join(parts[1:])
                if inside in MODULES or inside + ".__init__" in MODULES:
                    yield inside
                    break
                parts.pop()


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_point_downwards(module):
    room = module.partition(".")[0]
    for target in imported(MODULES[module]):
        other = target.partition(".")[0]
        if other != room and (room, other) not in SAME_LEVEL:
            assert LEVEL_OF[other] < LEVEL_OF[room], f"{module} imports {target}"


def test_no_module_imports_itself_by_a_detour():
    table = {f"{name}.__init__" for name in TABLES}
    edges = {
        name.removesuffix(".__init__"): {target for target in imported(path) if target != name}
        for name, path in MODULES.items()
        if not name.endswith("__init__") or name in table
    }
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in edges.get(name, ()):
                visit(target, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])


@pytest.mark.parametrize("module", [name for name in MODULES if name.endswith("__init__")])
def test_init_files_are_empty_but_for_tables(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    room = module.removesuffix("__init__").rstrip(".")
    statements = (ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr) if room in TABLES else ()
    assert all(isinstance(node, statements) for node in tree.body)


def test_the_command_line_starts_without_heavy_imports():
    heavy = ("torch", "transformers", "numba", "numpy", "huggingface_hub", "safetensors")
    assert loaded("quantkit.cli", heavy) == "[]"


def test_a_first_look_at_a_checkpoint_does_not_wait_for_torch():
    """What headers betray is refused in a fraction of the time that importing torch takes."""
    assert (
        loaded("quantkit.commands.gptq, quantkit.recipe, quantkit.pipeline.look", ("torch", "transformers", "numba"))
        == "[]"
    )


def loaded(modules, heavy):
    """Which of the heavy modules these bring along, as a list's text."""
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
