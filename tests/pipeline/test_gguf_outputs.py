"""Files of a conversion to GGUF: planned to the byte, put where the user says, kept, and never taken for others."""

import gguf
import numpy as np
import pytest
import tiny
import torch
from artifacts import Recorder
from gguf_files import Planned
from gguf_runs import (
    WIDE,
    asked_here,
    assert_is_the_plan,
    content,
    converted,
    copy_model,
    files_of,
    give_tokenizer,
    planned_job,
    random_imatrix,
)
from gguf_variants import make

from quantkit.errors import BadInputError, UsageError
from quantkit.pipeline.gguf_convert import ImatrixWish, convert, plan
from quantkit.pipeline.gguf_job import GgufOptions
from quantkit.pipeline.look import look_for_gguf
from quantkit.progress import Silent
from quantkit.recipe import Calibration
from quantkit.runlock import locked
from quantkit.weights.imatrix import read_imatrix, write_imatrix


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr("quantkit.pipeline.gguf_told._ask", asked_here)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows are whole blocks of every type, and an imatrix of it."""
    folder = tiny.make_model(tmp_path_factory.mktemp("wide") / "wide", dtype=torch.bfloat16, **WIDE)
    imatrix = random_imatrix(Planned(folder))
    write_imatrix(folder.parent / "imatrix.gguf", imatrix)
    return folder, imatrix, folder.parent / "imatrix.gguf"


# What was planned.


@pytest.mark.parametrize("important", [False, True])
@pytest.mark.parametrize("limit", [None, "200KB"])
def test_the_plan_knows_every_byte(wide, tmp_path, important, limit):
    folder, _, file = wide
    options = {"imatrix": file if important else None, "split_max_size": limit, "overrides": ("ffn_up=Q5_0",)}
    job = planned_job(folder, tmp_path / "out", "Q4_K_M", "Q2_K", "IQ4_NL", **options)
    assert not (tmp_path / "out").exists()
    told = job.as_dict(4096)
    result = converted(folder, tmp_path / "out", "Q4_K_M", "Q2_K", "IQ4_NL", **options)
    sizes = {path.name: path.stat().st_size for path in files_of(result)}
    assert {name: size for output in told["outputs"] for name, size in output["files"].items()} == sizes
    assert told["budget"]["disk_bytes"] == sum(sizes.values())
    for output, record in zip(told["outputs"], result.records, strict=True):
        for key in ("type", "files", "bytes", "tensors", "bits_per_weight"):
            assert output[key] == record[key], key
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == sizes.keys() | {f"{output.stem}.quantkit.json" for output in job.outputs} | {"quantkit.json"}


def test_bits_per_weight_are_those_of_the_matrices(wide, tmp_path):
    folder, _, _ = wide
    result = converted(folder, tmp_path, "Q8_0", "Q4_0", "F16")
    for path, record in zip(files_of(result), result.records, strict=True):
        matrices = [one for one in content(path).values() if len(one[1]) > 1]
        bits = 8 * sum(len(data) for _, _, data in matrices) / sum(np.prod(shape) for _, shape, _ in matrices)
        assert record["bits_per_weight"] == pytest.approx(bits, abs=1e-4)
    assert [record["bits_per_weight"] for record in result.records][::2] == [8.5, 16.0]


@pytest.mark.parametrize("target", ["1.2MB", "700KB"])
def test_a_target_size_is_kept(wide, tmp_path, target):
    folder, _, _ = wide
    result = converted(folder, tmp_path / "out", target_size=target)
    (path,) = files_of(result)
    limit = {"1.2MB": 1_200_000, "700KB": 700_000}[target]
    assert 0.6 * limit < path.stat().st_size <= limit
    (again,) = files_of(converted(folder, tmp_path / "again", result.records[0]["type"]))
    assert again.read_bytes() == path.read_bytes()


def test_fallbacks_are_told(tmp_path):
    folder = tiny.make_model(tmp_path / "model")  # rows of 128
    result = converted(folder, tmp_path / "out", "Q4_K_M")
    assert "Q4_K_M: 12 tensors become Q5_0: rows of 128 weights are no multiple of 256" in result.records[0]["notes"]


# Where it goes, and what is there already.


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_file_may_be_named(wide, tmp_path):
    (path,) = files_of(converted(wide[0], tmp_path / "mine.gguf", "Q8_0"))
    assert path == tmp_path / "mine.gguf"
    assert sorted(stamps(tmp_path)) == ["mine.gguf", "mine.quantkit.json", "quantkit.json"]


def test_without_out_a_folder_is_made_here(wide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = converted(wide[0], None, "Q8_0")
    assert [path.as_posix() for path in files_of(result)] == ["wide-GGUF/wide-1.4M-Q8_0.gguf"]
    assert files_of(result)[0].exists()


def test_what_is_finished_is_not_made_again(wide, tmp_path):
    folder, _, _ = wide
    converted(folder, tmp_path, "Q8_0")
    before = stamps(tmp_path)
    result = converted(folder, tmp_path, "Q8_0", "Q4_0")
    assert {name for name, stamp in stamps(tmp_path).items() if before.get(name) == stamp} == before.keys() - {
        "quantkit.json"
    }
    assert [record["type"] for record in result.records] == ["Q8_0", "Q4_0"]
    converted(folder, tmp_path, "Q8_0", "Q4_0", restart=True)
    assert not before.items() & stamps(tmp_path).items()


def test_a_file_that_went_missing_is_made_again(wide, tmp_path):
    folder, _, _ = wide
    parts = files_of(converted(folder, tmp_path, "Q8_0", split_max_size="300KB"))
    expected, before = parts[1].read_bytes(), stamps(tmp_path)
    parts[1].unlink()
    converted(folder, tmp_path, "Q8_0", split_max_size="300KB")
    after = stamps(tmp_path)
    assert parts[1].read_bytes() == expected
    assert {name for name in after if after[name] != before[name]} == {
        parts[1].name, f"{parts[0].stem}.quantkit.json", "quantkit.json"
    }  # fmt: skip


def spoil_weights(folder, out, file):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes())


def change_mind(folder, out, file):
    return {"overrides": ("ffn_up=Q8_0",)}


def look_at_importance(folder, out, file):
    return {"imatrix": file}


def lose_the_record(folder, out, file):
    next(out.glob("*.quantkit.json")).unlink()


def put_another_file(folder, out, file):
    next(out.glob("*.gguf")).write_bytes(b"mine")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil_weights, "made with another source"),
        (change_mind, "with another header or size than planned now"),
        (look_at_importance, "made with another imatrix"),
        (lose_the_record, "and it is not known from what it was made"),
        (put_another_file, "with another header or size than planned now"),
    ],
)
def test_a_file_of_something_else_is_not_overwritten(change, reason, wide, tmp_path):
    folder, out = copy_model(wide[0], tmp_path / "wide"), tmp_path / "out"
    (path,) = files_of(converted(folder, out, "Q4_K_M"))
    more = change(folder, out, wide[2]) or {}
    kept, before = path.read_bytes(), stamps(out)
    with pytest.raises(BadInputError, match=f"{path.name} is there already, {reason}") as refusal:
        converted(folder, out, "Q4_K_M", **more)
    assert "--restart" in refusal.value.hint
    assert (path.read_bytes(), stamps(out)) == (kept, before)
    converted(folder, out, "Q4_K_M", restart=True, **more)
    (clean,) = files_of(converted(folder, tmp_path / "clean", "Q4_K_M", **more))
    assert path.read_bytes() == clean.read_bytes()


# An importance matrix of the model's own.

TEXT = Calibration(samples=4, sequence_length=32)


def collected_and_converted(folder, out, *types, progress=None):
    wish = ImatrixWish("auto", TEXT, "cpu")
    return convert(look_for_gguf(str(folder)), GgufOptions(types, out=out), wish, progress or Silent())


def test_an_imatrix_is_collected_once_and_serves_again(wide, tmp_path):
    folder, _, _ = wide
    first = collected_and_converted(folder, tmp_path / "out", "Q4_K_M", "IQ4_XS")
    file = tmp_path / "out" / "wide-1.4M-imatrix.gguf"
    imatrix = read_imatrix(file)
    for path, record in zip(files_of(first), first.records, strict=True):
        assert_is_the_plan(folder, [path], imatrix)
        assert record["imatrix"]["file"] == file.name
        stated = gguf.GGUFReader(path).fields["quantize.imatrix.calibration_sha256"].contents()
        assert stated == record["imatrix"]["calibration_sha256"]
    before, told = stamps(tmp_path / "out"), Recorder()
    collected_and_converted(folder, tmp_path / "out", "Q4_K_M", "IQ4_XS", progress=told)
    assert stamps(tmp_path / "out") == before
    assert f"{file} is of the same weights and text: taken as it is" in told.said
    again = converted(folder, tmp_path / "again", "Q4_K_M", "IQ4_XS", imatrix=file)
    assert [path.read_bytes() for path in files_of(again)] == [path.read_bytes() for path in files_of(first)]


def test_an_imatrix_is_collected_by_one_run_at_a_time(wide, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(BadInputError, match="is held by process"):
        collected_and_converted(wide[0], tmp_path / "out", "Q4_0")


def test_a_plan_collects_nothing(wide, tmp_path):
    wish = ImatrixWish("auto", TEXT, "cpu")
    job = plan(look_for_gguf(str(wide[0])), GgufOptions(("Q2_K_S",), out=tmp_path / "out"), wish)
    assert set(job.outputs[0].types) == {"F32", "Q2_K", "Q6_K"}  # of which the first needs an importance
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_of_experts_has_no_imatrix_of_its_own(tmp_path):
    folder = give_tokenizer(make(tmp_path / "model", "MixtralForCausalLM-published"))
    with pytest.raises(UsageError, match="imatrix"):
        collected_and_converted(folder, tmp_path / "out", "Q4_0")
    assert not (tmp_path / "out").exists()
