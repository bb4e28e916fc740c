"""The job on disk: what is finished, what a crash left behind, and which inputs it was made from."""

import json
import os

import pytest

from quantkit.errors import BadInputError, DiskError
from quantkit.rundir import RunFolder, check_folder

INPUTS = {"source": "abc", "recipe.bits": 4, "recipe.rules": ("a", "b"), "calibration_sha256": None}


def lines(folder):
    return (folder / "layers.jsonl").read_text("utf-8").splitlines()


def record_layer(run, layer, names="abc"):
    for name in names:
        run.record_linear({"name": f"{layer}.{name}", "loss": 0.5})
    run.record_finished(layer)


def test_a_new_folder_says_what_is_being_made(tmp_path):
    folder = tmp_path / "deep" / "out"
    run = RunFolder(folder, INPUTS)
    assert (run.finished_layers, run.complete, run.linears()) == (0, False, [])
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record == {
        "schema_version": 1,
        "status": "running",
        "fingerprint": {**INPUTS, "recipe.rules": ["a", "b"]},
    }


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder(tmp_path, INPUTS).finished_layers == 0


def test_finished_layers_are_found_again(tmp_path):
    run = RunFolder(tmp_path, INPUTS)
    for layer in range(3):
        record_layer(run, layer)
        assert run.finished_layers == layer + 1
    again = RunFolder(tmp_path, INPUTS)
    assert (again.finished_layers, again.complete) == (3, False)
    assert [row["name"] for row in again.linears()] == [f"{layer}.{name}" for layer in range(3) for name in "abc"]


def test_the_lines_of_an_unfinished_layer_are_cut(tmp_path):
    run = RunFolder(tmp_path, INPUTS)
    record_layer(run, 0)
    run.record_linear({"name": "1.a"})
    again = RunFolder(tmp_path, INPUTS)
    assert again.finished_layers == 1
    assert [row["name"] for row in again.linears()] == ["0.a", "0.b", "0.c"]
    record_layer(again, 1)
    assert [row["name"] for row in RunFolder(tmp_path, INPUTS).linears()] == ["0.a", "0.b", "0.c", "1.a", "1.b", "1.c"]


def test_a_crash_at_any_byte_of_the_log_loses_at_most_the_layer_at_work(tmp_path):
    run = RunFolder(tmp_path / "whole", INPUTS)
    record_layer(run, 0)
    record_layer(run, 1, "a")
    whole = (tmp_path / "whole" / "layers.jsonl").read_bytes()
    second = whole.index(b'{"name": "1.a"')
    for size in range(len(whole) + 1):
        folder = tmp_path / str(size)
        RunFolder(folder, INPUTS)
        (folder / "layers.jsonl").write_bytes(whole[:size])
        again = RunFolder(folder, INPUTS)
        # A line is whole with or without its line end.
        expected = 2 if size >= len(whole) - 1 else 1 if size >= second - 1 else 0
        assert again.finished_layers == expected, size
        record_layer(again, expected)
        assert RunFolder(folder, INPUTS).finished_layers == expected + 1
        assert all(json.loads(line) for line in lines(folder))


def test_a_run_that_is_finished_says_so(tmp_path):
    run = RunFolder(tmp_path, INPUTS)
    record_layer(run, 0)
    finished = {"status": "finished", "fingerprint": INPUTS, "more": 1}
    run.write_run(finished)
    assert not RunFolder(tmp_path, INPUTS).complete  # config.json, the last file, is not there yet
    run.write_run(finished)
    (tmp_path / "config.json").write_text("{}")
    again = RunFolder(tmp_path, INPUTS)
    assert again.complete
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["more"] == 1


@pytest.mark.parametrize(
    ("changed", "key", "old", "new"),
    [
        ({"recipe.bits": 8}, "recipe.bits", 4, 8),
        ({"recipe.rules": ("b", "a")}, "recipe.rules", ["a", "b"], ["b", "a"]),
        ({"calibration_sha256": "f00"}, "calibration_sha256", None, "f00"),
        ({"version.torch": "9"}, "version.torch", None, "9"),
    ],
)
@pytest.mark.parametrize("status", ["running", "finished"])
def test_other_inputs_are_refused_by_name(tmp_path, changed, key, old, new, status):
    RunFolder(tmp_path, INPUTS).write_run({"status": status, "fingerprint": INPUTS})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(BadInputError) as caught:
        RunFolder(tmp_path, INPUTS | changed)
    assert str(caught.value) == f"{tmp_path} holds a run with {key} {old}, this one has {new}"
    assert caught.value.hint == "choose another --out, or --restart to begin anew"
    assert (tmp_path / "run.json").read_bytes() == before


def test_an_input_that_is_gone_is_named_too(tmp_path):
    RunFolder(tmp_path, INPUTS)
    with pytest.raises(BadInputError, match="a run with source abc, this one has None"):
        RunFolder(tmp_path, {key: value for key, value in INPUTS.items() if key != "source"})


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", ".git"])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInputError) as caught:
        RunFolder(tmp_path, INPUTS)
    assert str(caught.value) == f"{tmp_path} holds {name} and no run.json: it is not a folder of quantkit"
    assert caught.value.hint == "choose another --out"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"{}", b'{"status": "running"}', b"\xff\xfe"])
def test_a_run_json_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        RunFolder(tmp_path, INPUTS)
    assert str(caught.value) == f"{tmp_path / 'run.json'} is not a record of quantkit"
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_run_json_with_another_kind_of_fingerprint_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "running", "fingerprint": "abc"}')
    with pytest.raises(BadInputError):
        RunFolder(tmp_path, INPUTS)


def test_a_crash_in_the_first_write_does_not_close_the_folder(tmp_path):
    (tmp_path / ".run.json.partial").write_text('{"schema_ver')
    assert RunFolder(tmp_path, INPUTS).finished_layers == 0


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInputError) as caught:
        RunFolder(tmp_path / "out", INPUTS)
    assert str(caught.value) == f"{tmp_path / 'out'} is a file, expected a folder"
    assert caught.value.hint == "choose another --out"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="cannot"):
        RunFolder(tmp_path / "out", INPUTS)


def test_a_disk_that_refuses_the_log_is_named(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, INPUTS)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"layers.jsonl: No space left on device"):
        run.record_linear({"name": "a"})


def test_no_partial_file_is_left(tmp_path):
    run = RunFolder(tmp_path, INPUTS)
    record_layer(run, 0)
    RunFolder(tmp_path, INPUTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.jsonl", "run.json"]


def test_what_a_layer_cost_is_kept_with_it(tmp_path):
    run = RunFolder(tmp_path, INPUTS)
    run.record_linear({"name": "0.a"})
    run.record_finished(0, {"seconds": 1.5, "host_bytes": 7})
    run.record_linear({"name": "1.a"})
    assert RunFolder(tmp_path, INPUTS).costs() == [{"finished": 0, "seconds": 1.5, "host_bytes": 7}]


@pytest.mark.parametrize("name", [".tokenizer.json.partial", ".run.json.partial", ".config.json.partial"])
def test_temporary_files_of_a_run_that_died_are_removed(tmp_path, name):
    record_layer(RunFolder(tmp_path, INPUTS), 0)
    for file in (name, ".model.safetensors.partial", "notes.partial"):
        (tmp_path / file).write_text("half")
    RunFolder(tmp_path, INPUTS)
    kept = {".model.safetensors.partial", "layers.jsonl", "notes.partial", "run.json"}  # the first is the checkpoint
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_partial_file_in_a_folder_without_a_run_is_left_alone(tmp_path):
    (tmp_path / ".download.partial").write_text("mine")
    RunFolder(tmp_path, INPUTS)
    assert (tmp_path / ".download.partial").read_text() == "mine"


def test_a_temporary_file_that_cannot_be_removed_is_named(tmp_path):
    RunFolder(tmp_path, INPUTS)
    (tmp_path / ".a.partial").mkdir()
    with pytest.raises(DiskError, match=r"cannot remove .*/\.a\.partial: "):
        RunFolder(tmp_path, INPUTS)


def test_a_hash_that_differs_is_named_with_its_file(tmp_path):
    hashes = {"config.json": "aa", "model.safetensors": "bb"}
    RunFolder(tmp_path, INPUTS | {"source": hashes})
    with pytest.raises(BadInputError) as caught:
        RunFolder(tmp_path, INPUTS | {"source": hashes | {"model.safetensors": "cc"}})
    assert str(caught.value) == f"{tmp_path} holds a run with source.model.safetensors bb, this one has cc"
    with pytest.raises(BadInputError, match="a run with source None, this one has 0123abcd"):
        RunFolder(tmp_path, INPUTS | {"source": "0123abcd"})


def test_what_the_user_has_set_is_named_before_what_follows_from_it(tmp_path):
    RunFolder(tmp_path, INPUTS)
    with pytest.raises(BadInputError, match=r"a run with recipe\.bits 4, this one has 8"):
        RunFolder(tmp_path, INPUTS | {"recipe.bits": 8, "calibration_sha256": "f00"})


def test_a_folder_in_which_a_run_begins_meanwhile_is_no_folder_of_something_else(tmp_path):
    for name in (".run.lock", ".run.json.partial"):
        (tmp_path / name).write_text("")
        check_folder(tmp_path)
    RunFolder(tmp_path, INPUTS)
    check_folder(tmp_path)


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match="file is a file, expected a folder"):
        check_folder(tmp_path / "file" / "out")


# A finished run of which a file was lost.


def test_a_run_that_is_made_again_looks_unfinished_until_it_is(tmp_path):
    finished_run(tmp_path)
    run = RunFolder(tmp_path, INPUTS)
    assert (run.complete, run.finished_layers) == (True, 0)
    run.reopen()
    assert (run.complete, run.finished_layers) == (False, 1)
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["status"] == "running"
    assert not (tmp_path / "config.json").exists()
    assert (tmp_path / "model.safetensors").exists()


# Restart.


def finished_run(folder):
    run = RunFolder(folder, INPUTS)
    record_layer(run, 0)
    run.write_run({"schema_version": 1, "status": "finished", "fingerprint": INPUTS})
    for name in ("config.json", "quantize_config.json", "model.safetensors", ".a.partial", "tokenizer.json"):
        (folder / name).write_text("{}")


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS | {"recipe.bits": 8}])
def test_a_restart_makes_room(tmp_path, inputs):
    finished_run(tmp_path)
    run = RunFolder(tmp_path, inputs, restart=True)
    assert (run.finished_layers, run.complete, run.linears()) == (0, False, [])
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "tokenizer.json"}
    again = RunFolder(tmp_path, inputs)
    assert (again.finished_layers, again.complete) == (0, False)


def test_a_restart_of_what_is_not_there_begins(tmp_path):
    assert RunFolder(tmp_path / "absent", INPUTS, restart=True).finished_layers == 0


@pytest.mark.parametrize("content", ['{"made by": "another program"}', "[]", ""])
def test_a_restart_leaves_the_folder_of_another_program_alone(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(BadInputError, match="not a record of quantkit"):
        RunFolder(tmp_path, INPUTS, restart=True)
    assert (tmp_path / "run.json").read_text() == content
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_restart_that_dies_at_any_step_trusts_nothing_of_the_earlier_run(tmp_path, monkeypatch):
    before = os.unlink
    for steps in range(5):
        folder = tmp_path / str(steps)
        finished_run(folder)
        names = []

        def die(path, *more, names=names, steps=steps):
            if len(names) == steps:
                raise KeyboardInterrupt
            names.append(path)
            before(path, *more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", die)
            with pytest.raises(KeyboardInterrupt):
                RunFolder(folder, INPUTS | {"recipe.bits": 8}, restart=True)
        with pytest.raises(BadInputError, match=r"recipe\.bits 4, this one has 8"):  # not the new run, nor half of each
            RunFolder(folder, INPUTS | {"recipe.bits": 8})
        assert RunFolder(folder, INPUTS).complete == (steps == 0)
        assert RunFolder(folder, INPUTS).finished_layers == (1 if steps == 1 else 0)
        assert RunFolder(folder, INPUTS | {"recipe.bits": 8}, restart=True).finished_layers == 0
