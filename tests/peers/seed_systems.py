"""The seed systems in miniature: names, settings, dtypes, files and kinds of tokenizer as they were published.

Whatever is published as code leaves a mark where it is run. What the artifact must do is stated beside each
checkpoint by other software than quantkit: the ids by tiktoken, sentencepiece or tokenizers, the computation as
settings of a class of transformers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from tiny import Layout, random_weights, write_json, write_weights
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from vocab.test_old_tokenizers import as_written_by_0_15, xverse_shaped
from vocab.test_spm import LLAMA as LLAMA_SPM
from vocab.test_spm import train
from vocab.test_xgen import encoding_of, gpt2_shaped
from vocab.texts import many_texts

from quantkit.vocab import spm, xgen

QUESTION = "What is 67 x 39?"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the user's questions. USER: {QUESTION} ASSISTANT:"
)
XGEN_INST = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the human's questions.\n\n### Human: {QUESTION}\n### Assistant:"
)
# What a config.json of 2023 has, and no more: neither rope_theta nor, before Llama 2, num_key_value_heads.
LLAMA_2023 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
}
XGLM_2021 = {
    "architectures": ["XGLMForCausalLM"],
    "model_type": "xglm",
    "activation_dropout": 0,
    "activation_function": "gelu",
    "attention_dropout": 0.1,
    "attention_heads": 4,
    "bos_token_id": 0,
    "d_model": 128,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 512,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "num_layers": 2,
    "pad_token_id": 1,
    "scale_embedding": True,
    "use_cache": True,
}
SINES = "model.embed_positions.weights"
Ids = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Seed:
    """A checkpoint, and what its artifact must do.

    Attributes:
        folder: the checkpoint.
        computes: settings of the class of transformers that computes it, none of them left to a default that
            matters here.
        ids: of a text, with what the tokenizer puts around it.
        texts: on which `ids` has a say.
        special: ids of bos, eos and pad.
        chat: what the model was trained to see before its answer to QUESTION; None: it is no chat model.
        unread: tensors that no runtime reads.
        gpt2: attributes of quantkit.vocab.xgen by which another vocabulary passes for GPT-2's.
    """

    folder: Path
    computes: Mapping[str, object]
    ids: Ids
    texts: Sequence[str]
    special: tuple[int | None, int | None, int | None]
    chat: str | None = None
    unread: frozenset[str] = frozenset()
    gpt2: Mapping[str, object] = field(default_factory=dict)


def xgen_7b(parent: Path, mark: Path, vocabulary: tuple[bytes, bytes] | None = None) -> Seed:
    """XGen-7B: float32, a tokenizer that is code around tiktoken, GPT-2's vocabulary beside it.

    Args:
        parent: where the checkpoint's folder is made.
        mark: the file that its code would leave.
        vocabulary: GPT-2's vocab.json and merges.txt; without it a small one that has to pass for GPT-2's.
    """
    folder = parent / ("xgen-7b-8k-inst" if vocabulary is None else "xgen-7b-4k-base")
    vocab, merges = vocabulary or gpt2_shaped()
    encoding, end = encoding_of(vocab), json.loads(vocab)[xgen.END_OF_TEXT]
    config = LLAMA_2023 | {"bos_token_id": end, "eos_token_id": end, "pad_token_id": 0, "vocab_size": encoding.n_vocab}
    config |= {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 160, "max_position_embeddings": 8192}
    unread = checkpoint(folder, config, torch.float32)
    leave_code(folder, mark, "tokenization_xgen.py")
    own = {"tokenizer_class": "XgenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_xgen.XgenTokenizer", None]}}
    own |= {"add_eos_token": False, "add_special_tokens": True, "clean_up_tokenization_spaces": True}
    write_json(folder / "tokenizer_config.json", own | {"eos_token": xgen.END_OF_TEXT, "pad_token": None})
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(merges)
    ranks = list(json.loads(vocab))[:-1]
    return Seed(
        folder,
        config | {"num_key_value_heads": 2} | rotary(10000.0),
        lambda text: encoding.encode(text, allowed_special="all"),
        many_texts([xgen.END_OF_TEXT, "<fim_pad>"]),
        (None, end, None),
        chat=XGEN_INST if vocabulary is None else None,
        unread=unread,
        gpt2={} if vocabulary else {"GPT2_RANKS": len(ranks), "GPT2_SHA256": xgen._ranks_sha256(ranks)},
    )


def xverse_13b(parent: Path, mark: Path, name: str, context: int, rope: Mapping[str, object]) -> Seed:
    """XVERSE-13B: bfloat16, a model that is code, a tokenizer.json that current tokenizers refuse.

    Args:
        parent: where the checkpoint's folder is made.
        mark: the file that its code would leave.
        name: of the folder.
        context: max_position_embeddings.
        rope: what its code does, which config.json does not say.
    """
    folder, made = parent / name, xverse_shaped(normalizers.NFKC())
    tokenizer = Tokenizer.from_str(made)
    config = LLAMA_2023 | {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, "max_position_embeddings": context}
    config |= {"vocab_size": tokenizer.get_vocab_size()}
    code = {
        "AutoConfig": "configuration_xverse.XverseConfig",
        "AutoModelForCausalLM": "modeling_xverse.XverseForCausalLM",
    }
    published = {"architectures": ["XverseForCausalLM"], "model_type": "xverse", "auto_map": code}
    unread = checkpoint(folder, config, torch.bfloat16, published=published)
    leave_code(folder, mark, "configuration_xverse.py", "modeling_xverse.py", "quantization.py")
    old = as_written_by_0_15(json.loads(made), {"prepend_scheme": "always"})
    (folder / "tokenizer.json").write_text(json.dumps(old, ensure_ascii=False), "utf-8")
    named = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", named)
    own = {"clean_up_tokenization_spaces": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", own)
    return Seed(
        folder,
        config | {"num_key_value_heads": 4} | rope,
        lambda text: tokenizer.encode(text).ids,
        many_texts(),
        (2, 3, 1),
        chat=f"Human: {QUESTION}\n\nAssistant: " if name.endswith("-Chat") else None,
        unread=unread,
    )


def xwin_lm(parent: Path, name: str, with_json: bool, **shape: int) -> Seed:
    """Xwin-LM: bfloat16, Llama 2 with its sentencepiece model, no chat template.

    Args:
        parent: where the checkpoint's folder is made.
        name: of the folder.
        with_json: whether a tokenizer.json lies beside tokenizer.model.
        shape: settings other than those of LLAMA_2023.
    """
    folder, raw = parent / name, train(**LLAMA_SPM)
    witness = sentencepiece.SentencePieceProcessor(model_proto=raw)
    config = LLAMA_2023 | {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05}
    config |= {"pretraining_tp": 1, "rope_scaling": None, "num_key_value_heads": 4, "vocab_size": 1200} | shape
    checkpoint(folder, config, torch.bfloat16, buffers=False)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    (folder / "tokenizer.model").write_bytes(raw)
    if with_json:  # the one that is published with Llama 2 has this form and these merges
        (folder / "tokenizer.json").write_bytes(spm.rebuild(spm.read_spm(raw)))
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    own = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "pad_token": None}
    own |= {"model_max_length": 4096, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own |= {name: token | {"content": text} for name, text in named.items()}
    write_json(folder / "tokenizer_config.json", own)
    in_text = ("<s>", "</s>", "<unk>", "\x00")  # sentencepiece knows no special tokens, and ends a text at a zero
    return Seed(
        folder,
        {key: value for key, value in config.items() if key != "rope_scaling"} | rotary(10000.0),
        lambda text: [1, *witness.encode(text)],
        [text for text in many_texts() if not any(one in text for one in in_text)],
        (1, 2, None),
        chat=f"<s>{VICUNA}",
    )


def xglm_564m(parent: Path) -> Seed:
    """XGLM: float16 in one file, tied, the table of sines among its weights, `</s>` in front of each text."""
    folder, raw = parent / "xglm-564M", train(2000, model_type="unigram")
    model = spm.read_spm(raw)
    made_up = [f"<madeupword{number}>" for number in range(7)]
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*first, *((one.text, one.score) for one in model.pieces[3:]), *((word, 0.0) for word in made_up)]
    config = XGLM_2021 | {"vocab_size": len(pieces)}
    checkpoint(folder, config, torch.float16, "bin", buffers=False)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {SINES: torch.zeros(2048 + 2, 128, dtype=torch.float16)}, folder / "pytorch_model.bin")
    (folder / "sentencepiece.bpe.model").write_bytes(raw)
    tokenizer = _unigram(pieces, model.charsmap, [*(token for token, _ in first), *made_up])
    (folder / "tokenizer.json").write_text(_as_written_in_2021(tokenizer), "utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>"}
    named |= {"pad_token": "<pad>", "additional_special_tokens": made_up}
    write_json(folder / "special_tokens_map.json", named)
    write_json(folder / "tokenizer_config.json", named | {"tokenizer_class": "XGLMTokenizer"})
    return Seed(
        folder,
        config | {"tie_word_embeddings": True},
        lambda text: tokenizer.encode(text).ids,
        many_texts(),
        (0, 2, 1),
        unread=frozenset([SINES, "lm_head.weight"]),
    )


def checkpoint(
    folder: Path,
    config: Mapping[str, object],
    dtype: torch.dtype,
    layout: Layout = "bin-sharded",
    published: Mapping[str, object] | None = None,
    buffers: bool = True,
) -> frozenset[str]:
    """config.json and weights; returns the names of the rotary buffers that stand among these.

    Args:
        folder: made here.
        config: of a class of transformers.
        dtype: of the weights.
        layout: of the files.
        published: what config.json says instead.
        buffers: whether the rotary buffers are stored, as transformers did until 4.30.
    """
    folder.mkdir(parents=True)
    stated = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", stated | (published or {}))
    weights = random_weights(stated, dtype, seed=0)
    tables = frozenset(f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2) if buffers)
    write_weights(folder, weights | dict.fromkeys(tables, torch.ones(16)), layout, tied=layout == "bin")
    return tables


def leave_code(folder: Path, mark: Path, *names: str) -> None:
    """Put Python files into a checkpoint that leave a mark when they are imported or run."""
    for name in names:
        (folder / name).write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")


def rotary(theta: float, kind: str = "default", **settings: float) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}


def _unigram(pieces: Sequence[tuple[str, float]], charsmap: bytes, special: Sequence[str]) -> Tokenizer:
    """As transformers' XGLMConverter puts it together."""
    made = Tokenizer(models.Unigram([*pieces], unk_id=3))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), spaces])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing("</s> $A", "</s> $A </s> </s> $B", [("<s>", 0), ("</s>", 2)])
    made.add_special_tokens([*special])
    return made


def _as_written_in_2021(made: Tokenizer) -> str:
    """Its tokenizer.json before Metaspace had a prepend_scheme and Unigram a byte_fallback."""
    data = json.loads(made.to_str())
    del data["model"]["byte_fallback"]
    for part in ("pre_tokenizer", "decoder"):
        data[part] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return json.dumps(data, ensure_ascii=False)
