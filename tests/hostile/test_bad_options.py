"""Recipes and options that ask for what cannot be: exit code 2 for an option, 3 for a file."""

import pytest
from spoil import Case, folder_named, nothing, pipe_named, table, write

RECIPE = "mine.yaml"
FROM = ("--recipe", f"model/{RECIPE}")
DEEPER = b"".join(b" " * depth + b"a:\n" for depth in range(400))
BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghi"
)


def recipe(name, content, *says, hint=None):
    return Case(name, write(RECIPE, content), (RECIPE, *says), options=FROM, hint=hint)


NOT_YAML = "is not YAML of a recipe"


@table(
    recipe("empty", b"", "found NoneType, expected keys such as bits: 4"),
    recipe("a-list", b"- 4", "found list, expected keys such as bits: 4"),
    recipe("a-text", b"hello", "found str, expected keys such as bits: 4"),
    recipe("bytes", bytes(range(256)), NOT_YAML, "utf-8"),
    recipe("a-tab", b"bits:\t4\n\tmethod: 3", NOT_YAML, "line 1"),
    recipe("cut-off", b"rules: [a", NOT_YAML, "line 1"),
    recipe("two-documents", b"bits: 4\n---\nbits: 8\n", NOT_YAML, "line 2", "another document"),
    recipe("an-unknown-key", b"bitz: 4", "unknown recipe key 'bitz'", hint="did you mean bits?"),
    recipe("an-unknown-key-inside", b"calibration: {sample: 3}", "'calibration.sample'", hint="did you mean samples?"),
    recipe("a-key-of-a-number", b"4: bits", "recipe key 4 is not text"),
    recipe("a-key-of-a-list", b"? [a]\n: b\n", NOT_YAML, "line 1", "unhashable"),
    recipe("a-key-twice", b"bits: 4\nmethod: gptq\nbits: 8\n", NOT_YAML, "line 3", "found the key 'bits' twice"),
    recipe("a-key-twice-inside", b"calibration: {seed: 1, seed: 2}", NOT_YAML, "found the key 'seed' twice"),
    recipe("a-tag-that-runs", b"!!python/object/apply:os.system ['touch canary']", NOT_YAML, "os.system"),
    recipe("a-tag-inside", b"bits: !!python/name:os.system\n", NOT_YAML, "python/name:os.system"),
    recipe("a-tag-of-a-module", b"bits: !!python/module:subprocess\n", NOT_YAML, "python/module"),
    recipe("a-billion-laughs", BILLION + b"bits: *i\n", NOT_YAML, "line 2: found the alias *a"),
    recipe("a-list-in-itself", b"bits: &a [*a]\n", NOT_YAML, "found the alias *a"),
    recipe("a-merge-of-itself", b"<<: &a {<<: *a}\n", NOT_YAML, "found the alias *a"),
    recipe("brackets-nested-deeply", b"a: " + b"[" * 50_000, NOT_YAML, "nested too deeply"),
    recipe("braces-nested-deeply", b"{a: " * 3000, NOT_YAML, "nested too deeply"),
    recipe("lists-nested-deeply", b"- " * 3000, NOT_YAML, "nested too deeply"),
    recipe("keys-nested-deeply", DEEPER, NOT_YAML, "nested too deeply"),
    recipe("longer-than-any", b"# " + b"x" * 2**18, "found more than 262144 bytes, expected a recipe"),
    recipe("bits-of-nine", b"bits: 9", "recipe bits: Input should be 2, 3, 4 or 8, found 9"),
    recipe("bits-null", b"bits: null", "Input should be 2, 3, 4 or 8, found None"),
    recipe("bits-true", b"bits: true", "Input should be 2, 3, 4 or 8, found True"),
    recipe("bits-a-date", b"bits: 2020-01-01", "Input should be 2, 3, 4 or 8, found datetime.date"),
    recipe("bits-a-long-list", b"bits: [" + b"1," * 9999 + b"]", "Input should be 2, 3, 4 or 8, found [1, 1,"),
    recipe("damping-nan", b"damp_percent: .nan", "found nan"),
    recipe("damping-infinite", b"damp_percent: .inf", "Input should be less than 1, found inf"),
    recipe("samples-negative", b"calibration: {samples: -3}", "greater than or equal to 1, found -3"),
    recipe("calibration-a-text", b"calibration: english", "recipe calibration: Input should be", "found 'english'"),
    recipe("rules-a-mapping", b"rules: {a: 8bit}", "recipe rules: Input should be a list"),
    recipe("a-shard-of-a-number", b"max_shard_size: 5", "Input should be a valid string, found 5"),
    recipe("a-shard-past-counting", b"max_shard_size: " + b"9" * 400 + b"GB", "not a size: '9999"),
    Case("absent", nothing, ("no recipe 'model/mine.yaml'",), options=FROM, hint="shipped: "),
    Case("a-folder", folder_named(RECIPE), ("no recipe 'model/mine.yaml'",), options=FROM, hint="or name a file"),
    Case("a-pipe", pipe_named(RECIPE), ("no recipe 'model/mine.yaml'",), options=FROM, hint="or name a file"),
    Case("a-name-of-5000", nothing, ("no recipe 'aaaa",), options=("--recipe", "a" * 5000), hint="shipped: "),
    Case("a-name-with-nul", nothing, (r"no recipe 'a\x00b'",), options=("--recipe", "a\0b"), hint="shipped: "),
)
def test_a_recipe_that_is_none(case, refused, tmp_path):
    refused(case)
    assert not (tmp_path / "canary").exists()


def option(name, value, *says, hint=None):
    return Case(f"{name}-{value[:20] or 'empty'}", nothing, says, code=2, options=(f"--{name}", value), hint=hint)


BITS = "option bits: Input should be 2, 3, 4 or 8, found"
GROUPS = "option group_size: Input should be -1, 32, 64 or 128, found"
ONE = "Input should be greater than or equal to 1, found"
SIZE = "write a number"


@table(
    option("bits", "9", f"{BITS} 9"),
    option("bits", "0", f"{BITS} 0"),
    option("bits", "-4", f"{BITS} -4"),
    option("bits", "4.5", "invalid value for '--bits': Input should be a valid integer", hint="lists the options"),
    option("bits", "9" * 30, "option bits: ", "found 9999"),
    option("group-size", "7", f"{GROUPS} 7"),
    option("group-size", "0", f"{GROUPS} 0"),
    option("group-size", "-128", f"{GROUPS} -128"),
    option("samples", "0", f"option calibration.samples: {ONE} 0"),
    option("samples", "-1", f"option calibration.samples: {ONE} -1"),
    option("sequence-length", "0", f"option calibration.sequence_length: {ONE} 0"),
    option("seed", "x", "invalid value for '--seed'"),
    option("context", "0", "invalid value for '--context': Input should be greater than or equal to 1"),
    option("damp", "0", "option damp_percent: Input should be greater than 0, found 0"),
    option("damp", "1", "option damp_percent: Input should be less than 1, found 1"),
    option("damp", "nan", "option damp_percent: ", "found nan"),
    option("damp", "inf", "option damp_percent: Input should be less than 1, found inf"),
    option("method", "awq", "option method: Input should be 'gptq' or 'rtn', found 'awq'"),
    option("act-order", "yes", "Input should be 'none', 'static' or 'full', found 'yes'"),
    option("scales", "best", "Input should be 'search' or 'minmax', found 'best'"),
    option("dtype", "float32", "Input should be 'auto', 'float16' or 'bfloat16', found 'float32'"),
    option("target", "ollama", "Input should be 'transformers', 'vllm', 'sglang'", "found 'ollama'"),
    option("max-shard-size", "0", "not a size: '0'", hint=SIZE),
    option("max-shard-size", "-1GB", "not a size: '-1GB'", hint=SIZE),
    option("max-shard-size", "nanGB", "not a size: 'nanGB'", hint=SIZE),
    option("max-shard-size", "9" * 400, "not a size: '9999", hint=SIZE),
    option("max-shard-size", "", "not a size: ''", hint=SIZE),
    option("device", "gpu", "no device 'gpu'", hint="use auto, cpu, cuda, cuda:N or mps"),
    option("device", "cuda:-1", "no device 'cuda:-1'", hint="use auto, cpu"),
    option("device", "meta", "no device 'meta'"),
    option("rule", "", "not a rule: ''", hint="write PATTERN=SETTING"),
    option("rule", "[", "not a rule: '['", hint="write PATTERN=SETTING"),
    option("rule", "=8bit", "not a rule: '=8bit'"),
    option("rule", "*=8bit,", "not a setting: ''", hint="use 2bit, 3bit, 4bit, 8bit, g32"),
    option("rule", "*=9bit", "not a setting: '9bit'", hint="use 2bit, 3bit, 4bit, 8bit, g32"),
    option("rule", "[=8bit", "the pattern '[' names no linear", hint="model.layers.0.self_attn.q_proj"),
    option("rule", "(a+)+$=8bit", "the pattern '(a+)+$' names no linear"),
    option("rule", "*a" * 40 + "=8bit", "names no linear of this checkpoint"),
    option("rule", "(" * 5000 + "=8bit", "names no linear of this checkpoint"),
    option("skip", "", "the pattern '' names no linear"),
    option("skip", "*", "nothing is left to quantize"),
    option("calibration", "", "no calibration text ''", hint="name a text or JSONL file, or one of: default"),
    option("calibration", "nowhere.txt", "no calibration text 'nowhere.txt'", hint="name a text or JSONL file"),
    option("calibration", "model", "no calibration text 'model'", hint="name a text or JSONL file"),
    option("calibration", "english:0", "the weight of 'english' is 0, expected more than 0"),
    option("calibration", "english:-1", "the weight of 'english' is -1, expected more than 0"),
    option("calibration", "english:nan", "the weight of 'english' is nan, expected more than 0"),
    option("out", "a" * 300, "no folder can be named 'aaaa", "File name too long", hint="choose another --out"),
    option("out", "a\0b", "'--out' / '-o'", "null byte"),
)
def test_an_option_that_cannot_be(case, refused):
    refused(case)


@table(
    Case("a-file", write("../here", b""), ("here is a file, expected a folder",), options=("--out", "here")),
    Case("the-source", nothing, ("model holds",), options=("--out", "model"), hint="choose another --out"),
    Case("somebody's", nothing, (" holds ",), options=("--out", "."), hint="choose another --out"),
    Case("below-a-file", write("../here", b""), ("here is a file, expected a folder",), options=("--out", "here/out")),
)
def test_an_output_that_is_something_else(case, refused):
    refused(Case(**{**case.__dict__, "planned": False}))


@pytest.mark.parametrize(
    "reference", ["nowhere", "a" * 5000, "~nobody-of-this-name/x", "", "a\0b", "../..//x", "a/b/c"]
)
@pytest.mark.parametrize("command", ["plan", "gptq"])
def test_a_model_that_no_place_has(command, reference, tmp_path, monkeypatch, capsys):
    from quantkit.cli import _run

    monkeypatch.chdir(tmp_path)
    assert _run([command, reference, "--device", "cpu"], debug=False) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"quantkit: no such folder: {reference[:200]}\n"
        "hint: write a folder's path, or organisation/name@revision for the Hub\n"
    )
    assert list(tmp_path.iterdir()) == []
