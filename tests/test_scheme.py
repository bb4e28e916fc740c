"""Schemes by name: GPTQ or GGUF, what is shipped, what is refused before a checkpoint is looked at."""

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan.shapes import XWIN_70B

from quantkit.errors import BadInputError, QuantkitError
from quantkit.families.llama import LLAMA
from quantkit.families.lookup import BY_ARCHITECTURE
from quantkit.formats.mixture_tables import FTYPES
from quantkit.plan.budget import Machine, estimate
from quantkit.plan.rows import make_plan
from quantkit.plan.runtime import MACHINES
from quantkit.recipe import Calibration, Gates, Recipe, data_folder
from quantkit.scheme import METHODS, GgufRecipe, load_scheme, make_scheme
from quantkit.units import GIB

SHIPPED = sorted(path.stem for path in data_folder("recipes").glob("*.yaml"))
Q4 = {"method": "gguf", "type": "Q4_K_M"}
ON_T4 = Machine(
    compute_bytes=4, on_host=False, available_bytes=12 * GIB, base_bytes=600 * 10**6, product_rate=4e12, exact_rate=4e12
)


def test_the_schemes_of_the_manual_are_shipped():
    gptq = {"gptq-int3", "gptq-int4", "gptq-int4-g32", "gptq-int8", "rtn-int4-per-row", "colab-70b"}
    gguf = {"gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k", "gguf-q8_0", "gguf-iq4_xs"}
    assert set(SHIPPED) == gptq | gguf


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scheme_loads_and_makes_what_its_name_says(name):
    scheme = load_scheme(name)
    if isinstance(scheme, GgufRecipe):
        assert f"gguf-{scheme.type.lower()}" == name
    else:
        assert name == "colab-70b" or name.startswith(f"{scheme.method}-int{scheme.bits}")
        assert scheme.skip == ("lm_head",)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scheme_says_for_whom_it_is_and_names_no_model(name):
    schema, *lines = (data_folder("recipes") / f"{name}.yaml").read_text("utf-8").splitlines()
    assert schema == "# yaml-language-server: $schema=schema/recipe.schema.json"
    assert "for " in lines[0].lower()
    assert lines[0].startswith("# ")
    values = " ".join(line for line in lines if not line.startswith("#")).lower()
    words = {family.name for family in BY_ARCHITECTURE.values()} | {"xverse", "xgen", "xwin", "xglm", "/"}
    assert not [word for word in words if word in values]


def test_the_colab_scheme_fits_where_its_comment_says():
    scheme = load_scheme("colab-70b")
    text = (data_folder("recipes") / "colab-70b.yaml").read_text("utf-8")
    plan = make_plan(LLAMA, scheme, XWIN_70B.infos())

    def cost(machine, samples=scheme.calibration.samples):
        length = scheme.calibration.sequence_length
        return estimate(plan, LLAMA, scheme, XWIN_70B.config, machine, samples, length, 0)

    colab = {machine.name: machine.usable_bytes for machine in MACHINES}
    memory, gpu = colab["CPU, 12.7 GB of RAM"], colab["T4 16 GB"]
    with_gpu = cost(ON_T4)
    bf16 = cost(replace(ON_T4, on_host=True, compute_bytes=2))
    fp32 = cost(replace(ON_T4, on_host=True))
    fewer = cost(replace(ON_T4, on_host=True), samples=16)
    assert with_gpu.host_bytes < memory - 2 * GIB
    assert with_gpu.device_bytes < gpu - 2 * GIB
    assert bf16.host_bytes < memory - GIB
    assert fp32.host_bytes > memory > fewer.host_bytes
    told = [with_gpu.host_bytes, with_gpu.device_bytes, gpu, bf16.host_bytes, memory, fp32.host_bytes, fewer.host_bytes]
    assert re.findall(r"\b\d+\.\d\b(?! GB)", text) == [f"{size / GIB:.1f}" for size in told]
    assert f"{plan.artifact_bytes / 1e9:.2f} GB in {len(plan.shards)} files" in text


def test_a_gguf_scheme_has_the_defaults_of_the_command():
    scheme = make_scheme(Q4)
    assert scheme == GgufRecipe(
        method="gguf", type="Q4_K_M", target_size=None, imatrix="none", tensor_types=(), split_max_size=None,
        pre=None, calibration=Calibration(), gates=Gates(),
    )  # fmt: skip
    assert make_scheme({"bits": 8}) == Recipe(bits=8)
    assert set(METHODS) == {"gptq", "rtn", "gguf"}


def test_a_type_is_read_in_any_case():
    assert make_scheme(Q4 | {"type": "q4_k"}).type == "Q4_K_M"


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (Q4 | {"type": "Q4_KM"}, "unknown file type 'Q4_KM'", "did you mean Q4_K_M?"),
        (Q4 | {"imatrx": "auto"}, "unknown recipe key 'imatrx'", "did you mean imatrix?"),
        (Q4 | {"bits": 4}, "unknown recipe key 'bits'", "known: method, type"),
        (Q4 | {"imatrix": "x.gguf"}, "recipe imatrix: Input should be 'none' or 'auto', found 'x.gguf'", None),
        (Q4 | {"type": 8}, "recipe type: Input should be a valid string, found 8", "put it in quotes"),
        (
            Q4 | {"target_size": "8GB"},
            "a recipe for GGUF files needs either type or target_size, found both",
            "such as",
        ),
        ({"method": "gguf"}, "a recipe for GGUF files needs either type or target_size, found neither", "type: Q4_K_M"),
        ({"method": "gguf", "target_size": "much"}, "not a size: 'much'", "5GB"),
        (Q4 | {"split_max_size": "x"}, "not a size: 'x'", "5GB"),
        (Q4 | {"tensor_types": ["ffn"]}, "not REGEX=TYPE: 'ffn'", "attn_v=Q8_0"),
        (Q4 | {"tensor_types": ["ffn=Q9"]}, "unknown tensor type 'Q9' in 'ffn=Q9'", "known are"),
        (Q4 | {"calibration": {"sample": 4}}, "unknown recipe key 'calibration.sample'", "did you mean samples?"),
        ({"method": "ggu"}, "recipe method: found 'ggu'", "did you mean gguf?"),
        ({"method": ["gptq"]}, "recipe method: found ['gptq']", "did you mean gptq?"),
        ({"method": "awq"}, "recipe method: found 'awq'", "known: gptq, rtn, gguf"),
        ({"bits": 3, "targets": ["vllm"]}, "vLLM 0.33 loads symmetric 4 and 8 bits only; this is 3 bits", "use symm"),
        ({"calibration": {"samples": True}}, "recipe calibration.samples: Input should be a valid integer", None),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, fields, message, hint):
    with pytest.raises(QuantkitError) as caught:
        make_scheme(fields)
    assert str(caught.value).startswith(message)
    assert hint is None or hint in caught.value.hint


def test_a_file_names_itself_in_its_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: gguf\ntype: Q4_KM\n")
    with pytest.raises(BadInputError) as caught:
        load_scheme(str(path))
    assert str(caught.value) == "mine.yaml: unknown file type 'Q4_KM'"
    assert caught.value.hint == "did you mean Q4_K_M?"


def test_the_fingerprint_notices_every_field():
    other = {
        "imatrix": "auto", "tensor_types": ["ffn=Q6_K"], "split_max_size": "4GB", "pre": "gpt-2",
        "calibration": {"seed": 1}, "gates": {"max_kl": 0.1}, "type": "Q8_0",
    }  # fmt: skip
    assert {*other, "method", "target_size"} == set(GgufRecipe.model_fields)
    made = [Q4, {"method": "gguf", "target_size": "1GB"}, *(Q4 | {key: value} for key, value in other.items())]
    assert len({make_scheme(fields).fingerprint() for fields in made}) == len(made)
    assert make_scheme(Q4).fingerprint() == make_scheme(Q4 | {"type": "q4_k_m"}).fingerprint()


@given(st.sampled_from(sorted(FTYPES)))
def test_every_file_type_is_a_scheme(ftype):
    assert make_scheme({"method": "gguf", "type": ftype}).type == ftype


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
SOME = VALUES | st.lists(VALUES | st.sampled_from(["a=Q4_0", "(=Q8_0", "*=8bit"]), max_size=3)
FIELDS = sorted({*GgufRecipe.model_fields, *Recipe.model_fields})


@given(
    st.dictionaries(
        st.sampled_from(FIELDS) | st.text(max_size=8), SOME | st.dictionaries(st.text(max_size=8), VALUES, max_size=2)
    ),
    st.sampled_from(["gptq", "gguf", "rtn", None, 4]),
)
def test_no_fields_raise_anything_but_our_own_errors(fields, method):
    with contextlib.suppress(QuantkitError):
        make_scheme(fields | {"method": method})
