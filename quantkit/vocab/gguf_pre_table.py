"""llama.cpp's pre-tokenizers: the name under which it splits text into the words that a tokenizer.json asks for.

`tokenizer.ggml.pre` names a list of regular expressions and some flags in llama.cpp's source (src/llama-vocab.cpp).
A row here says what the tokenizer.json of such a vocabulary has. Every row is tested against llama.cpp itself, with
a vocabulary whose merges know no words, so that each difference in splitting shows.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import decoders

from quantkit.vocab.gguf_state import Limit

_NAMES = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx deepseek-coder
deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gigachat
glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais
jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo
laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2
modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe seed-coder smaug-bpe smollm solar-open
spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu
"""
NAMES = frozenset(_NAMES.split())  # what llama.cpp knows, for --pre

BYTES = "bytes"  # from here on the text is spelled in bytes; left out where nothing follows
PUNCTUATION = "Punctuation(Contiguous)"
DIGIT, DIGITS, THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
SPACES = r"\s+(?!\S)|\s+"
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SHORT_SPELLINGS = ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "'(?i:[sdmt]|ll|ve|re)")
FIRST = r"[^\r\n\p{L}\p{N}]?"
WORD = rf"{FIRST}\p{{L}}+"
REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{SPACES}"
CL100K = rf"{SHORT}|{WORD}|{THREE_DIGITS}|{REST}"
ONE_DIGIT = rf"{SHORT}|{WORD}|{DIGIT}|{REST}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{SPACES}"
O200K = rf"{FIRST}{UPPER}*{LOWER}+{SHORT}?|{FIRST}{UPPER}+{LOWER}*{SHORT}?|{THREE_DIGITS}|{CASED_REST}"
TEKKEN = rf"{FIRST}{UPPER}*{LOWER}+|{FIRST}{UPPER}+{LOWER}*|{DIGIT}|{CASED_REST}"
HALVED = "|".join(rf"\s{{{length}}}(?!\S)" for length in (512, 256, 128, 64, 32, 16, 8, 4))
CJK, WIDE_CJK = "[一-龥\u3040-ゟ゠-ヿ]+", "[一-龥\u0800-一가-\ud7ff]+"
V3_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
DEEPSEEK_WORD = (  # the letters that have a case
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
DEEPSEEK_MARKS = r"\s?[!-/:-~！-／：-～‘-‟" + "\u3000-。]+"


def has_wide_spaces(text: str) -> bool:
    """Whether some whitespace is beyond ASCII."""
    return any(letter.isspace() and not letter.isascii() for letter in text)


def has_marks(text: str) -> bool:
    """Whether a combining mark stands in it."""
    return any(unicodedata.category(letter).startswith("M") for letter in text)


def has_inner_capitals(text: str) -> bool:
    """Whether a word with letters beyond ASCII has a capital letter behind its first."""
    words = re.findall(r"[^\W\d_]+", text)
    return any(not word.isascii() and word[1:] != word[1:].lower() for word in words)


def joins_digits(token: str) -> bool:
    """Whether a token has two digits side by side."""
    return re.search(r"\d\d", decoders.ByteLevel().decode([token])) is not None


def mixes_digits(token: str) -> bool:
    """Whether a token has what counts as a digit, in the spelling of bytes, beside something else."""
    return len({letter.isnumeric() for letter in token}) > 1


MARKS = Limit("llama.cpp splits words with combining marks", has_marks)
CAPITALS = Limit("llama.cpp splits words beyond ASCII at other capital letters", has_inner_capitals)
WIDE_SPACES = Limit("llama.cpp splits text at spaces beyond ASCII otherwise", has_wide_spaces)


@dataclass(frozen=True)
class Pre:
    """A pre-tokenizer of llama.cpp.

    Attributes:
        name: `tokenizer.ggml.pre`.
        steps: isolated splits, in order. A Digits step is DIGIT or DIGITS, ByteLevel's own regex is GPT2.
        ignore_merges: whether a word that is a token is taken whole.
        no_bos: whether llama.cpp assumes no BOS; other names mean token 11 where none is stated.
        presumes_none: what no token of a vocabulary may be, in the spelling of bytes: llama.cpp leaves out a split
            that the merges cannot cross then.
        limits: on what texts llama.cpp splits otherwise.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    no_bos: bool = False
    presumes_none: Callable[[str], bool] | None = None
    limits: tuple[Limit, ...] = ()


# Of several names for the same thing the one with the fewest limits is taken, the first of these.
TABLE = (
    Pre("gpt-2", (GPT2,)),
    Pre("starcoder", (DIGIT, GPT2)),
    Pre("falcon", (PUNCTUATION, GPT2, BYTES, DIGITS, "[0-9][0-9][0-9]"), presumes_none=mixes_digits),
    Pre("glm4", (CL100K,), ignore_merges=True, no_bos=True),
    Pre("chatglm-bpe", (CL100K,), no_bos=True),
    Pre("llama-bpe", (CL100K,), ignore_merges=True),
    Pre("dbrx", (CL100K,)),
    Pre("qwen2", (ONE_DIGIT,)),
    Pre(
        "qwen35",
        (
            rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            rf"|\s*[\r\n]+|{SPACES}",
        ),
    ),
    Pre(
        "seed-coder",
        (rf"{SHORT}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{SPACES}",),
    ),
    Pre(
        "bailingmoe",
        (rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|{DIGIT}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{SPACES}",),
    ),
    Pre("minicpm5", (THREE_DIGITS, rf"{SHORT}|{WORD}|{DIGITS}|{REST}"), ignore_merges=True),
    Pre("laguna", (r"[^\n]+|[\n]+", ONE_DIGIT)),
    Pre("ufakzeka", (rf"{WORD}|{DIGIT}|{REST}",)),
    Pre("jais-2", (rf"{CL100K.removesuffix(SPACES)}{HALVED}|\s{{1,2}}(?!\S)|\s{{1}}",)),
    Pre(
        "exaone-moe",
        (
            rf"{SHORT}|{FIRST}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|{DIGIT}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
            rf"|\s*[\r\n]|{SPACES}",
        ),
    ),
    Pre("granite-embed-multi-97m", (O200K,), ignore_merges=True, limits=(CAPITALS,)),
    Pre("gpt-4o", (O200K,), limits=(MARKS, CAPITALS)),
    Pre("tekken", (TEKKEN,), ignore_merges=True, limits=(MARKS, CAPITALS)),
    Pre(
        "deepseek-llm",
        (r"[\r\n]", DEEPSEEK_WORD, DEEPSEEK_MARKS, r"\s+$", WIDE_CJK, DIGIT),
        presumes_none=joins_digits,
        limits=(WIDE_SPACES,),
    ),
    Pre("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", WIDE_CJK, DIGIT), limits=(WIDE_SPACES,)),
    Pre("deepseek-v3", (THREE_DIGITS, CJK, rf"{V3_WORD}[\r\n]*|\s*[\r\n]+|{SPACES}")),
    Pre("spark2_5", (THREE_DIGITS, CJK, rf"{V3_WORD}|[\r\n]|{SPACES}", DIGIT)),
    Pre("bloom", (BLOOM,)),
    Pre("viking", (BLOOM, DIGIT)),
    Pre("superbpe", (DIGITS, r"(?=(\d{3})+(?!\d))")),
)
