"""A whole release against the loopback Hub: made, checked, published; repeated; refused where a gate does not hold."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import processes
import pytest
import yaml
from huggingface_hub import ModelCard
from processes import Command, contents
from pushable import commits, hashed, held
from releases import BASE, FOUR, NAME, publish_base, quicken, record_of, release_there, write_release

from quantkit.cli import _run

server = processes.server
REPOS = (f"tester/{NAME}-GPTQ-Int8-g32", f"tester/{NAME}-GPTQ-Int4-g32", f"tester/{NAME}-GGUF")
FOLDERS = [repo.partition("/")[2] for repo in REPOS]
KILLS = 10


@pytest.fixture
def quantkit(capfd, monkeypatch):
    """The command in this process: exit code, stdout and stderr."""
    quicken(monkeypatch)

    def call(*arguments):
        capfd.readouterr()
        code = _run([*map(str, arguments), *(["--device", "cpu"] if arguments[0] == "release" else [])], False)
        told = capfd.readouterr()
        return code, told.out, told.err

    return call


def files_of(folder):
    """What a folder holds, without what tells of time; of cards, without the checksums of records that do."""
    found = contents(folder)
    if "README.md" in found:
        found["README.md"] = re.sub(r"[0-9a-f]{64}", "", found["README.md"].decode())
    for name in [name for name in found if name.endswith(".json") and isinstance(found[name], bytes)]:
        record = json.loads(found[name])
        found[name] = {key: value for key, value in record.items() if key not in ("measured", "predicted")}
    found["quantkit.json"] |= {"digest": None, "files": sorted(found["quantkit.json"]["files"])}
    return found


def assert_published(hub, folder, commit):
    """Every repository has one commit with the bytes of its folder, a tag, and its place in the collection."""
    for repo, name in zip(REPOS, FOLDERS, strict=True):
        assert commits(hub, repo) == 1
        local = {
            path.name: path.read_bytes()
            for path in (folder / name).iterdir()
            if not path.name.startswith(".") and path.is_file()
        }
        assert held(hub, repo) == local
        assert hub.repo(repo).tags == {"v1": hub.head(repo)}
        assert json.loads(local["quantkit.json"])["base"]["commit"] == commit
        text = local["README.md"].decode()
        ModelCard(text).validate()
        data = ModelCard(text).data.to_dict()
        assert (data["base_model"], data["license"], data["quantized_by"]) == (BASE, "apache-2.0", "tester")
    (collection,) = hub.collections.values()
    assert sorted(item["id"] for item in collection.items) == sorted(REPOS)


def test_a_release_is_made_published_and_not_made_again(loopback, hub_client, quantkit, tmp_path, monkeypatch):
    commit = publish_base(loopback, tmp_path / "source")
    file, folder = write_release(tmp_path / "files"), tmp_path / "out"
    code, out, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    record = record_of(folder)
    assert (record["status"], record["passed"]) == ("finished", True)
    assert record["base"] == {"name": NAME, "repo": BASE, "commit": commit, "asked": None}
    assert [(one["name"], one["status"]) for one in record["variants"]] == [(name, "published") for name in FOUR]
    assert all(one["url"] in out.replace("\n", "") for one in record["variants"])
    assert_published(loopback, folder, commit)
    # The table of every card has all variants, with the addresses of the others.
    for name in FOLDERS:
        text = (folder / name / "README.md").read_text("utf-8")
        assert all(f"{loopback.url}/{repo}" in text for repo in REPOS if not repo.endswith(name))
    whole = {name: files_of(folder / name) for name in FOLDERS}
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    loopback.log.clear()
    read = hashed(monkeypatch)
    code, again, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    assert again == out
    # Whether the check is of these files, and once more before they are published.
    weights = [path for path in read if path.parent.name in FOLDERS and path.suffix in (".safetensors", ".gguf")]
    assert {weights.count(path) for path in weights} == {2}
    assert "layer" not in err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {name: files_of(folder / name) for name in FOLDERS} == whole
    assert_published(loopback, folder, commit)
    assert not [one for one in loopback.requests if one.method == "PUT" or "/commit/" in one.path]
    assert loopback.token not in err + out
    assert not [path for path in folder.rglob("*") if path.is_file() and loopback.token.encode() in path.read_bytes()]
    assert not [one for one in loopback.requests if one.origin == "cdn" and one.authorized]


def test_what_is_finished_needs_no_weights_of_the_base(loopback, hub_client, quantkit, tmp_path):
    """As on a runner that has kept the folder and not the cache."""
    publish_base(loopback, tmp_path / "source")
    file, folder = write_release(tmp_path / "files", push=False), tmp_path / "out"
    assert quantkit("release", file, "--out", folder)[0] == 0
    whole = {name: files_of(folder / name) for name in FOLDERS}
    shutil.rmtree(tmp_path / "cache")
    loopback.log.clear()
    code, _, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    assert not [one for one in loopback.find("model.safetensors", method="GET") if one.range is None]
    assert {name: files_of(folder / name) for name in FOLDERS} == whole


def test_a_release_killed_at_random_moments_ends_as_one_that_was_not(loopback, hub_client, server, tmp_path):
    commit = publish_base(loopback, tmp_path / "source")
    file = write_release(tmp_path / "files")
    undisturbed = write_release(tmp_path / "other", push=False)

    def start(folder, release):
        return Command(release_there, folder, release, loopback.url, loopback.token, tmp_path / "cache")

    begun = time.perf_counter()
    command = start(tmp_path / "whole", undisturbed)
    assert command.wait() == 0, command.output
    lasted = time.perf_counter() - begun
    fetched = loopback.sent("model.safetensors", "cdn")
    moments = random.Random(67)
    folder, kills = tmp_path / "out", 0
    while kills < KILLS:  # also of a release that is finished, and looks whether it is
        command = start(folder, file)
        command.process.join(moments.uniform(0.02, 0.4) * lasted)
        command.signal(signal.SIGKILL)
        code = command.wait()
        assert code in (0, -signal.SIGKILL), command.output
        kills += code != 0
    command = start(folder, file)
    assert command.wait() == 0, command.output
    assert_published(loopback, folder, commit)
    for name in FOLDERS:
        found, expected = files_of(folder / name), files_of(tmp_path / "whole" / name)
        for one in ("README.md", "quality.svg"):  # the card of a published variant knows its address
            found.pop(one, None), expected.pop(one, None)
        assert found == expected
    objects = [one.path for one in loopback.requests if one.method == "PUT" and one.status == 200]
    assert len(objects) == len(set(objects)), "an object was uploaded twice"
    assert loopback.sent("model.safetensors", "cdn") == fetched, "the base was downloaded twice"
    assert not list(folder.rglob("*.partial"))


def test_a_gate_that_does_not_hold_stops_its_variant_alone(loopback, hub_client, quantkit, tmp_path, monkeypatch):
    publish_base(loopback, tmp_path / "source")
    file, folder = write_release(tmp_path / "files"), tmp_path / "out"
    content = yaml.safe_load(file.read_text()) | {"push": {"namespace": "tester"}}
    for number in (1, 3):  # int4 and q4
        content["variants"][number]["gates"] = {"max_kl": 0.0}
    file.write_text(yaml.safe_dump(content))
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, out, err = quantkit("release", file, "--out", folder, "--on", "github")
    assert code == 8
    record = record_of(folder)
    assert [one["status"] for one in record["variants"]] == ["published", "did not pass", "published", "did not pass"]
    assert not record["passed"]
    assert re.search(r"^quantkit: int4: mean KL divergence .*, allowed 0\.0000\. q4: ", err, re.MULTILINE)
    assert re.search(r"^::error title=int4 did not pass::mean KL divergence", err, re.MULTILINE)
    assert f"::notice title=int8::{loopback.url}/{REPOS[0]}" in err
    assert "| q4 | " in summary.read_text()
    assert "did not pass" in out
    assert {name for _, name in loopback.repos} == {BASE, REPOS[0], REPOS[2]}
    assert sorted(name for name in held(loopback, REPOS[2]) if name.endswith(".gguf")) == [f"{NAME}-115K-Q8_0.gguf"]
    # Gates that are loosened let them pass: nothing is measured or made again, a commit publishes what was missing.
    file.write_text(yaml.safe_dump(content | {"variants": [{"recipe": f"{name}.yaml"} for name in FOUR]}))
    code, out, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    assert "layer" not in err
    assert [one["status"] for one in record_of(folder)["variants"]] == ["published"] * 4
    assert [commits(loopback, repo) for repo in REPOS] == [2, 1, 2]
    assert len([name for name in held(loopback, REPOS[2]) if name.endswith(".gguf")]) == 2
    assert not (folder / "did-not-pass").exists()


def test_an_imatrix_comes_from_the_pass_of_gptq(loopback, hub_client, quantkit, tmp_path):
    publish_base(loopback, tmp_path / "source")
    file = write_release(tmp_path / "files", ("int4", "iq4"), push=False)
    folder = tmp_path / "out"
    code, _, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    (imatrix,) = (folder / f"{NAME}-GGUF").glob("*imatrix.gguf")
    record = json.loads(next((folder / f"{NAME}-GGUF").glob("*.quantkit.json")).read_bytes())
    assert record["imatrix"]["file"] == imatrix.name or imatrix.name in json.dumps(record["imatrix"])
    assert err.count("calibration: ") == 1  # one pass over the text


def test_a_dry_run_shows_everything_and_writes_nothing(loopback, hub_client, quantkit, tmp_path):
    publish_base(loopback, tmp_path / "source")
    file, folder = write_release(tmp_path / "files"), tmp_path / "out"
    code, out, err = quantkit("release", file, "--out", folder, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert [one["repo"] for one in plan["variants"]] == [*REPOS, REPOS[2]]
    assert not folder.exists()
    assert not [one for one in loopback.requests if one.method != "GET" and one.method != "HEAD"]
    code, out, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    record = record_of(folder)
    assert [one["bytes"] for one in record["variants"]] == [one["bytes"] for one in plan["variants"]]
    made = [Path(one["path"]) for one in plan["variants"]]
    assert [(folder / one["path"]) for one in record["variants"]] == made
    for one, path in zip(plan["variants"], made, strict=True):
        files = [path] if path.is_file() else path.glob("*.safetensors")
        assert sum(file.stat().st_size for file in files) == pytest.approx(one["bytes"], rel=0.1)


def test_variants_as_branches_of_one_repository(loopback, hub_client, quantkit, tmp_path):
    publish_base(loopback, tmp_path / "source")
    push = {"namespace": "tester", "gptq": "branches"}
    file = write_release(tmp_path / "files", ("int8", "int4"), push=push)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"push": push}))
    code, _, err = quantkit("release", file, "--out", tmp_path / "out")
    assert code == 0, err
    repo = loopback.repo(f"tester/{NAME}-GPTQ")
    assert sorted(repo.branches) == ["gptq-4bit-32g-actorder_True", "main"]
    text = (tmp_path / "out" / FOLDERS[0] / "README.md").read_text()
    assert "tree/gptq-4bit-32g-actorder_True" in text


def test_a_base_that_moved_is_continued_at_the_commit_of_the_first_run(loopback, hub_client, quantkit, tmp_path):
    first = publish_base(loopback, tmp_path / "source")
    file, folder = write_release(tmp_path / "files", ("int8",), push=False), tmp_path / "out"
    assert quantkit("release", file, "--out", folder)[0] == 0
    loopback.commit(BASE, {"README.md": b"---\nlicense: mit\n---\n"})
    code, _, err = quantkit("release", file, "--out", folder)
    assert code == 0, err
    assert record_of(folder)["base"]["commit"] == first
    assert "layer" not in err
    code, _, err = quantkit("release", file, "--out", folder, "--restart")
    assert code == 0, err
    assert record_of(folder)["base"]["commit"] == loopback.head(BASE) != first


def test_a_streamed_release_holds_two_shards_and_crosses_as_often_as_planned(loopback, hub_client, quantkit, tmp_path):
    publish_base(loopback, tmp_path / "source")
    streamed = write_release(tmp_path / "files", push=False, stream="always")
    code, out, err = quantkit("release", streamed, "--out", tmp_path / "dry", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["streamed"]
    code, _, err = quantkit("release", streamed, "--out", tmp_path / "streamed")
    assert code == 0, err
    size = (tmp_path / "source" / "model.safetensors").stat().st_size
    assert loopback.sent("model.safetensors") // size <= plan["download_bytes"] // size + 1  # headers are read, too
    assert not list((tmp_path / "streamed").rglob("*.partial"))
    plain = write_release(tmp_path / "plain", push=False)
    assert quantkit("release", plain, "--out", tmp_path / "whole")[0] == 0
    for name in FOLDERS:
        found, expected = files_of(tmp_path / "streamed" / name), files_of(tmp_path / "whole" / name)
        del found["README.md"], expected["README.md"]  # it has the sizes of records that tell of time
        assert found == expected


WRONG = [
    (["release", "nothing"], 3, "no release file"),
    (["release", "{file}", "--only", "int3"], 2, "no variant is called 'int3'"),
    (["release", "{file}", "--on", "gitlab"], 2, "--on 'gitlab' is not known"),
    (["release", "{file}", "--namespace", "a b"], 2, "namespace"),
]


@pytest.mark.parametrize(("arguments", "expected", "sentence"), WRONG)
def test_what_is_wrong_is_said_in_a_sentence(loopback, hub_client, quantkit, tmp_path, arguments, expected, sentence):
    publish_base(loopback, tmp_path / "source")
    file = write_release(tmp_path / "files")
    code, _, err = quantkit(*[one.format(file=file) for one in arguments], "--out", tmp_path / "out")
    assert code == expected
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_release_is_refused(loopback, hub_client, quantkit, tmp_path):
    publish_base(loopback, tmp_path / "source")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "release.json").write_text(json.dumps({"base": {"name": "other", "asked": None, "commit": None}}))
    code, _, err = quantkit("release", write_release(tmp_path / "files"), "--out", folder)
    assert code == 3
    assert f"holds the release of other, the file names {BASE}" in err
