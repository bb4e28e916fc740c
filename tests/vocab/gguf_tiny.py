"""Small tokenizers of every kind that llama.cpp knows, as transformers has them after loading."""

import functools
import json

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from vocab.test_spm import LLAMA, train
from vocab.texts import shipped

from quantkit.vocab import spm
from quantkit.vocab.corpus import corpus
from quantkit.vocab.gguf_pre_table import BYTES, PUNCTUATION, Pre

END = "<|endoftext|>"
UNREACHABLE = "Ġunreachable"  # no text that is trained on has it
# Letters with marks and case, digits of several scripts, spaces beyond ASCII: where regular expressions part.
HARD = (
    "ÉCOLE École ÎLE-DE-FRANCE ÉCOLE ÎLE-DE-FRANCE",
    "ПРИВЕТ ПриветМир приветМИР ПРИВЕТ ПриветМир",
    "ΑΒΓ αβγΔΕ ῼ ǅǆǄ İstanbul DŽungla ñandÚ aÉb AÉB éA",
    "हिन्दी में क़लम हिन्दी में",
    "e\u0301a\u0300 E\u0301A\u0300 e\u0301a\u0300",
    "x²y³ ½cup ①② Ⅷ 1٣٤5 1²3",
    "中文 12345 日本語ABC가나다abc 中文。",
    "abc_def __init__ (foo) [bar] 12345678901",
    "\u3000全角\u3000スペース a\u2028b \u2029 c\x85d \x1c e",
    "it's IT'S don't DON'T we'll WE'LL I'd I'D they'VE",
)


@functools.cache
def byte_level_json(digits: str = "joined") -> str:
    """A byte-level BPE that knows no words: it merges across spaces, signs and case alike.

    Args:
        digits: "joined" with everything, in "runs" of their own, or "single".
    """
    made = Tokenizer(models.BPE())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = {
        "joined": [spelled],
        "runs": [spelled, pre_tokenizers.Digits(individual_digits=False)],  # as falcon's: what looks like one in bytes
        "single": [pre_tokenizers.Digits(individual_digits=True), spelled],
    }
    made.pre_tokenizer = pre_tokenizers.Sequence(steps[digits])
    made.train_from_iterator(
        [*corpus(), *HARD * 3, *shipped()[:1500]],
        trainers.BpeTrainer(
            vocab_size=5000,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=12,
            show_progress=False,
        ),
    )
    return made.to_str()


def loaded(made: Tokenizer | str, **settings) -> PreTrainedTokenizerFast:
    """As transformers has it; `settings` are those of tokenizer_config.json."""
    made = Tokenizer.from_str(made) if isinstance(made, str) else made
    return PreTrainedTokenizerFast(tokenizer_object=made, **settings)


def byte_level(pre_tokenizer=None, change=None, digits="joined", **settings) -> PreTrainedTokenizerFast:
    """The byte-level BPE with another pre-tokenizer, as JSON, and whatever `change` does to its JSON."""
    data = json.loads(byte_level_json(digits))
    if pre_tokenizer is not None:
        data["pre_tokenizer"] = pre_tokenizer
    if change is not None:
        change(data)
    return loaded(json.dumps(data), eos_token=END, **settings)


def of_row(row: Pre) -> PreTrainedTokenizerFast:
    """The byte-level BPE with the pre-tokenizer that a row of the table is for.

    It has a word that no merges make, so that it matters whether words are taken whole.
    """

    def change(data):
        data["model"]["ignore_merges"] = row.ignore_merges
        data["model"]["vocab"][UNREACHABLE] = 5000

    bos = {} if row.no_bos else {"bos_token": END}
    digits = {"falcon": "runs", "deepseek-llm": "single"}.get(row.name, "joined")
    return byte_level(as_json(row.steps), change, digits, **bos)


def as_json(steps) -> dict:
    """The pre-tokenizer of tokenizer.json that does these steps."""
    parts = [_step(step) for step in (*steps, *([] if BYTES in steps else [BYTES]))]
    return {"type": "Sequence", "pretokenizers": parts}


def split(regex) -> dict:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def spelled_in_bytes(use_regex=False) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _step(step: str) -> dict:
    named = {BYTES: spelled_in_bytes(), PUNCTUATION: {"type": "Punctuation", "behavior": "Contiguous"}}
    return named.get(step) or split(step)


@functools.cache
def spm_model() -> bytes:
    return train(**LLAMA)


def llama(**options) -> PreTrainedTokenizerFast:
    """LLaMA's kind, from its sentencepiece model; `options` of `spm.rebuild`."""
    made = spm.rebuild(spm.read_spm(spm_model()), **options).decode()
    return loaded(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spm_variant(change) -> PreTrainedTokenizerFast:
    """LLaMA's kind after `change` was made to its JSON."""
    data = json.loads(spm.rebuild(spm.read_spm(spm_model())))
    change(data)
    return loaded(json.dumps(data), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(byte_fallback=False, **metaspace) -> PreTrainedTokenizerFast:
    """XGLM's kind: `</s>` in front of each text, runs of spaces taken for one."""
    model = spm.read_spm(_unigram_model())
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    made.normalizer = normalizers.Precompiled(model.charsmap)
    made.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    made.post_processor = processors.TemplateProcessing("</s> $A", "</s> $A </s> $B", [("</s>", 2)])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    data = json.loads(made.to_str())
    data["normalizer"] = {"type": "Sequence", "normalizers": [data["normalizer"], runs]}
    return loaded(json.dumps(data), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def _unigram_model() -> bytes:
    return train(2000, model_type="unigram")
