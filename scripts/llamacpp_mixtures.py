"""Records which ggml type llama.cpp gives every tensor: the witness of quantkit/formats/mixtures.py.

    .venv-peers-llama-quantize/bin/python scripts/llamacpp_mixtures.py tests/formats/mixtures.json

Runs in any Python with llama-cpp-python (scripts/make_llamacpp.sh makes one) and imports nothing of quantkit. For
every model below it writes the header of a GGUF file, makes the file as long as its tensors would (a hole, not on the
disk), and lets `llama_model_quantize` say in a dry run what it would do. What is written, all lines short:

ftypes     name -> number
codes      letter -> ggml type
models     name -> what the metadata declare, and tensors: name -> shape, rows first; blk.* stands for every layer
answers    model -> ftype -> a word per tensor of `models`, a letter per layer or one for all that are equal;
           "Q4_0 +imatrix" where an importance matrix changes the answer
refused    model -> file types that llama.cpp makes only with an importance matrix
overrides  model, ftype, [[regex, type], ...] and the answer
"""

import argparse
import ctypes
import json
import math
import re
import struct
import tempfile
from pathlib import Path

import llama_cpp

FTYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
    "Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28,
    "IQ2_M": 29, "IQ3_XXS": 23, "IQ3_XS": 22, "IQ3_S": 26, "IQ3_M": 27, "IQ4_NL": 25, "IQ4_XS": 30,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip
CODES = {
    "f": "F32", "h": "F16", "b": "BF16", "0": "Q4_0", "1": "Q4_1", "r": "Q5_0", "s": "Q5_1", "8": "Q8_0",
    "2": "Q2_K", "3": "Q3_K", "4": "Q4_K", "5": "Q5_K", "6": "Q6_K", "A": "IQ1_S", "B": "IQ1_M", "C": "IQ2_XXS",
    "D": "IQ2_XS", "E": "IQ2_S", "F": "IQ3_XXS", "G": "IQ3_S", "N": "IQ4_NL", "X": "IQ4_XS",
    "t": "TQ1_0", "T": "TQ2_0", "M": "MXFP4",
}  # fmt: skip
LETTERS = {name: letter for letter, name in CODES.items()}
NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q3_K": 11, "Q5_K": 13, "Q6_K": 14, "IQ4_XS": 23}
ALIGNMENT = 32
LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = +(\S+), size = [^(\n]*(?:\((\S+)\))?\n")


def attention(hidden: int, kv: int) -> dict[str, tuple[int, ...]]:
    return {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden)}


def model(
    architecture: str, heads: int, kv_heads: int, layers: int, hidden: int, inner: int, vocabulary: int, *,
    experts: int = 0, tied: bool = False, block: dict[str, tuple[int, ...]] | None = None,
    outer: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, object]:  # fmt: skip
    """A model's hyperparameters and the shapes of its tensors; `block` in place of a Llama's."""
    if block is None:
        block = attention(hidden, hidden // heads * kv_heads)
        block |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    block = {"attn_norm": (hidden,), "ffn_norm": (hidden,)} | block
    tensors = {"output_norm.weight": (hidden,), "token_embd.weight": (vocabulary, hidden)}
    tensors |= {} if tied else {"output.weight": (vocabulary, hidden)}
    tensors |= {with_suffix(name): shape for name, shape in (outer or {}).items()}
    tensors |= {f"blk.*.{with_suffix(name)}": shape for name, shape in block.items()}
    return {
        "architecture": architecture, "heads": heads, "kv_heads": kv_heads, "layers": layers, "experts": experts,
        "tensors": tensors,
    }  # fmt: skip


def with_suffix(name: str) -> str:
    return name if name.endswith((".bias", ".scales")) else f"{name}.weight"


def experts_of(count: int, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    stacks = {"ffn_gate_exps": (count, inner, hidden), "ffn_up_exps": (count, inner, hidden)}
    return stacks | {"ffn_down_exps": (count, hidden, inner), "ffn_gate_inp": (count, hidden)}


# Names of other architectures that the rules know, and some that look like them. The dry run does not mind.
OUTER_NAMES = (
    "position_embd", "token_types", "token_embd_norm", "per_layer_token_embd", "per_layer_model_proj",
    "altup_proj", "v.position_embd", "v.patch_embd", "v.patch_merger", "v.sam.pos_embd", "v.sam.neck.0", "v.sam.net_2",
    "a.rvq.codebook.0", "mm.a.code_embd", "cls.output", "dense_2", "output_extra.scales",
)  # fmt: skip
BLOCK_NAMES = (
    "attn_kv_b", "attn_k_b", "attn_q_a", "attn_rel_b", "attn_rel_b_more", "cross_attn_v", "laurel_l", "altup_router",
    "ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_gate_tid2eid", "ssm_conv1d", "ssm_in", "shortconv.conv",
    "shortconv.in_proj", "indexer.k_proj", "indexer.q_proj", "indexer.proj", "attn_q_norm", "rel_pos_w", "attn.rel_pos",
    "time_mix_first", "time_mix_lerp_fused", "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_key",
    *(f"time_mix_{which}" for which in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
)  # fmt: skip

MODELS = {
    "mha": model("llama", 32, 32, 32, 4096, 11008, 32000),
    "gqa": model("llama", 32, 4, 22, 2048, 5632, 32000, outer={"rope_freqs": (32,)}),
    "tied": model("llama", 32, 8, 16, 2048, 8192, 128256, tied=True),
    "tied-gemma2": model("gemma2", 16, 8, 42, 3584, 14336, 256000, tied=True),
    "65b": model("llama", 64, 64, 80, 8192, 22016, 32000),
    "70b": model("llama", 64, 8, 80, 8192, 28672, 32000),
    "72b": model("qwen2", 64, 8, 80, 8192, 29568, 152064, block=attention(8192, 1024) | {
        "attn_q.bias": (8192,), "attn_k.bias": (1024,), "attn_v.bias": (1024,),
        "ffn_gate": (29568, 8192), "ffn_up": (29568, 8192), "ffn_down": (8192, 29568),
    }),
    "8-experts": model("llama", 32, 8, 32, 4096, 14336, 32000, experts=8,
                       block=attention(4096, 1024) | experts_of(8, 4096, 14336)),
    "8-experts-80": model("llama", 64, 8, 80, 4096, 1024, 32000, experts=8,
                          block=attention(4096, 512) | experts_of(8, 4096, 1024)),
    "60-experts": model("qwen2moe", 16, 16, 24, 2048, 5632, 151936, experts=60,
                        block=attention(2048, 2048) | experts_of(60, 2048, 1408) | {
        "ffn_gate_inp_shexp": (2048,), "ffn_gate_shexp": (5632, 2048), "ffn_up_shexp": (5632, 2048),
        "ffn_down_shexp": (2048, 5632),
    }),
    "128-experts": model("qwen3moe", 32, 4, 48, 2048, 768, 151936, experts=128,
                         block=attention(4096, 512) | experts_of(128, 2048, 768)),
    "odd": model("llama", 10, 2, 24, 1120, 3000, 32001),
    "odd-tied": model("qwen2", 14, 2, 24, 896, 4864, 151936, tied=True),
    "fused": model("phi3", 32, 32, 32, 3072, 8192, 32064, block={
        "attn_qkv": (9216, 3072), "attn_output": (3072, 3072), "ffn_up": (16384, 3072), "ffn_down": (3072, 8192),
    }),
    "gpt2": model("gpt2", 16, 16, 24, 1024, 4096, 50257, outer={"position_embd": (1024, 1024)}, block={
        "attn_qkv": (3072, 1024), "attn_output": (1024, 1024), "ffn_up": (4096, 1024), "ffn_down": (1024, 4096),
        "attn_qkv.bias": (3072,), "ffn_down.bias": (1024,),
    }),
    "names": model("llama", 4, 4, 8, 256, 256, 1000, outer=dict.fromkeys(OUTER_NAMES, (256, 256)),
                   block=attention(256, 256) | {"ffn_down": (256, 256)} | dict.fromkeys(BLOCK_NAMES, (256, 256))),
    "shallow": model("llama", 4, 2, 2, 256, 512, 1000),
}  # fmt: skip

OVERRIDES = (
    ("gqa", "Q4_K_M", (("attn_v", "Q8_0"),)),
    ("gqa", "Q4_K_M", ((r"blk\.[0-3]\.ffn_down", "Q5_K"), ("ffn_down", "Q3_K"))),
    ("gqa", "Q4_K_M", ((r"blk\.(1|2|5)\.(attn_v|ffn_down)", "Q5_0"),)),
    ("gqa", "Q3_K_M", (("^output", "F16"), ("norm", "Q8_0"), ("token_embd", "Q6_K"))),
    ("gqa", "Q4_K_S", (("attn", "F32"),)),
    ("gqa", "F16", (("attn", "Q8_0"),)),
    ("tied", "Q2_K", (("token_embd", "IQ4_XS"),)),
    ("70b", "Q3_K_M", ((r"blk\.1\.attn_v", "Q3_K"),)),
    ("8-experts", "Q4_K_M", (("exps", "IQ4_XS"), ("gate_inp", "Q8_0"))),
    ("odd", "Q8_0", (("attn_q", "Q6_K"), ("attn_k", "IQ4_XS"), ("attn_v", "Q3_K"), ("ffn_down", "Q5_K"))),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = ask_everything(Path(folder), args.models)
    args.out.write_text(as_text(record), encoding="utf-8")


def ask_everything(folder: Path, names: list[str]) -> dict[str, object]:
    """Every file type for every model, with and without an importance matrix; the overrides."""
    record: dict[str, object] = {
        "llama_cpp_python": llama_cpp.__version__,
        "ftypes": FTYPES,
        "codes": CODES,
        "models": {name: MODELS[name] for name in names},
        "answers": {name: {} for name in names},
        "refused": {name: [] for name in names},
        "overrides": [],
    }
    for name in names:
        path = folder / f"{name}.gguf"
        write_header(path, MODELS[name])
        for ftype in FTYPES:
            without, refused = ask(path, name, ftype)
            with_matrix, _ = ask(path, name, ftype, importance=True)
            record["answers"][name][ftype] = without
            if with_matrix != without:
                record["answers"][name][f"{ftype} +imatrix"] = with_matrix
            if refused:
                record["refused"][name].append(ftype)
        record["overrides"] += [
            [name, ftype, list(map(list, wishes)), ask(path, name, ftype, overrides=wishes)[0]]
            for given, ftype, wishes in OVERRIDES
            if given == name
        ]
    return record


def ask(
    path: Path, name: str, ftype: str, *, importance: bool = False, overrides: tuple[tuple[str, str], ...] = ()
) -> tuple[str, bool]:
    """One dry run: the answer, and whether the real run would ask for an importance matrix."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = FTYPES[ftype], 1, True
    some_data = (ctypes.c_float * 1)(1.0)  # of no tensor: that there is a matrix is what the rules ask
    matrix = (llama_cpp.llama_model_imatrix_data * 2)(llama_cpp.llama_model_imatrix_data(b"any", some_data, 1))
    wishes = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(
        *(llama_cpp.llama_model_tensor_override(pattern.encode(), NUMBERS[kind]) for pattern, kind in overrides)
    )
    if importance:
        params.imatrix = ctypes.cast(matrix, type(params.imatrix))
    if overrides:
        params.tt_overrides = ctypes.cast(wishes, type(params.tt_overrides))
    said: list[bytes] = []

    @llama_cpp.llama_log_callback
    def listen(level: int, text: bytes, data: object) -> None:
        said.append(text)

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(str(path).encode(), b"/nowhere", ctypes.byref(params))
    log = b"".join(said).decode()
    found = {match[1]: (match[3] or match[2]).upper() for match in LINE.finditer(log)}
    expected = [tensor for tensor, _ in all_tensors(MODELS[name])]
    if code or set(found) != set(expected):
        raise SystemExit(
            f"{name} {ftype}: code {code}, {len(found)} of {len(expected)} tensors; it said\n{log[-2000:]}"
        )
    return as_words(found, MODELS[name]), "will require an imatrix" in log


def as_words(found: dict[str, str], described: dict) -> str:
    words = []
    for name in described["tensors"]:
        numbers = range(described["layers"]) if "*" in name else range(1)
        word = "".join(LETTERS[found[name.replace("*", str(number))]] for number in numbers)
        words.append(word[0] if len(set(word)) == 1 else word)
    return " ".join(words)


def all_tensors(described: dict) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes, layers written out."""
    outer = [(name, shape) for name, shape in described["tensors"].items() if "*" not in name]
    return outer + [
        (name.replace("*", str(layer)), shape)
        for layer in range(described["layers"])
        for name, shape in described["tensors"].items()
        if "*" in name
    ]


def write_header(path: Path, described: dict) -> None:
    """A GGUF file of version 3 with metadata, tensor infos and a hole where the weights would be."""
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()  # noqa: E731
    tensors, offset, infos = all_tensors(described), 0, b""
    for name, shape in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), NUMBERS["F32"], offset)
        offset += -(-math.prod(shape) * 4 // ALIGNMENT) * ALIGNMENT
    values = metadata(described)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    for key, value in values.items():
        packed = (
            text(value) if isinstance(value, str) else struct.pack("<f" if isinstance(value, float) else "<I", value)
        )
        header += text(key) + struct.pack("<I", {str: 8, float: 6, int: 4}[type(value)]) + packed
    header += infos
    header += bytes(-len(header) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)


def metadata(described: dict) -> dict[str, str | int | float]:
    """What llama.cpp asks of these architectures before it looks at a tensor."""
    prefix, shapes = described["architecture"], described["tensors"]
    inner = next(shape for name, shape in shapes.items() if "ffn_down" in name and "weight" in name)[-1]
    values: dict[str, str | int | float] = {
        "block_count": described["layers"], "context_length": 2048, "feed_forward_length": inner,
        "embedding_length": shapes["token_embd.weight"][1], "vocab_size": shapes["token_embd.weight"][0],
        "attention.head_count": described["heads"], "attention.head_count_kv": described["kv_heads"],
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        "attention.sliding_window": 1024,
    }  # fmt: skip
    if described["experts"]:
        values |= {"expert_count": described["experts"], "expert_used_count": 2}
    return {"general.architecture": prefix} | {f"{prefix}.{key}": value for key, value in values.items()}


def as_text(record: dict) -> str:
    """JSON with a line per model, answer and override."""
    lines = []
    for key, value in record.items():
        if key in ("models", "refused"):
            rows = [f"  {json.dumps(name)}: {json.dumps(inner)}" for name, inner in value.items()]
            lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
        elif key == "answers":
            blocks = []
            for name, answers in value.items():
                rows = [f"    {json.dumps(ftype)}: {json.dumps(words)}" for ftype, words in answers.items()]
                blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
            lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(blocks) + "\n}")
        elif key == "overrides":
            lines.append(f"{json.dumps(key)}: [\n  " + ",\n  ".join(map(json.dumps, value)) + "\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
