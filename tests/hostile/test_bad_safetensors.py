"""Weight files that are not what they must be: refused from their first bytes, before a weight is read."""

import shutil

import pytest
import torch
from spoil import (
    DEEP,
    HTML,
    LFS,
    SHARD,
    WEIGHTS,
    Case,
    append,
    both,
    config,
    cut,
    entry,
    folder_named,
    header,
    length,
    link_named,
    pipe_named,
    table,
    tensors,
    write,
)

from quantkit.cli import _run

BY_THE_FIRST_LOOK = True  # unless a case is `late`
NORM = "model.norm.weight"  # [128] BF16
AGAIN = "fetch"
FIELDS = b'{"dtype":"BF16","shape":[128],"data_offsets":[0,256]}'


def sparse(name, size):
    """A file of this size that takes no room, with a header length that fills it."""

    def spoil(folder):
        with (folder / name).open("wb") as file:
            file.write(length(size - 8))
            file.truncate(size)

    return spoil


def moved(begin, end):
    return lambda offsets: [offsets[0] + begin, offsets[1] + end]


@table(
    # Its length.
    Case("empty", write(WEIGHTS, b""), (WEIGHTS, "an empty file", "expected a safetensors file"), hint=AGAIN),
    Case("seven-bytes", write(WEIGHTS, bytes(7)), (WEIGHTS, "found 7 bytes", "expected at least 8"), hint=AGAIN),
    Case("truncated-by-a-byte", cut(WEIGHTS, -1), (WEIGHTS, "found a file of", "bytes, expected"), hint=AGAIN),
    Case("truncated-by-half", cut(WEIGHTS, 300_000), (WEIGHTS, "found a file of 300000 bytes, expected"), hint=AGAIN),
    Case("truncated-in-its-header", cut(WEIGHTS, 100), (WEIGHTS, "found a header of", "expected 2 to 92"), hint=AGAIN),
    Case("a-byte-too-many", append(WEIGHTS, b"x"), (WEIGHTS, "found a file of", "from its header"), hint=AGAIN),
    Case(
        "claims-a-gigabyte-in-eight-bytes",
        write(WEIGHTS, length(10**9)),
        (WEIGHTS, "found a header of 1000000000 bytes", "in a file of 8"),
    ),
    Case(
        "header-of-no-bytes",
        write(WEIGHTS, length(0, bytes(64))),
        (WEIGHTS, "found a header of 0 bytes", "expected 2 to 64"),
    ),
    Case(
        "header-of-2**63-bytes",
        write(WEIGHTS, length(2**63, bytes(64))),
        (WEIGHTS, "found a header of 9223372036854775808 bytes"),
    ),
    Case("header-above-25-MB", sparse(WEIGHTS, 30_000_000), (WEIGHTS, "29999992 bytes", "expected 2 to 25000000")),
    # The text of its header.
    Case("header-of-zeros", write(WEIGHTS, length(64, bytes(64))), (WEIGHTS, "begins with b'\\x00'", "expected b'{'")),
    Case("header-a-list", header(lambda _: b"[]"), (WEIGHTS, "begins with b'['", "expected b'{'")),
    Case("header-broken", header(lambda _: b'{"a": '), (WEIGHTS, "found no valid JSON")),
    Case("header-not-utf8", header(lambda _: b'{"\xff":1}'), (WEIGHTS, "found no valid JSON", "utf-8")),
    Case("header-nested-deeply", header(lambda _: DEEP), (WEIGHTS, "found no valid JSON", "recursion")),
    Case("header-with-a-number-of-6000-digits", header(lambda _: b'{"a":' + b"9" * 6000 + b"}"), (WEIGHTS, "digits")),
    Case(
        "tensor-twice",
        header(lambda _: b'{"a":' + FIELDS + b',"a":' + FIELDS + b"}"),
        (WEIGHTS, "key 'a' occurs twice"),
    ),
    Case("field-twice", header(lambda _: b'{"a":{"dtype":"F32","dtype":"F16"}}'), (WEIGHTS, "'dtype' occurs twice")),
    Case("field-missing", header(lambda e: e[NORM].pop("shape") and None), (WEIGHTS, NORM, "exactly the fields")),
    Case("metadata-of-numbers", header(lambda e: e | {"__metadata__": {"a": 1}}), (WEIGHTS, "__metadata__")),
    Case("name-with-a-newline", header(lambda e: e | {"a\nb": e.pop(NORM)}), (WEIGHTS, r"'a\nb'", "printable")),
    # Its tensors.
    Case("dtype-unknown", entry(NORM, dtype="Q4_0"), (WEIGHTS, NORM, "dtype 'Q4_0'", "expected one of ['F64', 'F32'")),
    Case("dtype-a-number", entry(NORM, dtype=16), (WEIGHTS, NORM, "dtype 16", "expected one of")),
    Case("dtype-wider-than-its-bytes", entry(NORM, dtype="F32"), (WEIGHTS, "256 bytes, expected 512 for F32 [128]")),
    Case("shape-negative", entry(NORM, shape=[-128]), (WEIGHTS, NORM, "shape [-128]", "expected up to 32 sizes")),
    Case("shape-of-truth-values", entry(NORM, shape=[True]), (WEIGHTS, NORM, "shape [True]")),
    Case("shape-a-text", entry(NORM, shape="128"), (WEIGHTS, NORM, "shape '128'")),
    Case("shape-whose-product-overflows", entry(NORM, shape=[2**40, 2**40]), (WEIGHTS, NORM, "expected <= 2**48")),
    Case("shape-that-hides-it-behind-a-zero", entry(NORM, shape=[0, 2**63]), (WEIGHTS, NORM, "expected <= 2**48")),
    Case("shape-of-33-sizes", entry(NORM, shape=[1] * 33), (WEIGHTS, NORM, "expected up to 32 sizes")),
    Case("offsets-negative", entry(NORM, data_offsets=[-256, 0]), (WEIGHTS, NORM, "data_offsets [-256, 0]")),
    Case("offsets-reversed", entry(NORM, data_offsets=lambda old: old[::-1]), (WEIGHTS, NORM, "-256 bytes, expected")),
    Case("offsets-of-three", entry(NORM, data_offsets=[0, 1, 2]), (WEIGHTS, NORM, "expected [begin, end]")),
    Case("offsets-fractions", entry(NORM, data_offsets=[0.0, 256.0]), (WEIGHTS, NORM, "expected [begin, end]")),
    Case("offsets-far-beyond-the-file", entry(NORM, data_offsets=moved(2**50, 2**50)), (WEIGHTS, "a hole between")),
    Case("offsets-that-overlap", entry(NORM, data_offsets=[0, 256]), (WEIGHTS, "an overlap between")),
    Case("offsets-with-a-hole", entry(NORM, data_offsets=moved(2, 2)), (WEIGHTS, "a hole between", "expected")),
    Case("hole-before-the-first-tensor", header(lambda e: shifted(e, 8)), (WEIGHTS, "a hole between the header and")),
)
def test_a_damaged_file(case, refused):
    refused(case)


def shifted(entries, by):
    for name, fields in entries.items():
        if name != "__metadata__":
            fields["data_offsets"] = [offset + by for offset in fields["data_offsets"]]


@table(
    Case("lfs-pointer", write(WEIGHTS, LFS), (WEIGHTS, "a git-LFS pointer", "expected a safetensors"), hint="lfs pull"),
    Case("lfs-pointer-as-shard", write(SHARD, LFS), (SHARD, "a git-LFS pointer"), hint="lfs pull", layout="sharded"),
    Case("xet-pointer", write(WEIGHTS, b"# xet version 0\n"), (WEIGHTS, "a Xet pointer"), hint="download"),
    Case("web-page", write(WEIGHTS, HTML), (WEIGHTS, "a web page", "expected a safetensors file"), hint=AGAIN),
    Case("xml-answer", write(WEIGHTS, b"<?xml version='1.0'?><Error>x</Error>"), (WEIGHTS, "an XML page"), hint=AGAIN),
    Case("json-answer", write(WEIGHTS, b'{"error":"Repository not found"}'), (WEIGHTS, "error message"), hint=AGAIN),
    Case("text-answer", write(WEIGHTS, b"Entry not found"), (WEIGHTS, "the text 'Entry not found'"), hint=AGAIN),
    Case("gguf", write(WEIGHTS, b"GGUF\x03\0\0\0" + bytes(99)), (WEIGHTS, "a GGUF file"), hint="start from"),
    Case("gzip", write(WEIGHTS, b"\x1f\x8b\x08" + bytes(99)), (WEIGHTS, "a gzip file"), hint="unpack"),
    Case(
        "torch-save-under-another-name",
        lambda folder: torch.save({"a": torch.ones(1)}, folder / WEIGHTS),
        (WEIGHTS, "a zip file, such as torch.save writes", "expected a safetensors file"),
        hint="pytorch_model.bin",
    ),
    Case("folder", folder_named(WEIGHTS), ("model/model.safetensors is a folder, expected a file",)),
    Case("pipe", pipe_named(WEIGHTS), ("model/model.safetensors is a pipe, expected a file",)),
    Case("device", link_named(WEIGHTS, "/dev/zero"), ("model/model.safetensors is a device, expected a file",)),
    Case("pipe-as-shard", pipe_named(SHARD), (SHARD, "is a pipe, expected a file"), layout="sharded"),
    Case("link-to-itself", link_named(WEIGHTS, WEIGHTS), (WEIGHTS, "Too many levels of symbolic links"), code=6),
    Case("link-to-nothing", link_named(WEIGHTS, "../blobs/1"), (WEIGHTS, "a link to a file that is not there"), code=4),
)
def test_something_else_under_the_name(case, refused):
    refused(case)


DOWN = "model.layers.1.mlp.down_proj.weight"


@table(
    Case("missing", tensors(lambda t: t.pop(DOWN)), (f"tensor {DOWN} [128, 256] is missing from the checkpoint",)),
    Case("missing-norm", tensors(lambda t: t.pop(NORM)), (f"tensor {NORM} [128] is missing",)),
    Case(
        "shorter-norm", tensors(lambda t: t.update({NORM: torch.ones(7)})), (NORM, "is [7], config.json asks for [128]")
    ),
    Case(
        "shorter-norm-of-heads",
        tensors(lambda t: t.update({"model.layers.1.self_attn.k_norm.weight": torch.ones(7)})),
        ("model.layers.1.self_attn.k_norm.weight", "is [7], config.json asks for [32]"),
        architecture="Qwen3ForCausalLM",
    ),
    Case("missing-head", tensors(lambda t: t.pop("lm_head.weight")), ("lm_head.weight [512, 128] is missing",)),
    Case(
        "surplus-layer",
        tensors(lambda t: t.update({"model.layers.2.mlp.down_proj.weight": torch.ones(128, 256)})),
        ("model.layers.2.mlp.down_proj.weight has no place in a llama model of 2", "surplus in model.safetensors"),
    ),
    Case("surplus", tensors(lambda t: t.update(score=torch.ones(2))), ("tensor score has no place in a llama model",)),
    Case(
        "layer-of-another-alphabet",
        tensors(lambda t: t.update({"model.layers.².mlp.weight": torch.ones(2)})),
        ("tensor model.layers.².mlp.weight has no place",),
    ),
    Case(
        "layer-of-5000-digits",
        tensors(lambda t: t.update({f"model.layers.{'9' * 200}.mlp.weight": torch.ones(2)})),
        ("has no place in a llama model", "surplus"),
    ),
    Case("transposed", tensors(lambda t: t.update({DOWN: t[DOWN].T})), (DOWN, "is [256, 128], config.json asks for")),
    Case("flat", tensors(lambda t: t.update({DOWN: t[DOWN].view(-1)})), (DOWN, "is [32768], config.json asks for")),
    Case("of-no-dimension", tensors(lambda t: t.update({DOWN: torch.tensor(1.0)})), (DOWN, "is [], config.json asks")),
    Case("empty", tensors(lambda t: t.update({DOWN: torch.ones(0, 256)})), (DOWN, "is [0, 256], config.json asks for")),
    Case("whole-numbers", tensors(lambda t: t.update({DOWN: t[DOWN].int()})), (DOWN, "is I32, expected F32, F16 or")),
    Case(
        "eight-bit-floats",
        tensors(lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)})),
        (DOWN, "is F8_E4M3, expected F32, F16 or BF16"),
    ),
    Case(
        "quantized-without-saying-so",
        tensors(lambda t: t.update({DOWN.replace("weight", "qweight"): t.pop(DOWN).int()})),
        (DOWN, "is missing from the checkpoint"),
        hint="it holds model.layers.1.mlp.down_proj.qweight: start from the 16-bit checkpoint",
    ),
)
def test_tensors_that_are_not_those_of_the_family(case, refused):
    refused(case)


def test_a_tied_checkpoint_may_carry_its_head_but_none_of_another_shape(refused):
    head = tensors(lambda t: t.update({"lm_head.weight": torch.ones(7, 128)}))
    says = ("tensor lm_head.weight in model.safetensors is [7, 128], config.json asks for [512, 128]",)
    refused(Case("head", both(config(tie_word_embeddings=True), head), says))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_refused_later_is_not_refused_here(good, work, tmp_path, monkeypatch, capsys, value):
    """Values are seen when a layer is read; a plan reads none. And what guards these tests does notice a read."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good("LlamaForCausalLM", "safetensors"), "model")
    tensors(lambda t: t[DOWN].fill_(value))(tmp_path / "model")
    assert _run(["plan", "model", "--device", "cpu"], debug=False) == 0
    with pytest.raises(AssertionError, match="before the refusal"):
        _run(["gptq", "model", "--device", "cpu", "--method", "rtn", "--out", "out"], debug=False)
    assert work == ["a weight was read"]
