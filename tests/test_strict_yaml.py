"""YAML read strictly: what is refused, where it says the mistake is, and never another exception."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from quantkit.errors import BadInputError, QuantkitError
from quantkit.strict_yaml import MAX_BYTES, checked, did_you_mean, read_fields


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: str
    size: int | None = None


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = "it"
    first: Part | None = None
    parts: tuple[Part, ...] = ()


def read(path, content):
    path.write_bytes(content)
    return read_fields(path, "menu", "soup: hot")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"bits: [4", "mine.yaml is not YAML of a menu: line 1: expected ',' or ']'"),
        (b"bits: \xff", "mine.yaml is not YAML of a menu: 'utf-8' codec"),
        (b"", "mine.yaml: found NoneType, expected keys such as soup: hot"),
        (b"- bits", "mine.yaml: found list, expected keys such as soup: hot"),
        (b"!!python/object/apply:os.getcwd []", "mine.yaml is not YAML of a menu: line 1: could not determine"),
        (b"a: 1\nb: 2\na: 3\n", "mine.yaml is not YAML of a menu: line 3: found the key 'a' twice"),
        (b"a: &x 1\nb: *x\n", "mine.yaml is not YAML of a menu: line 2: found the alias *x"),
        (b"a: " + b"[" * 20 + b"]" * 20, "mine.yaml is not YAML of a menu: line 1: found brackets nested too deeply"),
        (b"when: 2026-02-31\n", "mine.yaml is not YAML of a menu: day"),
        (b"long: " + b"1:" * 200 + b"0.5\n", "mine.yaml is not YAML of a menu: int too large"),
        (b"#" * (MAX_BYTES + 1), f"mine.yaml: found more than {MAX_BYTES} bytes, expected a menu"),
    ],
)
def test_what_is_no_plain_mapping_is_refused(tmp_path, content, message):
    with pytest.raises(BadInputError) as caught:
        read(tmp_path / "mine.yaml", content)
    assert str(caught.value).startswith(message)


def test_plain_data_is_read(tmp_path):
    found = read(tmp_path / "mine.yaml", b"a: 1\nb: [x, 2.5, true, null]\nc: {d: e}\n")
    assert found == {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "e"}}


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"nam": "x"}, "unknown menu key 'nam'", "did you mean name?"),
        ({"first": {"color": "red"}}, "menu key 'first.colour' is missing", None),
        ({"first": {"colour": "red", "seize": 1}}, "unknown menu key 'first.seize'", "did you mean size?"),
        (
            {"parts": [{"colour": "a"}, {"colour": "b", "siz": 1}]},
            "unknown menu key 'parts.1.siz'",
            "did you mean size?",
        ),
        ({"parts": [{"colour": "a", "xyz": 1}]}, "unknown menu key 'parts.0.xyz'", "known: colour, size"),
        ({4: "x"}, "menu key 4 is not text", None),
        ({"first": {4: "x", "colour": "a"}}, "menu key 4 is not text", None),
        ({"name": 1.5}, "menu name: Input should be a valid string, found 1.5", "put it in quotes"),
        ({"name": True}, "menu name: Input should be a valid string, found True", None),
        ({"parts": "x"}, "menu parts: Input should be a list, found 'x'", None),
    ],
)
def test_a_wrong_key_is_named_with_its_place_and_the_nearest_known_one(fields, message, hint):
    with pytest.raises(BadInputError) as caught:
        checked(Whole, fields, "menu")
    assert str(caught.value).replace("a valid list", "a list") == message
    assert caught.value.hint == hint


def test_a_hint_lists_all_names_where_none_is_near():
    assert did_you_mean("soup", ("fish", "soap")) == "did you mean soap?"
    assert did_you_mean("zzz", ("fish", "soap")) == "known: fish, soap"


TEXT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.text(alphabet="name:first parts-colour[]{}&*!?|>'\"\n\t#%@`0123456789.+_xobeEtTzZ~<=", max_size=120).map(
        str.encode
    ),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "some.yaml"


@given(TEXT)
@example(b"a: 0x_\n")
@example(b"a: 0b_\n")
@example(b"a: 2001-12-14t21:59:43.10+99:99\n")
@example(b"a: 0001-01-01t00:00:00+23:59\n")
@example(b"? {a: b}\n: c\n")
@example(b"a: !!set {b, c}\n")
@example(b"a: !!binary '%%%'\n")
@example(b"a: " + b"9" * 5000)
@example(b"\xef\xbb\xbfa: 1\n")
@example(b"a: \x00")
def test_no_file_raises_anything_but_our_own_errors(scratch, content):
    with contextlib.suppress(QuantkitError):
        checked(Whole, read(scratch, content), "menu")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "first", "parts", "colour", "size", "x", 4, None, True]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["name", "first", "parts", "other", 4, None]), PLAIN, max_size=4))
def test_no_fields_raise_anything_but_our_own_errors(fields):
    with contextlib.suppress(QuantkitError):
        checked(Whole, fields, "menu")
