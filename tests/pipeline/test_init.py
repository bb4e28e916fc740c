"""`quantkit init`: variants for the size of a model, sizes as planned, nothing downloaded, and a file that loads."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from gguf_files import make_experts
from hypothesis import given
from hypothesis import strategies as st
from plan.shapes import XVERSE_13B_CHAT, XWIN_70B

from quantkit.cli import _run
from quantkit.errors import BadInputError, NotFoundError, UsageError
from quantkit.pipeline import gguf_told
from quantkit.pipeline.gguf_convert import ImatrixWish
from quantkit.pipeline.gguf_convert import plan as plan_gguf
from quantkit.pipeline.gguf_job import GgufOptions
from quantkit.pipeline.init import BY_SIZE, draft, recipes_for, write_release
from quantkit.pipeline.init_text import Draft, release_text, scalar
from quantkit.pipeline.job import prepare
from quantkit.pipeline.look import look_for_gguf
from quantkit.release_file import load_release, make_release
from quantkit.scheme import load_scheme
from quantkit.strict_yaml import read_fields

SMALL = ("gptq-int8", "gptq-int4-g32", "gguf-q8_0", "gguf-q4_k_m")
REPO = "some/Tiny-Model"
DRAFT = Draft(
    base="some/model", revision="0" * 39 + "a", architecture="LlamaForCausalLM", parameters=7 * 10**9,
    source_bytes=14 * 10**9, gated=False, licence="mit", licence_files=("LICENSE",), namespace=None,
    sizes={"gptq-int4": 4 * 10**9}, left_out={},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """What transformers is asked in a process of its own is asked here: it is loaded already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gguf_told, "_ask", lambda question, _meanwhile: gguf_told._answer(question))


def files_of(folder):
    return {path.name: path for path in folder.iterdir()}


def small_files(shape, **config):
    """A repository of `.bin` files as large as they are told to be, with a tokenizer that works and no weights."""
    settings = shape.config | {"max_position_embeddings": 4096, "torch_dtype": "bfloat16"} | config
    folder = tiny.make_model(Path("small"))
    index = dict.fromkeys(shape.infos(), "pytorch_model-00001-of-00001.bin")
    kept = {name: path.read_bytes() for name, path in files_of(folder).items() if "tokenizer" in name}
    return kept | {
        "config.json": json.dumps(settings).encode(),
        "pytorch_model.bin.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
        "pytorch_model-00001-of-00001.bin": b"\x80 as torch wrote them before 1.6",
    }


def test_a_repository_is_pinned_and_none_of_its_weights_is_fetched(loopback, hub_client, sources):
    source = sources(layout="sharded")
    files = files_of(source) | {"README.md": b"---\nlicense: llama2\n---\n", "LICENSE.txt": b"as is"}
    commit = loopback.add_repo(REPO, files, gated=True)
    record = write_release(REPO, namespace="me")
    assert record["file"] == "tiny-model.yaml"
    release = load_release("tiny-model.yaml")
    assert (release.base, release.revision, release.stream) == (REPO, commit, "auto")
    assert tuple(variant.recipe for variant in release.variants) == SMALL
    assert release.push.namespace == "me"
    text = Path("tiny-model.yaml").read_text("utf-8")
    assert "# Licence of the base, which goes with what is made of it: llama2 (LICENSE.txt).\n" in text
    assert "# The base is gated: " in text
    shards = {name: path.stat().st_size for name, path in files_of(source).items() if name.startswith("model-0")}
    assert len(shards) == 3
    cached = [path.resolve().stat().st_size for path in Path("cache").rglob("model-0*")]
    assert cached == []


def test_a_revision_becomes_its_commit(loopback, hub_client, sources):
    first = loopback.add_repo(REPO, files_of(sources()))
    loopback.commit(REPO, {"README.md": b"later"})
    assert write_release(f"{REPO}@{first}")["revision"] == first
    assert load_release("tiny-model.yaml").base == REPO
    with pytest.raises(NotFoundError, match="has no revision 'v9'"):
        write_release(f"{REPO}@v9", Path("other.yaml"))
    assert not Path("other.yaml").exists()


def test_predicted_sizes_are_those_of_the_plans(sources):
    source = sources()
    made = draft(str(source), Path())
    assert tuple(made.sizes) == SMALL
    for name, size in made.sizes.items():
        scheme = load_scheme(name)
        if name.startswith("gptq"):
            assert size == prepare(str(source), scheme, device="cpu").plan.artifact_bytes
        else:
            job = plan_gguf(look_for_gguf(str(source)), GgufOptions((scheme.type,)), ImatrixWish())
            assert size == job.outputs[0].nbytes


@pytest.mark.parametrize(
    ("shape", "config", "expected"),
    [
        (
            XVERSE_13B_CHAT,
            {"architectures": ["XverseForCausalLM"], "model_type": "xverse"},
            {"gptq-int4": 8.65, "gptq-int8": 15.05, "gguf-q4_k_m": 8.35, "gguf-q5_k_m": 9.76, "gguf-q8_0": 14.57},
        ),
        (XWIN_70B, {}, {"colab-70b": 36.64, "gguf-q4_k_m": 41.42, "gguf-iq4_xs": 36.84}),
    ],
    ids=["xverse-13b", "xwin-70b"],
)
def test_models_of_the_published_sizes_by_bin_files_alone(loopback, hub_client, shape, config, expected):
    loopback.add_repo("some/large", small_files(shape, **config))
    made = draft("some/large", Path())
    assert {name: round(size / 1e9, 2) for name, size in made.sizes.items()} == pytest.approx(expected, abs=0.021)
    assert made.parameters == sum(info.elements for info in shape.infos().values())
    assert not list(Path("cache").rglob("*.bin"))


def test_a_folder_is_named_from_where_the_file_stands(sources):
    source = sources()
    Path("release").mkdir()
    record = write_release(str(source), Path("release/mine.yaml"))
    release = load_release("release/mine.yaml")
    assert release.base == str(source.resolve())
    assert str(source) not in Path("release/mine.yaml").read_text("utf-8")
    assert (release.revision, record["revision"], release.push) == (None, None, None)


def test_a_mixture_of_experts_becomes_gguf_files_only(sources):
    make_experts(Path("experts"), "MixtralForCausalLM", False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sources() / name, Path("experts") / name)
    record = write_release("experts")
    assert [row["recipe"] for row in record["variants"]] == ["gguf-q8_0", "gguf-q4_k_m"]
    assert [row["recipe"] for row in record["left_out"]] == ["gptq-int8", "gptq-int4-g32"]
    text = Path("experts.yaml").read_text("utf-8")
    assert "# left out: gptq-int8: MixtralForCausalLM is a mixture of experts" in text
    assert [variant.name for variant in load_release("experts.yaml").variants] == ["gguf-q8_0", "gguf-q4_k_m"]


def test_what_llama_cpp_cannot_read_becomes_gptq_only():
    folder = tiny.make_model(Path("model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = draft("model", Path())
    assert tuple(made.sizes) == ("gptq-int8", "gptq-int4-g32")
    assert set(made.left_out) == {"gguf-q8_0", "gguf-q4_k_m"}
    assert len(set(made.left_out.values())) == 1


def test_a_quantized_checkpoint_is_refused():
    tiny.make_model(Path("quantized"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(BadInputError, match="already quantized"):
        draft("quantized", Path())


def test_what_is_damaged_or_lacks_a_tokenizer_is_refused():
    folder = tiny.make_model(Path("model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(BadInputError, match="tokenizer"):
        write_release("model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BadInputError, match="layers"):
        write_release("model")
    assert not Path("model.yaml").exists()


def test_a_file_that_is_there_is_replaced_only_if_asked(loopback, hub_client, sources):
    Path("tiny-model.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"tiny-model\.yaml is there already") as caught:
        write_release(REPO)
    assert "--force" in caught.value.hint
    assert Path("tiny-model.yaml").read_text() == "mine"
    with pytest.raises(UsageError, match="no user or organisation of the Hub: 'a/b'"):
        write_release(REPO, Path("x.yaml"), namespace="a/b")
    assert not loopback.requests  # refused before the Hub is asked
    loopback.add_repo(REPO, files_of(sources()))
    write_release(REPO, force=True)
    assert load_release("tiny-model.yaml").base == REPO


def test_the_command_prints_what_it_wrote_and_what_is_next(sources, capsys):
    source = sources()
    assert _run(["init", str(source), "--out", "mine.yaml"], False) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SMALL)
    assert said.splitlines()[-1] == "next: look at the file, then quantkit release mine.yaml --dry-run"
    assert _run(["init", str(source), "--out", "mine.yaml", "--json", "--force"], False) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema_version"], record["file"]) == (1, "mine.yaml")
    assert [row["recipe"] for row in record["variants"]] == list(SMALL)
    assert _run(["init", str(source), "--out", "mine.yaml"], False) == 2


@pytest.mark.parametrize(
    ("billions", "first"),
    [(0.5, "gptq-int8"), (2.9, "gptq-int8"), (3.0, "gptq-int4"), (34, "gptq-int4"), (69, "colab-70b")],
)
def test_the_size_decides(billions, first):
    assert recipes_for(int(billions * 1e9))[0] == first


def test_the_manual_has_the_same_table():
    page = (Path(__file__).parents[2] / "docs" / "releases.md").read_text("utf-8")
    rows = [line.split("|")[2].strip() for line in page.splitlines() if "billion" in line and line.startswith("|")]
    assert rows == [", ".join(names) for _, names in BY_SIZE]
    for _, names in BY_SIZE:
        make_release({"base": "a/b", "variants": [{"recipe": name} for name in names]}, Path())


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("xverse/XVERSE-13B-Chat", "xverse-13b-chat.yaml"), ("a/B@refs/pr/1", "b.yaml"), ("./My M/", "my m.yaml"),
        ("/models/x@y", "x@y.yaml"), (".", "here.yaml"),
    ],
)  # fmt: skip
def test_the_file_is_named_after_the_model(tmp_path, monkeypatch, reference, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path(name).touch()
    with pytest.raises(UsageError) as caught:
        write_release(reference)
    assert str(caught.value) == f"{name} is there already"


TEXT = st.text(max_size=40)


@given(TEXT, TEXT, st.lists(TEXT, max_size=3), TEXT, st.from_regex(r"\A[0-9a-f]{40}\Z"))
def test_no_text_of_a_stranger_leaves_its_comment(architecture, licence, files, reason, commit):
    made = Draft(**{
        **DRAFT.__dict__, "architecture": architecture, "licence": licence, "licence_files": tuple(files),
        "left_out": {"gptq-int8": reason}, "revision": commit,
    })  # fmt: skip
    text = release_text(made)
    assert yaml.safe_load(text) == {
        "base": "some/model", "revision": commit, "stream": "auto", "variants": [{"recipe": "gptq-int4"}],
        "check": {"text": ["default"]},
    }  # fmt: skip


@given(TEXT.filter(str.isprintable))
def test_a_scalar_is_read_back_as_the_same_text(text):
    assert yaml.safe_load(f"key: {scalar(text)}") == {"key": text}


def test_the_text_of_a_draft(tmp_path):
    text = release_text(DRAFT)
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    assert read_fields(tmp_path / "x.yaml", "release", "")["revision"] == DRAFT.revision
    assert text == (
        "# What to make of some/model: LlamaForCausalLM, 7.00 billion parameters, 14.00 GB.\n"
        "# Licence of the base, which goes with what is made of it: mit (LICENSE).\n"
        "base: some/model\n"
        'revision: "000000000000000000000000000000000000000a"\n'
        "stream: auto\n"
        "variants:  # with the sizes that the plan predicts\n"
        "  - recipe: gptq-int4      # 4.00 GB\n"
        "check:\n"
        "  text: [default]\n"
        "# To publish, name a user or an organisation of yours on the Hub:\n"
        "# push:\n"
        "#   namespace: NAME\n"
    )
