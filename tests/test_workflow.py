"""The workflow for GitHub Actions: what its steps run, what they may do, and who gets to see the token."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from quantkit.cli import app

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "github" / "release.yml"
PAGE = ROOT / "docs" / "github.md"
# In place of quantkit: writes its arguments to a file, whether it was given the token, and leaves as it is told.
RECORDER = """\
#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([sys.argv[1:], "HF_TOKEN" in os.environ]) + "\\n")
print("the summary")
sys.exit(int(os.environ["CODE"]) if "--dry-run" not in sys.argv else 0)
"""


@pytest.fixture(scope="module")
def workflow():
    return yaml.load(WORKFLOW.read_text("utf-8"), Loader=yaml.BaseLoader)  # with `on` as a word


@pytest.fixture(scope="module")
def steps(workflow):
    return workflow["jobs"]["release"]["steps"]


@pytest.fixture
def call(steps, tmp_path):
    """Runs the steps' scripts as a runner does; gives exit code, calls of quantkit, and the folder of the release."""
    program = tmp_path / "bin" / "quantkit"
    program.parent.mkdir()
    program.write_text(RECORDER.format(python=sys.executable))
    program.chmod(0o755)
    words = tmp_path / "environment"

    def run(file="recipes/releases/xglm-564m.yaml", namespace="", code=0):
        fixed = {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}", "GITHUB_ENV": str(words)}
        fixed |= {"FILE": file, "NAMESPACE": namespace, "CALLS": str(tmp_path / "calls"), "CODE": str(code)}
        _shell(_script(steps, "Choose folders"), fixed)
        chosen = dict(line.split("=", 1) for line in words.read_text().splitlines())
        done = _shell(_script(steps, "Release"), fixed | chosen | {"HF_TOKEN": "hf_canary"})
        assert "hf_canary" not in done.stdout + done.stderr
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, calls, Path(chosen["OUT"])

    return run


def _script(steps, name):
    return next(step["run"] for step in steps if step.get("name") == name)


def _shell(script, environment):
    """As GitHub runs `shell: bash`."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def parsed(words):
    """What the command line makes of the words behind `quantkit`; raises for an option that there is not."""
    name, *rest = words
    command = typer.main.get_command(app).commands[name]
    return command.make_context(name, list(rest)).params


@pytest.mark.parametrize("namespace", ["", "my organisation; rm -rf /"])
def test_the_commands_are_those_of_the_program(call, namespace):
    code, calls, out = call(namespace=namespace)
    assert code == 0
    (plan, _), (release, has_token) = calls
    assert has_token
    told = parsed(release)
    assert (told["file"], told["out"], told["on"]) == ("recipes/releases/xglm-564m.yaml", out, "github")
    assert told["namespace"] == (namespace or None)
    assert told["push"]
    assert parsed(plan) == told | {"dry_run": True, "on": None}
    assert (out / "summary.txt").read_text() == "the summary\n"


def test_what_a_release_leaves_with_is_what_the_step_leaves_with(call):
    assert call(code=8)[0] == 8


def test_an_option_that_there_is_not_would_be_noticed():
    with pytest.raises(typer.BadParameter.__bases__[0], match="--nonsense"):
        parsed(["release", "file.yaml", "--nonsense"])


def test_the_default_file_is_there(workflow):
    assert (ROOT / workflow["on"]["workflow_dispatch"]["inputs"]["file"]["default"]).is_file()


def test_inputs_come_by_the_environment_and_never_into_a_script(steps):
    for step in steps:
        assert "${{" not in step.get("run", ""), step["name"]


def strings(value, place=()):
    """Every text of a YAML value, with the keys that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from strings(below, (*place, key))
    if isinstance(value, str):
        yield place, value


def test_one_step_sees_the_token(workflow, steps):
    number = next(number for number, step in enumerate(steps) if step.get("name") == "Release")
    found = {place for place, text in strings(workflow) if "secrets" in text or "github.token" in text}
    assert found == {("jobs", "release", "steps", number, "env", "HF_TOKEN")}
    assert steps[number]["env"] == {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"}
    assert not any("HF_TOKEN" in step.get("run", "") for step in steps)


def test_it_may_read_the_repository_and_nothing_else(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["release"]
    assert set(workflow["on"]) == {"workflow_dispatch"}
    assert workflow["jobs"]["release"]["steps"][0]["with"] == {"persist-credentials": "false"}


def test_the_actions_are_github_s_own_at_a_major_version(steps):
    used = [step["uses"] for step in steps if "uses" in step]
    assert len(used) == 5
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+(/[a-z]+)?@v\d+", action), action


def test_what_was_kept_is_what_is_brought_back(steps):
    kept = {step["uses"]: step["with"] for step in steps if step.get("uses", "").startswith("actions/cache/")}
    brought, saved = kept["actions/cache/restore@v5"], kept["actions/cache/save@v5"]
    assert (brought["path"], brought["key"]) == (saved["path"], saved["key"])
    assert brought["key"].startswith(brought["restore-keys"])


def test_commands_on_the_page_are_those_of_the_program():
    found = re.findall(r"^quantkit (.+?)(?:  +.*)?$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert found
    for words in found:
        parsed(shlex.split(words))
