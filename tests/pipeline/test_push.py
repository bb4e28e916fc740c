"""Pushing real artifacts to the loopback Hub: what goes, what is refused, and that repeating it does nothing."""

import getpass
import hashlib
import json
import re
import socket
from pathlib import Path

import pushable
import pytest
from artifacts import Recorder
from gguf_runs import asked_here, converted
from huggingface_hub import ModelCard
from pushable import REPO, checked, commits, contents, hashed, held, make_gated, uploads, without_check

from quantkit.errors import BadInputError, NotFoundError, QualityError, UsageError
from quantkit.pipeline.push import PushOptions, description, prepare, run
from quantkit.pipeline.push_options import branch_name
from quantkit.pipeline.release_aside import set_aside, take_back
from quantkit.weights.gguf_names import gguf_stem

pytestmark = pytest.mark.usefixtures("hub_client")
gptq_made, gguf_made, gptq, gguf = pushable.gptq_made, pushable.gguf_made, pushable.gptq, pushable.gguf


class Watching(Recorder):
    """Remembers how many bytes are said to have been sent."""

    def __init__(self):
        super().__init__()
        self.uploaded = []

    def transfer(self, done, total, what="download"):
        self.uploaded.append((done, total, what))


def push(folder, repo=REPO, progress=None, **options):
    return run(prepare(folder, repo, PushOptions(**options)), progress)


def test_a_gptq_checkpoint_comes_back_as_it_went(loopback, hub_client, gptq, tmp_path):
    progress = Watching()
    record = push(gptq, progress=progress)
    expected = contents(gptq)
    assert held(loopback) == expected
    assert commits(loopback) == 1
    assert {key: record[key] for key in ("repo", "branch", "commit", "changed", "private", "tag", "collection")} == {
        "repo": REPO, "branch": "main", "commit": loopback.head(REPO), "changed": True, "private": False, "tag": None,
        "collection": None,
    }  # fmt: skip
    assert [file["name"] for file in record["files"]][-2:] == ["README.md", "config.json"]
    assert {file["name"]: file["bytes"] for file in record["files"]} == {
        name: len(data) for name, data in expected.items()
    }
    assert any(line.startswith("model-00001-of-00002.safetensors: ") for line in progress.said)
    weights = sum(len(data) for name, data in expected.items() if name.endswith(".safetensors"))
    assert progress.uploaded[-1] == (weights, weights, "upload")
    assert [done for done, _, _ in progress.uploaded] == sorted(done for done, _, _ in progress.uploaded)
    back = Path(hub_client.snapshot_download(REPO, local_dir=tmp_path / "back"))
    assert {
        path.name: path.read_bytes() for path in back.iterdir() if path.is_file() and path.name[0] != "."
    } == expected
    ModelCard(expected["README.md"].decode()).validate()


def test_repeating_it_changes_nothing(loopback, gptq):
    first = push(gptq, tag="v1", collection="Models, quantized")
    loopback.log.clear()
    second = push(gptq, tag="v1", collection="Models, quantized")
    assert not second["changed"]
    assert second["commit"] == first["commit"]
    assert commits(loopback) == 1
    assert not uploads(loopback)
    assert loopback.repo(REPO).tags == {"v1": first["commit"]}
    assert [len(one.items) for one in loopback.collections.values()] == [1]


def test_a_card_for_another_repository_is_told_as_it_is(loopback, gptq):
    """The card and the manifest of the first push are there already, with other bytes."""
    push(gptq)
    record = push(gptq, "tester/other")
    assert {file["name"]: file["sha256"] for file in record["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in held(loopback, "tester/other").items()
    }


def test_every_byte_of_an_artifact_is_read_once_for_its_hash(loopback, gptq, gguf, monkeypatch):
    read = hashed(monkeypatch)
    for folder in (gptq, gguf):
        weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
        prepare(folder, REPO)
        assert [read.count(path) for path in weights] == [1, 1]


def test_gguf_models(loopback, gguf):
    record = push(gguf)
    assert held(loopback) == contents(gguf)
    assert commits(loopback) == 1
    names = [file["name"] for file in record["files"]]
    assert [name for name in names if name.endswith(".gguf")] == names[:2]
    assert sum(name.endswith(".check.json") for name in names) == 2


def test_another_push_replaces_what_is_stale(loopback, gptq):
    push(gptq)
    owners = {"notes.md": b"of the owner", "model-00003-of-00003.safetensors": b"old", "chat_template.jinja": b"old"}
    loopback.commit(REPO, owners | {"LICENSE": b"own", "photo.png": b"own", "README.md": b"edited"})
    job = prepare(gptq, REPO)
    assert description(job)["removed"] == ["chat_template.jinja", "model-00003-of-00003.safetensors"]
    run(job)
    kept = {"notes.md": b"of the owner", "LICENSE": b"own", "photo.png": b"own"}
    assert held(loopback) == contents(gptq) | kept


def test_other_gguf_models_stay(loopback, gguf):
    stem = next(gguf.glob("*Q4_0.gguf")).name.removesuffix(".gguf")
    loopback.add_repo(REPO, {"other-Q2_K.gguf": b"other", f"{stem}-00002-of-00002.gguf": b"split once"})
    assert description(prepare(gguf, REPO))["removed"] == [f"{stem}-00002-of-00002.gguf"]
    push(gguf)
    assert held(loopback) == contents(gguf) | {"other-Q2_K.gguf": b"other"}


def test_a_variant_on_its_own_branch(loopback, gptq):
    push(gptq)
    record = push(gptq, branch="auto")
    assert record["branch"] == "gptq-8bit-32g-actorder_True"
    assert record["url"].endswith("/tester/model/tree/gptq-8bit-32g-actorder_True")
    assert held(loopback, branch=record["branch"]) == contents(gptq)
    assert commits(loopback, branch=record["branch"]) == 1
    assert not push(gptq, branch=record["branch"])["changed"]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ({"bits": 4, "group_size": 128, "act_order": "static"}, "gptq-4bit-128g-actorder_True"),
        ({"bits": 4, "group_size": 32, "act_order": "full"}, "gptq-4bit-32g-actorder_True"),
        ({"bits": 8, "group_size": -1, "act_order": "none"}, "gptq-8bit--1g-actorder_False"),
    ],
)
def test_names_of_branches(recipe, name):
    assert branch_name({"recipe": recipe}) == name


# --- the gate


def test_without_a_check(loopback, gptq):
    without_check(gptq)
    with pytest.raises(QualityError, match=r"has no check\.json: it was not checked") as caught:
        push(gptq)
    assert "--force" in caught.value.hint
    assert caught.value.exit_code == 8
    assert not loopback.repos
    assert not (gptq / "README.md").exists()
    job = prepare(gptq, REPO, PushOptions(force=True))
    assert any("published with --force" in note for note in job.notes)
    run(job)
    assert held(loopback) == contents(gptq)


def test_with_a_failed_check(loopback, gptq, sources):
    checked(sources("llama"), gptq, passes=False)
    with pytest.raises(QualityError, match="the check did not pass"):
        push(gptq)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_with_a_file_that_changed_after_the_check(loopback, gptq, name):
    raw = bytearray((gptq / name).read_bytes())
    raw[-5] ^= 1
    (gptq / name).write_bytes(raw)
    with pytest.raises(QualityError, match=f"{name} has changed since the check") as caught:
        push(gptq)
    assert f"{name} is not the file that the run made" in str(caught.value)
    assert not loopback.repos


def test_with_another_file_of_the_manifest(gptq):
    (gptq / "generation_config.json").write_text("{}")
    with pytest.raises(QualityError, match=r"generation_config\.json is not the file that the run made"):
        push(gptq)


def test_one_of_two_gguf_models_was_not_checked(gguf):
    next(gguf.glob("*Q4_0.check.json")).unlink()
    with pytest.raises(QualityError, match=r"Q4_0\.gguf has no \S+Q4_0\.check\.json"):
        push(gguf)


# --- what is no whole artifact


def test_folders_that_are_no_artifacts(tmp_path, gptq, gguf):
    with pytest.raises(BadInputError, match="is not a folder"):
        push(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="no finished artifact"):
        push(tmp_path / "empty")
    (gptq / ".model-00001-of-00002.safetensors.partial").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"is not finished: it holds \.model-00001"):
        push(gptq)
    record = next(gguf.glob("*Q4_0.quantkit.json"))
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"status": "writing"}))
    with pytest.raises(BadInputError, match=r"is not finished: see \S+Q4_0\.quantkit\.json"):
        push(gguf)
    record.unlink()
    with pytest.raises(BadInputError, match=r"Q4_0\.gguf has no record"):
        push(gguf)


def test_a_folder_without_a_manifest(gptq):
    (gptq / "quantkit.json").unlink()
    with pytest.raises(BadInputError, match=r"model-GPTQ-Int8 has no quantkit\.json"):
        push(gptq, force=True)


def test_a_gptq_folder_whose_run_is_not_finished(gptq):
    told = json.loads((gptq / "run.json").read_text())
    (gptq / "run.json").write_text(json.dumps(told | {"status": "running"}))
    with pytest.raises(BadInputError, match="no finished run"):
        push(gptq)
    (gptq / "config.json").unlink()
    with pytest.raises(BadInputError, match="no finished artifact"):
        push(gptq)


def test_a_gguf_file_that_is_gone(gguf):
    next(gguf.glob("*Q4_0.gguf")).unlink()
    with pytest.raises(BadInputError, match=r"is not whole: expected \S+Q4_0\.gguf"):
        push(gguf)


# --- names, tags, who may


@pytest.mark.parametrize(
    ("repo", "options", "message"),
    [
        ("model", {}, "no repository name"),
        ("a/b/c", {}, "no repository name"),
        ("a/b@main", {}, "no repository name"),
        ("a/b--c", {}, "no repository name"),
        (f"a/{'b' * 95}", {}, "no repository name"),
        ("a/b", {"branch": "-x"}, "--branch: '-x'"),
        ("a/b", {"branch": "a..b"}, "--branch"),
        ("a/b", {"tag": "v 1"}, "--tag: 'v 1'"),
        ("a/b", {"tag": "x.lock"}, "--tag"),
        ("a/b", {"collection": " "}, "--collection"),
        ("a/b", {"collection": "t" * 60}, "--collection"),
    ],
)
def test_names_that_the_hub_does_not_take(loopback, tmp_path, repo, options, message):
    with pytest.raises(UsageError, match=message):
        push(tmp_path, repo, **options)
    assert not loopback.requests


def test_a_gguf_artifact_has_no_branch_of_its_own(gguf):
    with pytest.raises(UsageError, match="--branch auto is for GPTQ"):
        push(gguf, branch="auto")


def test_a_tag_is_never_moved(loopback, gptq):
    loopback.add_repo(REPO, {})
    old = loopback.head(REPO)
    loopback.repo(REPO).tags["v1"] = old
    with pytest.raises(UsageError, match=f"has the tag v1 on another commit, {old[:12]}"):
        push(gptq, tag="v1")
    assert not uploads(loopback)
    record = push(gptq, tag="v2")
    assert loopback.repo(REPO).tags == {"v1": old, "v2": record["commit"]}


def test_a_user_who_may_not(loopback, gptq, monkeypatch):
    with pytest.raises(NotFoundError, match="tester may not write to others"):
        push(gptq, "others/model")
    monkeypatch.setenv("HF_TOKEN", loopback.read_token)
    with pytest.raises(NotFoundError, match="may read only"):
        push(gptq)
    assert not loopback.repos


# --- private and public


def test_private_where_the_base_is_gated(loopback, gptq):
    make_gated(gptq)
    job = prepare(gptq, REPO)
    assert "private, because the base model is gated" in job.notes
    assert run(job)["private"]
    assert loopback.repo(REPO).private
    assert not push(gptq)["changed"]


def test_public_although_the_base_is_gated(loopback, gptq):
    make_gated(gptq)
    job = prepare(gptq, REPO, PushOptions(private=False))
    assert any("--public was given" in note for note in job.notes)
    assert not run(job)["private"]


def test_a_public_repository_that_should_be_private(loopback, gptq):
    loopback.add_repo(REPO, {})
    with pytest.raises(UsageError, match="is public, and --private was given"):
        push(gptq, private=True)
    make_gated(gptq)
    with pytest.raises(UsageError, match="is public, and the base model is gated"):
        push(gptq)
    push(gptq, private=False)
    assert held(loopback) == contents(gptq)


def test_a_private_repository_stays_private(loopback, gptq):
    push(gptq, private=True)
    job = prepare(gptq, REPO, PushOptions(private=False))
    assert any("stays so" in note for note in job.notes)
    assert run(job)["private"]


# --- nothing local, no token


def test_nothing_local_is_published(loopback, gptq, gguf):
    push(gptq)
    push(gguf, "tester/gguf")
    words = "|".join(map(re.escape, (socket.gethostname(), getpass.getuser())))
    own = [str(gptq.parent), str(Path.home()), loopback.token]
    for repo in (REPO, "tester/gguf"):
        for name, data in held(loopback, repo).items():
            text = data.decode("utf-8", "replace")
            assert not [one for one in own if one in text], name
            is_text = not name.endswith((".gguf", ".safetensors", "tokenizer.json"))
            assert not (is_text and re.search(rf"\b({words})\b", text)), name


@pytest.mark.parametrize("name", ["check.json", "tokenizer_config.json", "LICENSE.txt"])
def test_a_token_in_a_file_is_refused(loopback, gptq, name):
    for secret in (loopback.token, "hf_" + "a1" * 17):
        (gptq / name).write_text(json.dumps({"note": secret}))
        with pytest.raises(BadInputError, match=f"{name} holds a token of the Hub") as caught:
            push(gptq, force=True)
        assert secret not in f"{caught.value} {caught.value.hint}"
    assert not loopback.repos


def test_a_local_path_in_a_record_is_refused(loopback, gptq):
    told = json.loads((gptq / "run.json").read_text())
    (gptq / "run.json").write_text(json.dumps(told | {"notes": [str(gptq / "x")]}))
    with pytest.raises(BadInputError, match=r"run\.json names a folder of this machine"):
        push(gptq, force=True)


def test_what_does_not_belong_to_the_artifact_stays_here(loopback, gptq):
    (gptq / "diary.txt").write_text("private")
    (gptq / ".hidden").write_text("private")
    (gptq / "script.py").write_text("private")
    (gptq / "sub").mkdir()
    (gptq / "sub" / "model.safetensors").write_text("private")
    job = prepare(gptq, REPO)
    assert "stays here: diary.txt, script.py" in job.notes
    run(job)
    assert not {"diary.txt", ".hidden", "script.py", "sub/model.safetensors"} & set(held(loopback))


def test_the_token_stays_between_us_and_the_hub(loopback, gptq):
    push(gptq, tag="v1", collection="Quantized")
    puts = [request for request in loopback.requests if request.origin == "cdn"]
    assert puts
    assert not any(request.authorized for request in puts)
    assert not any(loopback.token in f"{request.path}{request.query}" for request in loopback.requests)


# --- dry run


def test_a_dry_run_changes_nothing(loopback, gptq, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    before = contents(gptq)
    job = prepare(gptq, REPO, dry_run=True)
    plan = description(job)
    assert contents(gptq) == before
    assert {request.method for request in loopback.requests} == {"GET"}
    assert not plan["exists"]
    assert {file["name"] for file in plan["files"]} == {*before, "README.md"}
    assert all(file["differs"] for file in plan["files"])
    assert job.card.startswith("---\n")


def test_a_dry_run_of_what_is_there(loopback, gptq):
    push(gptq)
    assert not any(file["differs"] for file in description(prepare(gptq, REPO, dry_run=True))["files"])


def test_a_split_model_goes_with_its_record_and_its_check(loopback, sources, tmp_path, monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)
    folder = tmp_path / "model-GGUF"
    converted(sources("llama"), folder, "Q8_0", split_max_size="300kB")
    first = next(folder.glob("*-00001-of-*.gguf"))
    checked(sources("llama"), first)
    push(folder)
    assert held(loopback) == contents(folder)
    names = set(held(loopback))
    assert {first.name, f"{gguf_stem(first)}.check.json", f"{first.name.removesuffix('.gguf')}.quantkit.json"} <= names
    push(folder)
    assert commits(loopback) == 1
    checked(sources("llama"), first, passes=False)
    assert set_aside(folder, {}) == [gguf_stem(first)]
    assert not list(folder.glob("*Q8_0*"))
    take_back(folder)
    assert {path.name for path in folder.iterdir()} >= names - {"README.md", "quality.svg"}
