"""Release files: what is shipped, what is refused and where, and that editors are told the same."""

import contextlib
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plan.shapes import XGEN_7B, XVERSE_7B, XVERSE_13B_2, XVERSE_13B_CHAT, XWIN_13B, XWIN_70B

from quantkit.errors import BadInputError, QuantkitError
from quantkit.families.gguf import GGUF_FAMILIES
from quantkit.families.llama import LLAMA
from quantkit.formats.mixtures import assign
from quantkit.plan.gguf_rows import gguf_rows
from quantkit.plan.gguf_settings import complete_config
from quantkit.plan.rows import make_plan
from quantkit.plan.target_size import file_bytes
from quantkit.recipe import Gates, Recipe, data_folder
from quantkit.release_file import Check, Push, ReleaseFile, is_repository, load_release, make_release, scheme_of
from quantkit.scheme import load_scheme

RELEASES = data_folder("recipes") / "releases"
SCHEMES = sorted(path.stem for path in data_folder("recipes").glob("*.yaml"))
BASES = {
    "xverse-13b-chat": ("xverse/XVERSE-13B-Chat", XVERSE_13B_CHAT),
    "xverse-13b-2-chat": ("xverse/XVERSE-13B-2-Chat", XVERSE_13B_2),
    "xverse-13b-256k": ("xverse/XVERSE-13B-256K", XVERSE_13B_2),
    "xverse-7b-chat": ("xverse/XVERSE-7B-Chat", XVERSE_7B),
    "xgen-7b-8k-inst": ("Salesforce/xgen-7b-8k-inst", XGEN_7B),
    "xglm-564m": ("facebook/xglm-564M", None),
    "xglm-1.7b": ("facebook/xglm-1.7B", None),
    "xglm-2.9b": ("facebook/xglm-2.9B", None),
    "xglm-4.5b": ("facebook/xglm-4.5B", None),
    "xglm-7.5b": ("facebook/xglm-7.5B", None),
    "xwin-lm-13b": ("Xwin-LM/Xwin-LM-13B-V0.1", XWIN_13B),
    "xwin-lm-70b": ("Xwin-LM/Xwin-LM-70B-V0.1", XWIN_70B),
}
ONE = {"base": "some/model", "variants": [{"recipe": "gptq-int4"}]}


def schema(name):
    return json.loads((data_folder("recipes") / "schema" / f"{name}.schema.json").read_text("utf-8"))


def test_the_release_files_of_the_manual_are_shipped():
    assert {path.stem for path in RELEASES.glob("*.yaml")} == set(BASES)


@pytest.mark.parametrize("name", BASES)
def test_a_shipped_release_file_loads(name):
    release = load_release(name)
    assert release == load_release(RELEASES / f"{name}.yaml")
    assert release.base == BASES[name][0]
    assert (release.revision, release.push) == (None, None)  # no commit of theirs is known, and no publisher
    assert [variant.name for variant in release.variants] == [variant.recipe for variant in release.variants]
    assert release.stream == ("always" if name == "xwin-lm-70b" else "auto")
    first, second, *_ = (RELEASES / f"{name}.yaml").read_text("utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=../schema/release.schema.json"
    assert second.startswith("# For ")


@pytest.mark.parametrize("name", [name for name, (_, shape) in BASES.items() if shape])
def test_the_sizes_in_their_comments_are_the_plans(name):
    shape = BASES[name][1]
    infos = shape.infos()
    text = (RELEASES / f"{name}.yaml").read_text("utf-8")
    told = re.findall(r"recipe: (\S+) +# (\S+) GB", text)
    assert [recipe for recipe, _ in told] == [variant.recipe for variant in load_release(name).variants]
    rows = gguf_rows(LLAMA, GGUF_FAMILIES["llama"], complete_config(LLAMA, shape.config), infos)
    for recipe, size in told:
        scheme = load_scheme(recipe)
        if isinstance(scheme, Recipe):
            found = make_plan(LLAMA, scheme, infos).artifact_bytes
        else:
            types = assign(
                rows, scheme.type, heads=shape.heads, kv_heads=shape.kv_heads, layers=shape.layers,
                architecture="llama", has_importance=scheme.imatrix != "none",
            )  # fmt: skip
            found = file_bytes(rows, types, 0)
        assert size == f"{found / 1e9:.2f}", recipe


def test_every_key_has_its_default():
    release = make_release(ONE, Path())
    assert (release.stream, release.check, release.push) == ("auto", Check(text=("default",), context=None), None)
    push = make_release(ONE | {"push": {"namespace": "me"}}, Path()).push
    assert push == Push(namespace="me", gptq="repositories", private=None, collection=None, tag=None)


def test_paths_start_at_the_release_file(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text("bits: 8\n")
    (tmp_path / "own" / "release.yaml").write_text("base: ../model\nvariants: [{recipe: mine.yaml}]\n")
    monkeypatch.chdir("/")
    release = load_release(tmp_path / "own" / "release.yaml")
    assert release.base == str(tmp_path / "model")
    assert release.variants[0].name == "mine"
    assert scheme_of(release.variants[0]) == Recipe(bits=8)


@pytest.mark.parametrize("base", ["~no-user/model", "./a\0b", "./" + "x" * 5000, "/", "../.."])
def test_a_folder_is_looked_for_when_it_is_opened_and_not_before(base):
    release = make_release(ONE | {"base": base}, Path("some/folder"))
    assert Path(release.base).is_absolute()


def test_gates_of_a_variant_replace_those_of_its_recipe_one_by_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("gates: {max_kl: 0.1, min_top1: 0.9}\n")
    fields = ONE | {"variants": [{"recipe": "mine.yaml", "gates": {"max_kl": 0.2, "max_memory": "8GB"}}]}
    variant = make_release(fields, tmp_path).variants[0]
    assert scheme_of(variant).gates == Gates(max_kl=0.2, min_top1=0.9, max_memory="8GB")
    assert scheme_of(variant).bits == 4


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({}, "release key 'base' is missing", None),
        ({"base": "a/b"}, "release key 'variants' is missing", None),
        (ONE | {"bases": "a/b"}, "unknown release key 'bases'", "did you mean base?"),
        (ONE | {"variant": []}, "unknown release key 'variant'", "did you mean variants?"),
        (ONE | {"variants": []}, "release variants: List should have at least 1 item", None),
        (
            ONE | {"variants": [{"recipe": "gptq-int4"}, {"recip": "x"}]},
            "release key 'variants.1.recipe' is missing",
            None,
        ),
        (
            ONE | {"variants": [{"recipe": "gptq-int4", "gate": {}}]},
            "unknown release key 'variants.0.gate'",
            "did you mean gates?",
        ),
        (
            ONE | {"variants": [{"recipe": "gptq-int4", "gates": {"max_ppl_incr": "2%"}}]},
            "unknown release key 'variants.0.gates.max_ppl_incr'",
            "did you mean max_ppl_increase?",
        ),
        (ONE | {"check": {"texts": ["a"]}}, "unknown release key 'check.texts'", "did you mean text?"),
        (ONE | {"push": {"name_space": "a"}}, "release key 'push.namespace' is missing", None),
        (ONE | {"push": {"namespace": "a", "tags": "a"}}, "unknown release key 'push.tags'", "did you mean tag?"),
        (ONE | {"stream": "yes"}, "release stream: Input should be 'auto', 'always' or 'never', found 'yes'", None),
        (
            ONE | {"base": "model"},
            "release base: expected organisation/name, or a folder that begins with ./, found",
            None,
        ),
        (ONE | {"base": "some/model@v1"}, "release base: expected organisation/name, and what follows @ under", None),
        (ONE | {"base": "https://huggingface.co/some/model"}, "release base: expected organisation/name, or a", None),
        (ONE | {"revision": "../main"}, "release revision: expected a commit, tag or branch, found '../main'", None),
        (ONE | {"revision": 1.0}, "release revision: Input should be a valid string, found 1.0", "put it in quotes"),
        (ONE | {"base": "./model", "revision": "main"}, "the base ./model is a folder, which has no revision", "leave"),
        (ONE | {"push": {"namespace": "my org"}}, "release push.namespace: expected a user or an organisation", None),
        (ONE | {"push": {"namespace": "a", "tag": "v 1"}}, "release push.tag: expected letters, digits", None),
        (
            ONE | {"push": {"namespace": "a", "private": "no"}},
            "release push.private: Input should be a valid bool",
            None,
        ),
        (
            ONE | {"push": {"namespace": "a", "gptq": "branch"}},
            "release push.gptq: Input should be 'repositories' or",
            None,
        ),
        (ONE | {"check": {"context": 1}}, "release check.context: Input should be greater than or equal to 2", None),
        (
            ONE | {"variants": [{"recipe": "gptq-int5"}]},
            "variants.0.recipe: no recipe 'gptq-int5'",
            "did you mean gptq-",
        ),
        (ONE | {"variants": [{"recipe": "no.yaml"}]}, "variants.0.recipe: no file 'no.yaml'", "paths start"),
        (ONE | {"variants": [{"recipe": "~no-user/x.yaml"}]}, "variants.0.recipe: no file '~no-user/x.yaml'", None),
        (ONE | {"variants": [{"recipe": "a\0b.yaml"}]}, "variants.0.recipe: no file ", None),
        (ONE | {"variants": [{"recipe": "x" * 5000 + ".yaml"}]}, "variants.0.recipe: no file ", None),
        (
            ONE | {"variants": [{"recipe": "bad.yaml"}]},
            "variants.0.recipe: bad.yaml: unknown file type 'Q4'",
            "mean Q4_K?",
        ),
        (ONE | {"variants": [{"recipe": "gptq-int4"}] * 2}, "two variants are called 'gptq-int4'", "another name"),
        (
            ONE | {"variants": [{"recipe": "gptq-int4"}, {"recipe": "gptq-int8", "name": "GPTQ-INT4"}]},
            "two variants are called 'gptq-int4'",
            "another name",
        ),
        (
            ONE | {"variants": [{"recipe": "gguf-q8_0"}, {"recipe": "gguf-q8_0", "name": "again"}]},
            "the variants gguf-q8_0 and again both make Q8_0 files",
            "the same",
        ),
        (
            ONE | {"variants": [{"recipe": "gptq-int4", "name": "a/b"}]},
            "release variants.0.name: expected letters",
            None,
        ),
        (ONE | {"variants": [{"recipe": "odd name!.yaml"}]}, "variants.0: 'odd name!' cannot be a name", "of its own"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path, fields, message, hint):
    (tmp_path / "bad.yaml").write_text("method: gguf\ntype: Q4\n")
    (tmp_path / "odd name!.yaml").write_text("bits: 4\n")
    (tmp_path / "my.yaml").write_text(json.dumps(fields))
    with pytest.raises(BadInputError) as caught:
        load_release(tmp_path / "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {message}")
    assert hint is None or hint in (caught.value.hint or "")
    assert str(tmp_path) not in str(caught.value)


def test_an_unknown_release_file_is_refused_with_the_nearest():
    with pytest.raises(BadInputError) as caught:
        load_release("xverse-13b-chap")
    assert str(caught.value) == "no release file 'xverse-13b-chap'"
    assert caught.value.hint.startswith("did you mean xverse-13b-chat? shipped: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some/model", True), ("a/b", True), ("Xwin-LM/Xwin-LM-13B-V0.1", True), ("a_b/c_d", True),
        ("model", False), ("a/b/c", False), ("/b", False), ("a/", False), ("-a/b", False), ("a/b-", False),
        ("a/.b", False), ("a--b/c", False), ("a/b..c", False), ("a/b.git", False), ("a/b c", False), ("é/b", False),
        ("a/" + "b" * 96, True), ("a/" + "b" * 97, False), ("a/b\n", False),
    ],
)  # fmt: skip
def test_repositories_are_named_as_the_hub_names_them(text, expected):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    assert is_repository(text) is expected
    if expected:
        validate_repo_id(text)
    elif "/" in text:
        with pytest.raises(HFValidationError):
            validate_repo_id(text)


@pytest.mark.parametrize("name", SCHEMES)
def test_editors_take_the_shipped_recipes(name):
    fields = yaml.safe_load((data_folder("recipes") / f"{name}.yaml").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema("recipe")).validate(fields)


@pytest.mark.parametrize("name", BASES)
def test_editors_take_the_shipped_release_files(name):
    fields = yaml.safe_load((RELEASES / f"{name}.yaml").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema("release")).validate(fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("recipe", {"bit": 4}), ("recipe", {"bits": 5}), ("recipe", {"method": "gguf", "bits": 4}),
        ("recipe", {"method": "awq"}), ("recipe", {"type": "Q8_0"}), ("recipe", {"calibration": {"sample": 1}}),
        ("recipe", {"method": "gguf", "type": "Q8_0", "imatrix": "maybe"}),
        ("release", {"base": "a/b"}), ("release", ONE | {"variants": []}), ("release", ONE | {"stream": "yes"}),
        ("release", ONE | {"variants": [{"recipe": "x", "gate": 1}]}), ("release", ONE | {"push": {}}),
    ],
)  # fmt: skip
def test_editors_mark_what_would_be_refused(kind, fields):
    validator = jsonschema.Draft202012Validator(schema(kind))
    validator.check_schema(schema(kind))
    assert not validator.is_valid(fields)


@pytest.mark.parametrize("kind", ["recipe", "release"])
def test_every_key_of_a_schema_is_described(kind):
    whole = schema(kind)
    for part in (whole, *whole["$defs"].values()):
        for key, field in part.get("properties", {}).items():
            inherited = "$ref" in field or key == "method"  # described where it is defined
            assert inherited or field["description"], key


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("gptq-int4"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["recipe", "name", "gates", "text", "namespace", "tag", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*ReleaseFile.model_fields, "x"]), VALUES))
def test_no_fields_raise_anything_but_our_own_errors(fields):
    for given_fields in (fields, ONE | fields):
        with contextlib.suppress(QuantkitError):
            make_release(given_fields, Path())
