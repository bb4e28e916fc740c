"""An index, a config.json or a folder that is not what it must be."""

import json

import pytest
import torch
from safetensors.torch import save_file
from spoil import (
    DEEP,
    HTML,
    INDEX,
    LFS,
    SHARD,
    SMALL,
    WEIGHTS,
    Case,
    both,
    folder_named,
    link_named,
    mapped,
    pipe_named,
    prepend,
    remove,
    table,
    write,
)

from quantkit.cli import _run

BY_THE_FIRST_LOOK = True  # unless a case is `late`
BIN_INDEX = "pytorch_model.bin.index.json"
FIRST, LAST = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
INSIDE = "expected the name of a .safetensors file inside the folder"


def led_to(name, shard):
    """The index leads a tensor to such a file."""
    return Case(name, mapped(shard), (INDEX, "for tensor 'model.norm.weight'", INSIDE), layout="sharded")


def twice(folder):
    """A tensor that the index does not name stands in two shards."""
    for number, shard in enumerate((FIRST, LAST)):
        save_file({f"own.{number}": torch.ones(1), "both": torch.ones(1)}, folder / shard)
    content = {"weight_map": {"own.0": FIRST, "own.1": LAST}}
    (folder / INDEX).write_text(json.dumps(content))


@table(
    led_to("out-of-the-folder", "../../etc/passwd"),
    led_to("an-absolute-path", "/etc/passwd"),
    led_to("a-safetensors-outside", "../other/model.safetensors"),
    led_to("the-folder-itself", "."),
    led_to("the-parent", ".."),
    led_to("another-drive", "C:\\model.safetensors"),
    led_to("a-nul-byte", "model.safetensors\0.txt"),
    led_to("a-newline", "model\n.safetensors"),
    led_to("no-name", ""),
    led_to("null", None),
    led_to("a-number", 3),
    led_to("a-list", [SHARD]),
    led_to("a-name-of-5000-characters", "a" * 5000 + ".safetensors"),
    led_to("a-file-of-another-kind", "config.json"),
    Case(
        "bin-out-of-the-folder",
        mapped("../../etc/passwd", index=BIN_INDEX),
        (BIN_INDEX, "'../../etc/passwd'", "expected the name of a .bin file inside the folder"),
        layout="bin-sharded",
    ),
    Case(
        "a-shard-that-is-missing",
        remove(SHARD),
        ("model: 1 of 3 shards of model.safetensors.index.json are missing", SHARD),
        code=4,
        hint="finish the download",
        layout="sharded",
    ),
    Case(
        "all-shards-missing",
        remove(FIRST, SHARD, LAST),
        ("3 of 3 shards", "are missing"),
        code=4,
        hint="finish the download",
        layout="sharded",
    ),
    Case("a-shard-never-made", mapped("model-9.safetensors"), ("1 of 4 shards", "model-9"), code=4, layout="sharded"),
    Case(
        "a-tensor-in-the-wrong-shard",
        mapped(FIRST, "lm_head.weight"),
        (INDEX, f"found 'lm_head.weight' in {FIRST}, which does not hold it"),
        layout="sharded",
    ),
    Case("a-tensor-of-no-shard", mapped(FIRST, "zzz"), (INDEX, "found 'zzz' in", "does not hold it"), layout="sharded"),
    Case("a-tensor-in-two-shards", twice, (INDEX, f"found 'both' in {FIRST} and {LAST}"), layout="sharded"),
)
def test_an_index_that_misleads(case, refused):
    refused(case)


def of_index(name, content, *says):
    return Case(name, write(INDEX, content), (INDEX, *says), layout="sharded")


@table(
    of_index("empty", b"", "an empty file", "expected JSON"),
    of_index("a-list", b"[]", "JSON of type list", "expected an object"),
    of_index("cut-off", b'{"weight_map": {"a"', "no valid JSON"),
    of_index("nested-deeply", DEEP, "no valid JSON", "recursion"),
    of_index("a-tensor-twice", b'{"weight_map": {"a": "b", "a": "c"}}', "key 'a' occurs twice"),
    of_index("without-a-map", b'{"metadata": {}}', "no weight_map", "expected tensor names with file names"),
    of_index("with-an-empty-map", b'{"weight_map": {}}', "no weight_map"),
    of_index("with-a-list-for-a-map", b'{"weight_map": ["a"]}', "no weight_map"),
    of_index("an-lfs-pointer", LFS, "a git-LFS pointer", "expected JSON"),
    Case("with-a-bom", prepend(INDEX, b"\xef\xbb\xbf"), (INDEX, "BOM"), layout="sharded"),
    Case("a-folder", folder_named(INDEX), (INDEX, "is a folder, expected a file"), layout="sharded"),
    Case("a-pipe", pipe_named(INDEX), (INDEX, "is a pipe, expected a file"), layout="sharded"),
    Case("a-link-to-itself", link_named(INDEX, INDEX), (INDEX, "Too many levels"), code=6, layout="sharded"),
)
def test_an_index_that_is_none(case, refused):
    refused(case)


def of_config(name, content, *says, hint="fetch"):
    return Case(name, write("config.json", content), ("config.json", *says), hint=hint)


@table(
    of_config("empty", b"", "an empty file", "expected JSON"),
    of_config("cut-off", b'{"architectures": ["Llama', "no valid JSON", "Unterminated string"),
    of_config("a-list", b"[1]", "JSON of type list", "expected an object"),
    of_config("a-number", b"7", "JSON of type int", "expected an object"),
    of_config("nested-deeply", DEEP, "no valid JSON", "recursion"),
    of_config("lists-nested-deeply", b"[" * 100_000, "no valid JSON", "recursion"),
    of_config("a-number-of-6000-digits", b'{"vocab_size":' + b"9" * 6000 + b"}", "no valid JSON", "digits"),
    of_config("with-a-bom", b'\xef\xbb\xbf{"architectures": []}', "no valid JSON", "BOM"),
    of_config("utf-16", '{"a": 1}'.encode("utf-16"), "no valid JSON", "utf-8"),
    of_config("latin-1", b'{"a": "\xe9"}', "no valid JSON", "utf-8"),
    of_config("zeros", bytes(300), "no valid JSON"),
    of_config("a-web-page", HTML, "a web page", "expected JSON"),
    of_config("an-lfs-pointer", LFS, "a git-LFS pointer", "expected JSON", hint="git lfs pull"),
    of_config("an-answer", b"Entry not found", "the text 'Entry not found'", "expected JSON"),
    Case("absent", remove("config.json"), ("model: found no config.json",), code=4, hint="name the folder"),
    Case("a-folder", folder_named("config.json"), ("model/config.json is a folder, expected a file",)),
    Case("a-pipe", pipe_named("config.json"), ("model/config.json is a pipe, expected a file",)),
    Case("a-device", link_named("config.json", "/dev/zero"), ("model/config.json is a device, expected a file",)),
    Case("a-link-to-nothing", link_named("config.json", "gone"), ("config.json is a link to a file",), code=4),
)
def test_a_config_that_is_none(case, refused):
    refused(case)


def beyond_the_limit(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(26_000_000)


def two_files(folder):
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(b"")


@table(
    Case("config-of-26-MB", beyond_the_limit, ("config.json", "found 26000000 bytes", "expected at most 25000000")),
    Case("no-weights", remove(WEIGHTS), ("model: found no weights", "expected model.safetensors or an index"), code=4),
    Case("two-files-and-no-index", two_files, ("found 2 safetensors files (a.safetensors, b.safetensors) but no",)),
    Case(
        "a-bin-beside-a-broken-safetensors",
        both(write(WEIGHTS, b""), write("pytorch_model.bin", b"")),
        (WEIGHTS, "an empty file"),
    ),
)
def test_a_folder_that_is_no_checkpoint(case, refused):
    refused(case)


GOOD = [("LlamaForCausalLM", layout) for layout in ("safetensors", "sharded", "bin", "bin-sharded")]


@pytest.mark.parametrize(("architecture", "layout"), [*GOOD, ("Qwen2ForCausalLM", "safetensors")])
def test_the_checkpoint_that_all_of_these_spoil_is_good(good, capsys, architecture, layout):
    assert _run(["plan", str(good(architecture, layout)), *SMALL], debug=False) == 0
    assert capsys.readouterr().err == ""
