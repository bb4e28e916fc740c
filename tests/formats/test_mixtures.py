"""Type mixtures are llama.cpp's: every tensor of every recorded answer; and the wishes and refusals of users."""

import functools
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.formats.ggml.native import NATIVE_TYPES
from quantkit.formats.mixture_tables import FALLBACKS, FTYPES, NEED_IMPORTANCE
from quantkit.formats.mixtures import (
    assign,
    file_order,
    ftype_named,
    kind_of,
    parse_override,
    refuse_without_importance,
    without_importance,
)
from quantkit.weights.gguf_types import GGML_TYPES

RECORD = json.loads((Path(__file__).parent / "mixtures.json").read_text("utf-8"))  # by scripts/llamacpp_mixtures.py
MODELS = sorted(RECORD["models"])


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]


def spread(model):
    """Every tensor of a recorded model, and for each the row of `tensors` and the layer that it stands for."""
    for row, (name, shape) in enumerate(model["tensors"].items()):
        for layer in range(model["layers"]) if "*" in name else range(1):
            yield Tensor(name.replace("*", str(layer)), tuple(shape)), row, layer


def decoded(model, answer):
    """Tensor name -> ggml type."""
    words = answer.split(" ")
    return {
        tensor.name: RECORD["codes"][words[row][layer if len(words[row]) > 1 else 0]]
        for tensor, row, layer in spread(model)
    }


@functools.cache
def own(name, ftype, has_importance=False, overrides=(), seed=None):
    model = RECORD["models"][name]
    tensors = [tensor for tensor, _, _ in spread(model)]
    if seed is not None:
        random.Random(seed).shuffle(tensors)
    hyperparameters = {key: model[key] for key in ("heads", "kv_heads", "layers", "experts", "architecture")}
    types = assign(tensors, ftype, **hyperparameters, has_importance=has_importance, overrides=overrides)
    return tensors, types


def as_dict(tensors, types):
    return {tensor.name: chosen for tensor, chosen in zip(tensors, types, strict=True)}


def test_the_table_has_llama_cpp_s_file_types_and_their_numbers():
    assert {name: ftype.number for name, ftype in FTYPES.items()} == RECORD["ftypes"]


def test_the_record_is_of_every_file_type_for_every_model():
    for name in MODELS:
        assert {key.split(" ")[0] for key in RECORD["answers"][name]} == set(FTYPES)


@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_llama_cpp(name):
    model, answers = RECORD["models"][name], RECORD["answers"][name]
    for ftype in FTYPES:
        for has_importance in (False, True):
            answer = answers.get(f"{ftype} +imatrix", answers[ftype]) if has_importance else answers[ftype]
            expected = decoded(model, answer)
            found = as_dict(*own(name, ftype, has_importance))
            different = {
                tensor: (found[tensor], expected[tensor]) for tensor in expected if found[tensor] != expected[tensor]
            }
            assert not different, f"{ftype}, importance {has_importance}"


@pytest.mark.parametrize("name", MODELS)
def test_refusals_without_an_importance_matrix_are_those_of_llama_cpp(name):
    refused = []
    for ftype in FTYPES:
        tensors, types = own(name, ftype)
        if without_importance(tensors, types, ftype, known=()):
            refused.append(ftype)
    assert sorted(refused) == sorted(RECORD["refused"][name])


@pytest.mark.parametrize("case", RECORD["overrides"], ids=lambda case: f"{case[0]}-{case[1]}-{case[2][0][0]}")
def test_overrides_do_what_llama_cpp_does(case):
    name, ftype, wishes, answer = case
    overrides = tuple(map(tuple, wishes))
    if ftype == "F16":  # llama.cpp passes over the wish in silence
        with pytest.raises(UsageError, match="--tensor-type changes nothing in a file of type F16"):
            own(name, ftype, overrides=overrides)
        assert decoded(RECORD["models"][name], answer) == as_dict(*own(name, ftype))
    else:
        found = as_dict(*own(name, ftype, overrides=overrides))
        assert found == decoded(RECORD["models"][name], answer)
        assert found != as_dict(*own(name, ftype))


@pytest.mark.parametrize("ftype", ["Q4_K_M", "Q3_K_M", "IQ2_M"])
def test_the_order_in_which_tensors_are_given_does_not_matter(ftype):
    in_order = as_dict(*own("60-experts", ftype))
    assert as_dict(*own("60-experts", ftype, seed=0)) == in_order


def test_names_sort_as_in_llama_cpp_s_files():
    names = ["blk.10.attn_q.weight", "token_embd.weight", "blk.2.ffn_up.weight", "output.weight", "blk.2.attn_q.weight"]
    assert sorted(names, key=file_order) == [names[3], names[1], names[4], names[2], names[0]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("token_embd.weight", "token_embd"),
        ("token_embd_norm.weight", "other"),
        ("output_norm.weight", "other"),
        ("blk.0.attn_output.weight", "attn_output"),
        ("blk.0.attn_qkv.weight", "attn_v"),
        ("blk.0.attn_v.bias", "other"),
        ("blk.0.ffn_gate_up_exps.weight", "ffn_gate"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_a_matrix_of_one_row_and_what_is_no_weight_stay_f32():
    tensors = [
        Tensor("blk.0.ffn_gate_inp_shexp.weight", (1, 256)),
        Tensor("blk.0.ffn_gate_exps.bias", (8, 256)),
        Tensor("blk.0.attn_q.weight", (256, 256)),
        Tensor("blk.0.attn_sinks", (4,)),
        Tensor("scale.weight", ()),
    ]
    types = assign(tensors, "Q8_0", heads=4, kv_heads=4, layers=1, architecture="llama", has_importance=False)
    assert types == ("F32", "F32", "Q8_0", "F32", "F32")


def test_every_type_that_a_mixture_names_is_known_and_has_a_way_out_of_odd_shapes():
    for ftype in FTYPES.values():
        for name in ftype.types:
            assert GGML_TYPES[name].block <= 32 or name in FALLBACKS
    assert all(GGML_TYPES[name].block <= 32 for name in FALLBACKS.values())


def test_which_file_types_need_ggml():
    needing = {name for name, ftype in FTYPES.items() if ftype.default in NATIVE_TYPES}
    assert needing == {
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M",
        "TQ1_0", "TQ2_0", "MXFP4_MOE",
    }  # fmt: skip
    for name in set(FTYPES) - needing:
        assert not FTYPES[name].types & set(NATIVE_TYPES)
    assert set(NATIVE_TYPES) > NEED_IMPORTANCE


def test_a_type_below_three_bits_is_refused_where_nothing_is_known_of_a_tensor():
    tensors, types = own("shallow", "IQ2_XS", has_importance=True)
    message = "IQ2_XS needs an importance matrix, and none is there for blk.0.attn_q.weight, which would be IQ2_XS"
    with pytest.raises(UsageError, match=message) as caught:
        refuse_without_importance(tensors, types, "IQ2_XS", known=())
    assert "--imatrix auto" in caught.value.hint
    lacking = set(without_importance(tensors, types, "IQ2_XS", known=()))
    assert "token_embd.weight" not in lacking
    refuse_without_importance(tensors, types, "IQ2_XS", known=lacking)
    with pytest.raises(UsageError, match=r"for blk\.1\.ffn_up\.weight"):
        refuse_without_importance(tensors, types, "IQ2_XS", known=lacking - {"blk.1.ffn_up.weight"})


def test_q2_k_needs_importance_in_q2_k_s_alone():
    tensors = [Tensor("blk.0.attn_q.weight", (256, 256)), Tensor("output.weight", (256, 256))]
    assert without_importance(tensors, ("Q2_K", "Q2_K"), "Q2_K", ()) == ()
    assert without_importance(tensors, ("Q2_K", "Q2_K"), "Q2_K_S", ()) == ("blk.0.attn_q.weight",)


@pytest.mark.parametrize(
    ("typed", "meant"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("q3_k", "Q3_K_M"), ("bf16", "BF16")]
)
def test_file_types_as_users_write_them(typed, meant):
    assert ftype_named(typed) == meant


def test_an_unknown_file_type_is_refused_with_all_that_are_known():
    with pytest.raises(UsageError, match="unknown file type 'Q4_K_XL'") as caught:
        ftype_named("Q4_K_XL")
    assert "Q4_K_M" in caught.value.hint


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("attn_v=q8_0", ("attn_v", "Q8_0")),
        (r"BLK\.[0-3]\.ffn_down=IQ4_xs", (r"blk\.[0-3]\.ffn_down", "IQ4_XS")),
        ("token_embd=f16", ("token_embd", "F16")),
    ],
)
def test_overrides_as_users_write_them(typed, meant):
    assert parse_override(typed) == meant


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("attn_v", "not REGEX=TYPE: 'attn_v'"),
        ("=Q8_0", "not REGEX=TYPE"),
        ("attn_v=", "not REGEX=TYPE"),
        ("attn_v=Q9_0", "unknown tensor type 'Q9_0'"),
        ("attn_v=I32", "unknown tensor type 'I32'"),
        ("attn_v=Q4_K_M", "unknown tensor type 'Q4_K_M'"),
        (r"\D=Q8_0", "means something else in lower case"),
        ("attn_(v=Q8_0", "not a regular expression: 'attn_\\(v'"),
    ],
)
def test_wrong_overrides_are_refused(typed, message):
    with pytest.raises(UsageError, match=message):
        parse_override(typed)


def test_an_architecture_with_rules_of_its_own_is_refused():
    with pytest.raises(BadInputError, match="architecture falcon are not known"):
        assign([], "Q4_K_M", heads=1, kv_heads=1, layers=1, architecture="falcon", has_importance=False)


@pytest.mark.parametrize("name", ["ffn_down_exps.weight", "blk.2.ffn_down_exps.weight"])
def test_experts_of_no_layer_are_refused(name):
    described = [Tensor(name, (8, 256, 256))]
    with pytest.raises(BadInputError, match=re.escape(name)):
        assign(
            described, "Q4_K_M", heads=1, kv_heads=1, layers=2, experts=8, architecture="llama", has_importance=False
        )
