"""Conversions to GGUF, tensor by tensor: what is read, in which order, by how many threads, into how many files."""

import json
import threading

import gguf
import pytest
import tiny
import torch
from artifacts import SMALL, dequantized
from gguf_files import Planned
from gguf_runs import (
    WIDE,
    asked_here,
    assert_is_the_plan,
    content,
    converted,
    copy_model,
    encoded,
    files_of,
    give_tokenizer,
    random_imatrix,
)
from gguf_variants import DENSE, MIXTURES, make

from quantkit.pipeline import gguf_slabs
from quantkit.pipeline.gptq import run
from quantkit.pipeline.job import prepare
from quantkit.recipe import make_recipe
from quantkit.weights.imatrix import write_imatrix
from quantkit.weights.ranges import FileRanges

FAMILIES = [name for name in DENSE if "-" not in name]
FEW_WEIGHTS = 3000  # a slab that ends inside a head, and inside the matrix of an expert


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)


@pytest.fixture
def _small_slabs(monkeypatch):
    monkeypatch.setattr(gguf_slabs, "SLAB_WEIGHTS", FEW_WEIGHTS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows are whole blocks of every type, and an imatrix of it."""
    folder = tiny.make_model(tmp_path_factory.mktemp("wide") / "wide", dtype=torch.bfloat16, **WIDE)
    imatrix = random_imatrix(Planned(folder))
    write_imatrix(folder.parent / "imatrix.gguf", imatrix)
    return folder, imatrix, folder.parent / "imatrix.gguf"


# What the tensors hold.


@pytest.mark.usefixtures("_small_slabs")
@pytest.mark.parametrize("name", [*FAMILIES, *MIXTURES])
def test_every_tensor_is_what_the_plan_says(name, tmp_path):
    folder = make(tmp_path / "model", name)
    if name in MIXTURES:
        give_tokenizer(folder)
    result = converted(folder, tmp_path / "out", "Q8_0", threads=2)
    assert "Q8_0" in assert_is_the_plan(folder, files_of(result))


@pytest.mark.usefixtures("_small_slabs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_type_from_every_dtype(dtype, tmp_path):
    folder = tiny.make_model(tmp_path / "model", dtype=dtype, **WIDE)
    types = ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_L", "Q4_K_M", "IQ4_NL", "IQ4_XS")
    result = converted(folder, tmp_path / "out", *types, threads=2)
    found = [assert_is_the_plan(folder, [path]) for path in files_of(result)]
    for kind, kinds in zip(types, found, strict=True):
        assert {"F32", kind.removesuffix("_L").removesuffix("_M")} <= kinds


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0"])
def test_the_gguf_library_encodes_the_same(kind, wide, tmp_path):
    folder, _, _ = wide
    planned, (path,) = Planned(folder), files_of(converted(folder, tmp_path, kind))
    found, seen = content(path), set()
    for row in planned.rows:
        stored, _, data = found[row.name]
        number = gguf.GGMLQuantizationType[stored]
        if stored != "Q6_K":  # of which the library has no encoder
            assert data == gguf.quants.quantize(planned.tensor(row), number).tobytes(), row.name
            seen.add(stored)
    assert kind in seen


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_the_same_16_bits_are_kept(dtype, kind, tmp_path):
    folder = tiny.make_model(tmp_path / "model", dtype=dtype)
    (path,) = files_of(converted(folder, tmp_path / "out", kind))
    source = Planned(folder).source
    names = {
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
    }
    for ours, theirs in names.items():
        assert content(path)[ours][2] == source.read(theirs).view(torch.int16).numpy().tobytes()


@pytest.mark.usefixtures("_small_slabs")
def test_importance_reaches_the_columns(wide, tmp_path):
    folder, imatrix, file = wide
    types = ("Q4_0", "Q4_K_M", "Q2_K", "IQ4_XS")
    without = files_of(converted(folder, tmp_path / "without", *types))
    paths = files_of(converted(folder, tmp_path / "with", *types, imatrix=file, threads=2))
    for path, other in zip(paths, without, strict=True):
        assert_is_the_plan(folder, [path], imatrix)
        assert content(path)["blk.0.attn_q.weight"] != content(other)["blk.0.attn_q.weight"]
        stated = gguf.GGUFReader(path).fields
        assert stated["quantize.imatrix.file"].contents() == "imatrix.gguf"
        assert stated["quantize.imatrix.entries_count"].contents() == len(imatrix.entries)


@pytest.mark.usefixtures("_small_slabs")
@pytest.mark.parametrize("name", ["MixtralForCausalLM-published", "Qwen3MoeForCausalLM-fused"])
def test_every_expert_has_its_own_importance(name, tmp_path):
    folder = give_tokenizer(make(tmp_path / "model", name))
    planned = Planned(folder)
    imatrix = random_imatrix(planned)
    write_imatrix(tmp_path / "imatrix.gguf", imatrix)
    (path,) = files_of(converted(folder, tmp_path / "out", "Q4_0", imatrix=tmp_path / "imatrix.gguf", threads=2))
    assert_is_the_plan(folder, [path], imatrix)
    row = next(row for row in planned.rows if row.name == "blk.0.ffn_up_exps.weight")
    assert content(path)[row.name][2] != encoded(planned, row, "Q4_0")


def test_types_for_some_tensors(wide, tmp_path):
    folder, _, _ = wide
    options = {"overrides": (r"attn_v\.weight=Q8_0", "ffn_down=q6_k")}
    (path,) = files_of(converted(folder, tmp_path, "Q4_K_S", **options))
    kinds = {name: kind for name, (kind, _, _) in content(path).items()}
    assert {kind for name, kind in kinds.items() if "attn_v" in name} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if "ffn_down" in name} == {"Q6_K"}
    assert {kind for name, kind in kinds.items() if "ffn_up" in name} == {"Q4_K"}
    assert_is_the_plan(folder, [path])


def test_a_tied_head_is_stored_once(tmp_path):
    tied = tiny.make_model(tmp_path / "tied", tie_word_embeddings=True)
    (path,) = files_of(converted(tied, tmp_path, "F16"))
    assert "output.weight" not in content(path)
    assert assert_is_the_plan(tied, [path]) == {"F16", "F32"}


# How they come to be.


def test_many_types_of_one_read(wide, tmp_path, monkeypatch):
    folder, _, file = wide
    types = ("Q4_K_M", "Q8_0", "IQ4_XS", "BF16")
    single = {files_of(converted(folder, tmp_path / kind, kind, imatrix=file))[0] for kind in types}
    count, lock, before = [0], threading.Lock(), FileRanges.read

    def read(self, name, first, out):
        with lock:
            count[0] += out.size
        before(self, name, first, out)

    monkeypatch.setattr(FileRanges, "read", read)
    together = files_of(converted(folder, tmp_path / "together", *types, imatrix=file))
    assert {path.name: path.read_bytes() for path in together} == {path.name: path.read_bytes() for path in single}
    weights = sum(info.elements for info in Planned(folder).source.infos.values())
    assert count[0] == weights  # each value once: heads lie whole in these slabs


@pytest.mark.usefixtures("_small_slabs")
def test_threads_do_not_matter(wide, tmp_path):
    folder, _, file = wide
    runs = [converted(folder, tmp_path / str(n), "Q4_K_M", "Q5_0", imatrix=file, threads=n) for n in (1, 2, 5)]
    first, *others = [[path.read_bytes() for path in files_of(run)] for run in runs]
    assert others == [first, first]


@pytest.mark.parametrize("limit", ["100KB", "300KB"])
def test_parts_hold_what_one_file_holds(wide, tmp_path, limit):
    folder, _, _ = wide
    (whole,) = files_of(converted(folder, tmp_path / "whole", "Q4_K_M"))
    parts = files_of(converted(folder, tmp_path / "parts", "Q4_K_M", split_max_size=limit))
    assert len(parts) > 2
    assert [path.name for path in parts] == [
        f"{whole.stem}-{number + 1:05d}-of-{len(parts):05d}.gguf" for number in range(len(parts))
    ]
    joined = content(*parts)
    assert (joined, list(joined)) == (content(whole), list(content(whole)))
    size = {"100KB": 100_000, "300KB": 300_000}[limit]
    for number, path in enumerate(parts):
        fields = gguf.GGUFReader(path).fields
        assert path.stat().st_size <= size or len(content(path)) == 1
        assert [fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")] == [
            number, len(parts), len(joined)
        ]  # fmt: skip
    for key, field in gguf.GGUFReader(whole).fields.items():
        if not key.startswith("GGUF."):
            assert gguf.GGUFReader(parts[0]).fields[key].contents() == field.contents()


# What it is made from.


@pytest.mark.parametrize("layout", ["sharded", "bin", "bin-sharded"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_layout_of_the_checkpoint_does_not_matter(sources, tmp_path, layout, tied):
    paths = []
    for one in ("safetensors", layout):
        folder = sources(dtype=torch.bfloat16, layout=one, tie_word_embeddings=tied)
        paths += files_of(converted(folder, tmp_path / one, "Q5_K_S", "F16"))
    ours, theirs = paths[:2], paths[2:]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, True), (4, True), (8, True), (4, False)])
def test_a_gptq_checkpoint_becomes_the_file_of_its_dequantized_weights(bits, symmetric, sources, tmp_path):
    recipe = make_recipe(SMALL | {"method": "rtn", "bits": bits, "symmetric": symmetric})
    quantized = tmp_path / "llama"
    run(prepare(str(sources(dtype=torch.float16)), recipe, output=quantized, device="cpu"))
    config = json.loads((quantized / "config.json").read_text())
    assert config["quantization_config"]["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")

    plain = copy_model(sources(dtype=torch.float16), tmp_path / "plain" / "llama")
    source = dequantized(quantized)
    tiny.write_weights(plain, {name: source.read(name) for name in source.infos}, "safetensors")
    result = converted(quantized, tmp_path / "ours", "Q8_0", "Q4_K_M", threads=2)
    others = files_of(converted(plain, tmp_path / "others", "Q8_0", "Q4_K_M"))
    assert [content(path) for path in files_of(result)] == [content(path) for path in others]
    assert_is_the_plan(plain, [files_of(result)[0]])
    assert any("quantized itself" in note for note in result.records[0]["notes"])


def test_dequantized_weights_are_let_go(sources, tmp_path, monkeypatch):
    """Each is dequantized once, and not kept to the end."""
    quantized = tmp_path / "llama"
    recipe = make_recipe(SMALL | {"method": "rtn"})
    run(prepare(str(sources(dtype=torch.float16)), recipe, output=quantized, device="cpu"))
    reads, held, before = [], [], gguf_slabs.WholeTensors.read

    def read(self, name, first, out):
        known = set(self._values)
        before(self, name, first, out)
        reads.extend(set(self._values) - known)
        held.append(len(self._values))

    monkeypatch.setattr(gguf_slabs.WholeTensors, "read", read)
    monkeypatch.setattr("quantkit.pipeline.gguf.ROWS_AHEAD", 2)
    converted(quantized, tmp_path / "out", "Q4_0", threads=1)
    names = dequantized(quantized).infos.keys()
    assert sorted(reads) == sorted(names)
    assert max(held) <= 4 < len(names)
