"""The pages say what the program does: the reference, the file tree, the recipes, the exit codes, the links."""

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from quantkit import errors

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
TREE_LINE = re.compile(r"(?P<indent> *)(?P<path>\S+)(?: +(?P<what>\S.*))?")


def plain(text):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def file_tree():
    """The README's file tree: path -> what its line says."""
    block = README.read_text("utf-8").split("## The files")[1].split("```")[1]
    tree, parents = {}, {}
    for line in filter(str.strip, block.splitlines()):
        match = TREE_LINE.fullmatch(line)
        depth = len(match["indent"]) // 4
        parents[depth] = match["path"]
        path = "".join(parents[level] for level in range(depth)) + match["path"]
        assert path not in tree, f"{path} stands twice in the file tree"
        tree[path] = match["what"]
    return tree


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", plain(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("environment", [{"COLUMNS": "40", "NO_COLOR": "1"}, {"COLUMNS": "300", "FORCE_COLOR": "1"}])
def test_cli_reference_is_current(environment, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    page = tmp_path / "cli.md"
    subprocess.run([sys.executable, ROOT / "scripts" / "cli_reference.py", page], check=True)
    current = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert current == page.read_text("utf-8"), "docs/cli.md is not what the help texts say: run `make docs`"


def test_file_tree_names_what_exists():
    for path, what in file_tree().items():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), f"{path} does not exist"
        assert what or path in ("quantkit/", "quantkit/report/"), f"{path} has no line of its own in README.md"


def test_file_tree_names_every_module():
    tree = file_tree()
    for module in sorted((ROOT / "quantkit").rglob("*.py")):
        path = module.relative_to(ROOT).as_posix()
        if module.name == "__init__.py":
            path = path.removesuffix("__init__.py")
        assert path in tree, f"{path} is missing from the file tree of README.md"


def test_file_tree_names_the_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git clone")
    tops = {path.partition("/")[0] for path in file_tree()}
    for path in listed.stdout.splitlines():
        assert path.partition("/")[0] in tops, f"{path} is missing from the file tree of README.md"


def test_file_tree_names_every_page():
    tree = file_tree()
    for page in PAGES:
        assert f"docs/{page.name}" in tree, f"docs/{page.name} is missing from the file tree of README.md"


def test_every_recipe_is_described():
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"[{recipe.stem}](../recipes/{recipe.name})" in text, f"docs/recipes.md does not describe {recipe.name}"


def keys_of(model):
    """Every key that a file may have, `calibration.text` for one inside of another."""
    for key, field in model.model_fields.items():
        inner = next((part for part in parts_of(field.annotation) if hasattr(part, "model_fields")), None)
        yield from (f"{key}.{below}" for below in keys_of(inner)) if inner else (key,)


def parts_of(annotation):
    yield annotation
    for part in typing.get_args(annotation):
        yield from parts_of(part)


def test_every_key_of_a_recipe_is_described():
    from quantkit.recipe import Recipe
    from quantkit.scheme import GgufRecipe

    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for key in {*keys_of(Recipe), *keys_of(GgufRecipe)}:
        assert f"| `{key}` |" in text, f"docs/recipes.md does not describe the key {key}"


def test_every_key_of_a_release_file_is_described():
    from quantkit.release_file import ReleaseFile

    text = (ROOT / "docs" / "releases.md").read_text("utf-8")
    for key in keys_of(ReleaseFile):
        if not key.startswith("variants.gates."):  # those of recipes
            assert f"| `{key}` |" in text, f"docs/releases.md does not describe the key {key}"


def test_every_release_file_is_listed():
    text = (ROOT / "docs" / "releases.md").read_text("utf-8")
    for file in (ROOT / "recipes" / "releases").glob("*.yaml"):
        assert f"[{file.stem}](../recipes/releases/{file.name})" in text, f"docs/releases.md does not list {file.name}"


def test_schemas_for_editors_are_current(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts" / "recipe_schema.py", tmp_path], check=True)
    shipped = {path.name: path.read_text("utf-8") for path in (ROOT / "recipes" / "schema").iterdir()}
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert shipped == made, "recipes/schema is not what the models say: run `make docs`"


def test_exit_codes_are_those_of_the_program():
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w*) *\|", text, re.MULTILINE)
    written = {name: int(code) for code, name in rows if name}
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    assert written == {name: error.exit_code for name, error in classes.items()}
    assert {code for code, name in rows if not name} == {"0", "130", "143"}


def test_every_runtime_is_described():
    from quantkit.formats.runtimes import RUNTIMES

    for page in (README, ROOT / "docs" / "formats.md"):
        rows = re.findall(r"^\| (\S+)( [\d.]+)?.*\| (run|its source).*\|$", page.read_text("utf-8"), re.MULTILINE)
        found = {name: (version.strip(), "run" in how) for name, version, how in rows}
        assert found == {row.name: (row.version, row.tried) for row in RUNTIMES.values()}, page.name


@pytest.mark.parametrize("page", [README, ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(plain(page.read_text("utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link} names no heading of {target.name}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "cli.md"], ids=lambda page: page.name)
def test_pages_stay_short(page):
    assert len(page.read_text("utf-8").splitlines()) <= 120, f"{page.name} has more than 120 lines"
