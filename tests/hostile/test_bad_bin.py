"""PyTorch files: damage is named, and no gadget of a pickle ever runs."""

import contextlib
import io
import os
import pickle
import subprocess
import tarfile
import zipfile

import pytest
import torch
from spoil import HTML, LFS, Case, cut, folder_named, pipe_named, table, write

BY_THE_FIRST_LOOK = True  # unless a case is `late`
BIN = "pytorch_model.bin"
SHARD = "pytorch_model-00002-of-00003.bin"
ZIP_FORM = "expected the zip form of torch.save (torch 1.6 and later)"
CONVERT = "use the safetensors files of this checkpoint"


def archive(pickled, records=(), compression=zipfile.ZIP_STORED):
    """A file as torch.save writes it, around any pickle."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as file:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n"), *records):
            file.writestr(f"archive/{name}", content)
    return raw.getvalue()


def saved(state):
    return lambda folder: torch.save(state, folder / BIN)


def rewritten(change):
    """The records of the good file, changed: a function of name and content that returns records."""

    def spoil(folder):
        with zipfile.ZipFile(folder / BIN) as file:
            records = [(record.filename, file.read(record)) for record in file.infolist()]
        with zipfile.ZipFile(folder / BIN, "w") as file:
            for name, content in records:
                for new_name, new in change(name, content):
                    file.writestr(new_name, new)

    return spoil


def of(name, spoil, *says, hint=None, code=3, layout="bin"):
    return Case(name, spoil, says, hint=hint, code=code, layout=layout)


@table(
    of("empty", write(BIN, b""), BIN, "an empty file", ZIP_FORM, hint="fetch"),
    of("lfs-pointer", write(BIN, LFS), BIN, "a git-LFS pointer", ZIP_FORM, hint="git lfs pull"),
    of("lfs-pointer-as-shard", write(SHARD, LFS), SHARD, "a git-LFS pointer", hint="git lfs", layout="bin-sharded"),
    of("web-page", write(BIN, HTML), BIN, "a web page", ZIP_FORM, hint="fetch"),
    of("answer", write(BIN, b"Entry not found"), BIN, "the text 'Entry not found'", ZIP_FORM),
    of("zeros", write(BIN, bytes(999)), BIN, r"b'\x00\x00\x00\x00' in front", ZIP_FORM, hint=CONVERT),
    of("bare-pickle", write(BIN, pickle.dumps({"a": 1})), BIN, "a bare pickle", ZIP_FORM, hint=CONVERT),
    of("truncated-by-a-byte", cut(BIN, -1), BIN, "without its directory", "expected it at the end", hint="fetch"),
    of("truncated-by-half", cut(BIN, 300_000), BIN, "a zip file of 300000 bytes without its directory", hint="fetch"),
    of("zip-of-nothing", write(BIN, archive(b"")[:4] + bytes(99)), BIN, "without its directory"),
    of("folder", folder_named(BIN), "model/pytorch_model.bin is a folder, expected a file"),
    of("pipe", pipe_named(BIN), "model/pytorch_model.bin is a pipe, expected a file"),
    of("no-pickle-inside", rewritten(lambda n, c: [] if n.endswith(".pkl") else [(n, c)]), BIN, "found no data.pkl"),
    of("empty-pickle", write(BIN, archive(b"")), BIN, "a pickle that does not load", "expected tensors alone"),
    of("pickle-of-zeros", write(BIN, archive(bytes(99))), BIN, "does not load (Unsupported operand 0)"),
    of("big-endian", rewritten(lambda n, c: [(n, b"big" if n.endswith("order") else c)]), BIN, "big-endian numbers"),
    of(
        "zip-bomb",
        write(BIN, archive(bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)),
        BIN,
        "found compressed records, expected plain ones",
    ),
    of(
        "storages-shorter-than-stated",
        rewritten(lambda n, c: [(n, c[:8] if "/data/" in n else c)]),
        BIN,
        "reaching beyond its storage",
    ),
    of(
        "storages-missing",
        rewritten(lambda n, c: [] if n.endswith("/data/3") else [(n, c)]),
        BIN,
        "expected tensors alone",
    ),
    of("list", saved([torch.ones(1)]), BIN, "found no dictionary of tensors", hint=CONVERT),
    of("empty-dictionary", saved({}), BIN, "found no dictionary of tensors"),
    of("training-state", saved({"model": {"a": torch.ones(1)}}), BIN, "found dict under 'model', expected a tensor"),
    of("step-counter", saved({"epoch": 3}), BIN, "found int under 'epoch', expected a tensor"),
    of("keys-of-numbers", saved({1: torch.ones(1)}), BIN, "found the key 1, expected tensor names"),
    of("complex-numbers", saved({"a": torch.ones(1, dtype=torch.complex64)}), BIN, "'a' of torch.complex64"),
    of("transposed-view", saved({"a": torch.ones(2, 3).T}), BIN, "strides (1, 3) for shape [3, 2]", "contiguous"),
    of("whole-module", saved(torch.nn.Linear(2, 2)), BIN, "torch.nn.modules.linear.Linear in its pickle", hint=CONVERT),
)
def test_a_file_that_is_damaged_or_holds_more_than_tensors(case, refused):
    refused(case)


# Gadgets: pickles that run a command when they are loaded. `touch canary` leaves a file in the working folder.

COMMAND = b"touch canary"


def text(content: bytes) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content


def run(function: bytes, argument: bytes = text(COMMAND)) -> bytes:
    """GLOBAL and REDUCE: the function called with one argument."""
    module, _, name = function.rpartition(b".")
    return b"c" + module + b"\n" + name + b"\n" + argument + b"\x85R"


SYSTEM = b"cposix\nsystem\n"
LIST = b"](" + text(b"touch") + text(b"canary") + b"e"
INNER = b"\x80\x02" + run(b"posix.system") + b"."
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
GADGETS = {
    "os.system": run(b"posix.system"),
    "os.system-by-its-other-name": run(b"os.system"),
    "stack-global": b"\x8c\x05posix\x8c\x06system\x93" + text(COMMAND) + b"\x85R",
    "eval": run(b"builtins.eval", text(b"__import__('os').system('" + COMMAND + b"')")),
    "eval-of-python-2": run(b"__builtin__.eval", text(b"__import__('os').system('" + COMMAND + b"')")),
    "exec": run(b"builtins.exec", text(b"import os; os.system('" + COMMAND + b"')")),
    "inst": b"(S'" + COMMAND + b"'\niposix\nsystem\n",
    "inst-of-another-module": b"(S'touch canary'\nisubprocess\ngetoutput\n",
    "obj": b"(csubprocess\nPopen\n" + LIST + b"o",
    "popen": run(b"subprocess.Popen", LIST),
    "reconstructor": b"ccopyreg\n_reconstructor\ncsubprocess\nPopen\ncsubprocess\nPopen\n" + LIST + b"\x87R",
    "partial": b"cfunctools\npartial\n" + SYSTEM + text(COMMAND) + b"\x86R)R",
    "partial-by-build": (
        b"cfunctools\npartial\n" + SYSTEM + b"\x85R(" + SYSTEM + text(COMMAND) + b"\x85}Ntb)R"
    ),
    "methodcaller": (
        b"coperator\nmethodcaller\n" + text(b"system") + text(COMMAND) + b"\x86R"
        + run(b"importlib.import_module", text(b"os")) + b"\x85R"
    ),
    "import-and-getattr": (
        b"cbuiltins\ngetattr\n" + run(b"builtins.__import__", text(b"os")) + text(b"system") + b"\x86R"
        + text(COMMAND) + b"\x85R"
    ),
    "bytes-through-codecs": run(
        b"builtins.eval",
        b"c_codecs\nencode\n" + text(b"__import__('os').system('touch canary')") + text(b"latin1") + b"\x86R",
    ),
    "pickle-in-a-pickle": run(b"_pickle.loads", b"B" + len(INNER).to_bytes(4, "little") + INNER),
    "array-of-objects": (
        ARRAY + b"(K\x01K\x01\x85cnumpy\ndtype\n" + text(b"O8") + b"K\x00K\x01\x87R\x89]("
        + run(b"posix.system") + b"etb"
    ),
    "through-a-tensor's-rebuilding": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + SYSTEM + b"ctorch\nTensor\n" + text(COMMAND) + b"\x85}tR"
    ),
    "as-a-key": b"}" + run(b"posix.system") + b"K\x01s",
}  # fmt: skip
ASIDE = {  # harmless in themselves, or only with a network: refused all the same
    "allow-list-extended": b"ctorch.serialization\nadd_safe_globals\n](" + SYSTEM + b"e\x85R",
    "torch.hub": b"ctorch.hub\nload\n" + text(b"some/repo") + text(b"entry") + b"\x86R",
    "torch.jit": run(b"torch.jit.load", text(b"file.pt")),
    "torch.load-again": run(b"torch.load", text(b"file.bin")),
    "attrgetter": run(b"operator.attrgetter", text(b"system")),
    "extension-code": b"\x82\x01",
    "new-object": b"csubprocess\nPopen\n)\x81",
}
PROTOCOL = {"stack-global": b"\x80\x04", "eval-of-python-2": b"\x80\x02"}


def pickled(name):
    return PROTOCOL.get(name, b"\x80\x03") + (GADGETS | ASIDE)[name] + b"."


@pytest.mark.parametrize("name", GADGETS)
def test_the_gadget_would_run_if_it_were_loaded(name, tmp_path, monkeypatch):
    """Otherwise a canary that stays away would prove nothing."""
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(AttributeError):  # torch misses a tensor in what the command returned
        loaded = pickle.loads(pickled(name))
        if isinstance(loaded, subprocess.Popen):
            loaded.wait()
    assert (tmp_path / "canary").exists()


@table(
    *[
        of(name, write(BIN, archive(pickled(name))), f"{BIN}: found ", "expected tensors alone", hint=CONVERT)
        for name in (*GADGETS, *ASIDE)
    ],
    *[
        of(f"{name}-bare", write(BIN, pickled(name)), f"{BIN}: found a bare pickle", ZIP_FORM)
        for name in ("os.system", "eval")
    ],
)
def test_no_gadget_runs(case, refused, tmp_path):
    refused(case)
    assert not (tmp_path / "canary").exists()


class Gadget:
    def __reduce__(self):
        return os.system, (COMMAND.decode(),)


def legacy(folder):
    """The form of torch before 1.6, a gadget among the tensors."""
    state = {"a": torch.ones(1), "b": Gadget()}
    torch.save(state, folder / BIN, _use_new_zipfile_serialization=False)


def old_tar(folder):
    """The form of torch before 0.1.10: a tar file with three pickles."""
    with tarfile.open(folder / BIN, "w") as file:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled("os.system"))
            file.addfile(member, io.BytesIO(pickled("os.system")))


def torchscript(folder):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), folder / BIN)


def among_tensors(folder):
    torch.save({"a": torch.ones(1), "b": [Gadget()]}, folder / BIN)


def hidden_beside(folder):
    """A second data.pkl in another folder of the same archive."""
    with zipfile.ZipFile(folder / BIN, "a") as file:
        file.writestr("other/data.pkl", pickled("os.system"))


def as_a_storage(folder):
    """A pickle as the bytes of a tensor: they are bytes and nothing else."""
    torch.save({"a": torch.frombuffer(bytearray(pickled("os.system")), dtype=torch.uint8)}, folder / BIN)


@table(
    of("legacy-form", legacy, BIN, "a bare pickle, as older versions wrote it", ZIP_FORM),
    of("tar-form", old_tar, BIN, "in front", ZIP_FORM),
    of("torchscript", torchscript, BIN, "found compressed records"),
    of("among-tensors", among_tensors, BIN, "posix.system in its pickle", "expected tensors alone"),
    of("hidden-beside-the-first", hidden_beside, BIN, "two records of one name"),
    of("as-a-storage", as_a_storage, "is missing from the checkpoint"),
    of("in-a-shard", lambda f: torch.save({"a": Gadget()}, f / SHARD), SHARD, "posix.system", layout="bin-sharded"),
)
def test_no_gadget_runs_wherever_it_hides(case, refused, tmp_path):
    refused(case)
    assert not (tmp_path / "canary").exists()
