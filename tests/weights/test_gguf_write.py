"""GGUF files out: the same bytes however they were written, whole or not there, continued after a crash."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantkit.errors import DiskError
from quantkit.weights import files, gguf_write
from quantkit.weights.gguf_layout import layout
from quantkit.weights.gguf_read import read_gguf, read_tensor
from quantkit.weights.gguf_types import Value
from quantkit.weights.gguf_write import GgufWriter

NAME, PARTIAL, JOURNAL = "m.gguf", "m.gguf.partial", "m.gguf.partial.jsonl"
STATED = [("a", (4, 32), "Q8_0"), ("none", (0, 4), "F32"), ("b", (5,), "F32"), ("c", (3, 64), "Q4_0")]
HEADER = layout({"general.architecture": Value("string", "llama")}, STATED, file_name=NAME)
OTHER = layout({"general.architecture": Value("string", "gemma")}, STATED, file_name=NAME)
DATA = {
    tensor.name: np.random.default_rng(number).integers(1, 256, tensor.nbytes, np.uint8)
    for number, tensor in enumerate(HEADER.tensors)
}
SLAB = 17  # bytes


def slabs(name):
    return [(start, DATA[name][start : start + SLAB]) for start in range(0, len(DATA[name]), SLAB)]


def put(writer, name):
    for start, data in slabs(name):
        writer.write(name, start, data)
    writer.finish_tensor(name)


def write_all(folder, fingerprint="f"):
    with GgufWriter(folder / NAME, HEADER, fingerprint) as writer:
        for name in DATA:
            if name not in writer.finished:
                put(writer, name)
        return writer.commit()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes that every way of writing must give."""
    raw = bytearray(HEADER.total_bytes)
    raw[: len(HEADER.raw)] = HEADER.raw
    for tensor in HEADER.tensors:
        raw[tensor.offset : tensor.offset + tensor.nbytes] = DATA[tensor.name].tobytes()
    return bytes(raw)


def test_what_was_written_is_read(tmp_path, whole):
    path = write_all(tmp_path)
    assert path.read_bytes() == whole
    assert names(tmp_path) == [NAME]
    file = read_gguf(path)
    assert tuple(file.tensors.values()) == HEADER.tensors
    for name, tensor in file.tensors.items():
        assert read_tensor(path, tensor).tobytes() == DATA[name].tobytes()


def test_any_order_and_many_threads(tmp_path, whole):
    jobs = [(name, start, data) for name in DATA for start, data in slabs(name)]
    jobs = [jobs[place] for place in np.random.default_rng(1).permutation(len(jobs))]
    with GgufWriter(tmp_path / NAME, HEADER, None) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: writer.write(*job), jobs))
        list(pool.map(writer.finish_tensor, DATA))
        assert writer.finished == tuple(DATA)
        assert names(tmp_path) == [PARTIAL]
        assert writer.commit().read_bytes() == whole


def test_arrays_and_views_of_any_type(tmp_path):
    header = layout({}, [("w", (2, 3), "F32")])
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for data in (values, values.data, values.view(np.uint8)):
        with GgufWriter(tmp_path / NAME, header, None) as writer:
            writer.write("w", 0, data)
            writer.finish_tensor("w")
            writer.commit()
        assert read_tensor(tmp_path / NAME, read_gguf(tmp_path / NAME).tensors["w"]).tobytes() == values.tobytes()


def test_wrong_uses(tmp_path):
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        with pytest.raises(ValueError, match="'d' is not in the header"):
            writer.write("d", 0, DATA["a"])
        for start, size in ((-1, 1), (0, 21), (20, 1)):
            with pytest.raises(ValueError, match="of tensor 'b', which has 20"):
                writer.write("b", start, np.zeros(size, np.uint8))
        writer.write("b", 0, DATA["b"][:19])
        with pytest.raises(ValueError, match="19 bytes of tensor 'b' were written, expected 20"):
            writer.finish_tensor("b")
        with pytest.raises(ValueError, match="4 tensors not finished, such as 'a'"):
            writer.commit()
        writer.write("b", 19, DATA["b"][19:])
        writer.finish_tensor("b")
        with pytest.raises(ValueError, match="'b' is finished"):
            writer.write("b", 0, DATA["b"])
        with pytest.raises(ValueError, match="'b' is finished"):
            writer.finish_tensor("b")
        with pytest.raises(ValueError, match="'d' is not in the header"):
            writer.finish_tensor("d")
    assert names(tmp_path) == [PARTIAL, JOURNAL]


def test_a_killed_run_continues(tmp_path, whole):
    code = f"""
import os, signal
from pathlib import Path
import test_gguf_write as test
from quantkit.weights import gguf_write
gguf_write.SYNC_BYTES = 0
writer = gguf_write.GgufWriter(Path({str(tmp_path / NAME)!r}), test.HEADER, "f")
test.put(writer, "c")
writer.write("a", 0, test.DATA["a"][:50])
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment)
    assert done.returncode == -9
    assert names(tmp_path) == [PARTIAL, JOURNAL]
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        assert (writer.resumed, writer.finished) == (True, ("c",))
        for name in ("a", "none", "b"):
            put(writer, name)
        assert writer.commit().read_bytes() == whole
    assert names(tmp_path) == [NAME]


class Crash(BaseException):
    """The machine stops: nothing more of the program runs."""


def stop_after(monkeypatch, count):
    """Stop before a call that changes the disk, `count` such calls later; give back what nobody has waited for."""
    steps, unsynced = [], []

    def counted(name, effect):
        call = getattr(os, name)

        def run(*arguments, **options):
            steps.append(name)
            if len(steps) > count:
                raise Crash
            effect(*arguments)
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, run)

    def on_the_disk(descriptor):
        unsynced[:] = [write for write in unsynced if write[0] != descriptor]

    counted("pwrite", lambda descriptor, data, offset: unsynced.append((descriptor, offset, len(data))))
    counted("fsync", on_the_disk)
    counted("fdatasync", on_the_disk)
    counted("replace", lambda *_: None)
    counted("unlink", lambda *_: None)
    return steps, unsynced


def lose(path, unsynced):
    """What the machine had in memory only is gone."""
    with path.open("r+b") as file:
        for _, offset, size in unsynced:
            file.seek(offset)
            file.write(bytes(size))


def test_a_crash_at_any_step_leaves_nothing_half_made(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", 140)
    count, done, resumed = 0, False, set()
    while not done:
        folder = tmp_path / str(count)
        folder.mkdir()
        with monkeypatch.context() as patch:
            steps, unsynced = stop_after(patch, count)
            done = True
            try:
                writer = GgufWriter(folder / NAME, HEADER, "f")
                for name in DATA:
                    put(writer, name)
                writer.commit()
            except Crash:
                done = False
        if (folder / NAME).exists():
            assert not unsynced
            assert (folder / NAME).read_bytes() == whole
        elif (folder / PARTIAL).exists():
            lose(folder / PARTIAL, unsynced)
            with GgufWriter(folder / NAME, HEADER, "f") as again:
                resumed.add(again.finished)
        assert write_all(folder).read_bytes() == whole
        assert names(folder) == [NAME]
        assert len(steps) == count + (not done)
        count += 1
    assert count > 30
    assert resumed == {(), ("a", "none", "b")}


def test_a_crash_at_any_byte_of_the_journal(tmp_path, whole):
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        for name in ("a", "c"):
            put(writer, name)
            writer.sync()
    journal = (tmp_path / JOURNAL).read_bytes()
    first, second, third = (end + 1 for end, letter in enumerate(journal) if letter == 10)
    assert third == len(journal)
    for size in range(len(journal) + 1):
        (tmp_path / JOURNAL).write_bytes(journal[:size])
        if size < first:  # then nothing is known, and the file is begun anew
            (tmp_path / PARTIAL).write_bytes(whole)
        with GgufWriter(tmp_path / NAME, HEADER, "f") as again:
            expected = ("a", "c") if size == third else ("a",) if size >= second else ()
            assert (again.finished, again.resumed) == (expected, size >= first), size
        raw = (tmp_path / PARTIAL).read_bytes()
        assert (raw[len(HEADER.raw) :].strip(b"\0") == b"") == (size < first)
        (tmp_path / PARTIAL).write_bytes(whole)


def test_other_inputs_start_over(tmp_path, whole):
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        put(writer, "a")
    for header, fingerprint in ((HEADER, "g"), (OTHER, "f"), (HEADER, None)):
        with GgufWriter(tmp_path / NAME, header, fingerprint) as writer:
            assert (writer.resumed, writer.finished) == (False, ())
            tensor = header.tensors[0]
            with (tmp_path / PARTIAL).open("rb") as file:
                file.seek(tensor.offset)
                assert file.read(tensor.nbytes) == bytes(tensor.nbytes)
            put(writer, "a")
    assert names(tmp_path) == [PARTIAL]


@pytest.mark.parametrize("spoil", ["title", "names", "unknown", "size", "header", "absent"])
def test_a_journal_that_does_not_fit_is_not_believed(tmp_path, spoil):
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        put(writer, "a")
    journal, partial = tmp_path / JOURNAL, tmp_path / PARTIAL
    lines = journal.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["header_sha256"] == hashlib.sha256(HEADER.raw).hexdigest()
    if spoil == "title":
        journal.write_bytes(b"{}\n" + lines[1])
    elif spoil == "names":
        journal.write_bytes(lines[0] + b'{"finished": 3}\n' + lines[1])
    elif spoil == "unknown":
        journal.write_bytes(lines[0] + b'{"finished": ["a", "z"]}\n')
    elif spoil == "size":
        os.truncate(partial, HEADER.total_bytes - 1)
    elif spoil == "header":
        partial.write_bytes(b"X" + partial.read_bytes()[1:])
    else:
        partial.unlink()
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        assert writer.finished == ()
        assert writer.resumed == (spoil in ("names", "unknown"))


def lines(folder):
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()][1:]


def test_bytes_are_on_the_disk_before_they_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", 0)
    seen = []
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        monkeypatch.setattr(os, "fdatasync", lambda _: seen.append(len(lines(tmp_path))))
        for name in DATA:
            put(writer, name)
    assert seen == [0, 1, 2, 3]
    assert lines(tmp_path) == [{"finished": [name]} for name in DATA]


def test_the_disk_is_waited_for_now_and_then_only(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(gguf_write.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", DATA["b"].nbytes + DATA["c"].nbytes)
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        put(writer, "b")
        assert lines(tmp_path) == []
        put(writer, "c")
        assert lines(tmp_path) == [{"finished": ["b", "c"]}]
        clock.now = gguf_write.SYNC_SECONDS - 0.1
        put(writer, "none")
        assert len(lines(tmp_path)) == 1
        clock.now += 0.2
        put(writer, "a")
        assert lines(tmp_path)[1:] == [{"finished": ["none", "a"]}]


def test_an_ended_run_keeps_what_is_finished(tmp_path):
    def run():
        with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
            put(writer, "a")
            writer.write("c", 0, DATA["c"][:5])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert lines(tmp_path) == [{"finished": ["a"]}]


def refuse(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_known_before_any_work(tmp_path, monkeypatch, call, code):
    monkeypatch.setattr(os, call, refuse(code))
    with pytest.raises(DiskError, match=r"cannot write .*m.gguf.partial: .*needed .* free") as caught:
        GgufWriter(tmp_path / NAME, HEADER, "f")
    assert caught.value.hint or code == errno.EIO
    assert names(tmp_path) == []


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=HEADER.total_bytes - 100))
    with pytest.raises(
        DiskError, match=rf"needed {HEADER.total_bytes} B, free {HEADER.total_bytes - 100} B, 100 B missing"
    ):
        GgufWriter(tmp_path / NAME, HEADER, "f")


def test_a_disk_without_reservation_still_works(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
    assert write_all(tmp_path).read_bytes() == whole


def test_a_full_disk_at_the_second_start_keeps_what_is_finished(tmp_path, monkeypatch, whole):
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        put(writer, "a")
    for call in ("posix_fallocate", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse(errno.ENOSPC))
            with pytest.raises(DiskError):
                GgufWriter(tmp_path / NAME, HEADER, "f")
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        assert writer.finished == ("a",)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "fdatasync"])
def test_later_failures_leave_nothing_at_the_final_name(tmp_path, monkeypatch, call, code, whole):
    monkeypatch.setattr(gguf_write, "SYNC_BYTES", 0)
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        put(writer, "c")

        def go_on():
            for name in ("a", "none", "b"):
                put(writer, name)
            writer.commit()

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse(code))
            with pytest.raises(DiskError, match="cannot write"):
                go_on()
    assert names(tmp_path) == [PARTIAL, JOURNAL]
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        assert "c" in writer.finished
    assert write_all(tmp_path).read_bytes() == whole


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(DiskError, match="No such file"):
        GgufWriter(tmp_path / "absent" / NAME, HEADER, "f")


def test_an_old_file_is_replaced_at_the_end_only(tmp_path, whole):
    (tmp_path / NAME).write_bytes(b"old")
    with GgufWriter(tmp_path / NAME, HEADER, "f") as writer:
        for name in DATA:
            assert (tmp_path / NAME).read_bytes() == b"old"
            put(writer, name)
        writer.commit()
    assert (tmp_path / NAME).read_bytes() == whole
