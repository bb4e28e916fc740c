"""Evaluation text and prompts that ship: as the index says, disjoint from calibration, every sum right."""

import ast
import hashlib
import json
import operator
import re
import sqlite3
import tomllib
from collections import Counter
from fractions import Fraction
from itertools import chain
from pathlib import Path

import pytest

from quantkit.recipe import data_folder

ROOT = Path(__file__).parent.parent
FOLDER = data_folder("evaluation")
INDEX = json.loads((FOLDER / "index.json").read_text("utf-8"))
SETS = {row["name"]: row for row in INDEX["sets"]}
(PROMPT_SET,) = INDEX["prompts"]
LANGUAGES = {
    "english": "en", "chinese": "zh", "japanese": "ja", "russian": "ru", "spanish": "es", "french": "fr",
    "german": "de", "arabic": "ar", "code": "code", "arithmetic": "en", "dialogue": "mul",
}  # fmt: skip
SCRIPTS = {"zh": r"[一-鿿]", "ja": r"[一-鿿ぁ-ヿ々]", "ru": r"[а-яё]", "ar": r"[\u0621-\u0652]"}
COMMON_WORDS = {
    "en": {"the", "and", "to", "it", "was"}, "es": {"el", "que", "los", "una", "con"},
    "fr": {"le", "les", "une", "et", "dans"}, "de": {"der", "und", "die", "nicht", "ein"},
}  # fmt: skip
KINDS = {"translation", "arithmetic", "code", "question", "reasoning", "instruction", "summarisation"}
SHINGLE_WORDS, SHINGLE_CHARACTERS = 8, 16
HAN_AND_KANA = re.compile(r"[一-鿿ぁ-ヿ々]")
TERM = r"\(*-?\d+(?:\.\d+)?(?:/\d+)?%?\)*(?:\^\d+)?"
SIDE = rf"{TERM}(?: (?:[-+×÷]|of) {TERM})*"
EQUATION = re.compile(rf"{SIDE}(?: [=≈] {SIDE})+(?: remainder \d+)?")
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
WORD_PROBLEMS = {
    "word-problem-en": "38 × 24 - 57",
    "word-problem-zh": "26 × 5 × 32 - 784",
    "word-problem-ja": "5000 - (145 × 12 + 220 × 3)",
}


def texts_of(folder, file):
    """The documents of a file, chats and prompts as what was said."""
    for line in (folder / file).read_text("utf-8").split("\n"):
        row = json.loads(line) if line else {}
        messages = row.get("messages", [{"content": row.get("text", row.get("prompt"))}])
        if row:
            yield "\n".join(message["content"] for message in messages)


TEXTS = {name: list(texts_of(FOLDER, row["file"])) for name, row in SETS.items()}
PROMPTS = [json.loads(line) for line in (FOLDER / PROMPT_SET["file"]).read_text("utf-8").splitlines()]
PROMPT_TEXTS = list(texts_of(FOLDER, PROMPT_SET["file"]))
CALIBRATION = [text for file in sorted((ROOT / "calibration").glob("*.jsonl")) for text in texts_of(file.parent, file)]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def shingles(text):
    """Every run of 8 words, and of 16 Chinese or Japanese characters whatever stands between them."""
    words = re.findall(r"\w+", text.casefold())
    characters = "".join(HAN_AND_KANA.findall(text))
    runs = {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}
    return runs | {characters[i : i + SHINGLE_CHARACTERS] for i in range(len(characters) - SHINGLE_CHARACTERS + 1)}


def sentences(text):
    """Sentences and lines that say something: four words, or eight Chinese or Japanese characters."""
    for piece in re.split(r"[.!?。！？؟]+(?=\s|$|[」”»])|[。！？\n]", text):
        words = re.findall(r"\w+", piece.casefold())
        if len(words) >= 4 or len(HAN_AND_KANA.findall(piece)) >= 8:
            yield " ".join(words)


def value(side):
    """One side of an equation, exactly."""
    bound = re.sub(r"\d+/\d+", r"(\g<0>)", side)  # 4/5 ÷ 2/5 is a fraction by a fraction
    plain = bound.replace("×", "*").replace("÷", "/").replace("^", "**").replace(" of ", " * ").replace("%", "/100")

    def walk(node):
        match node:
            case ast.BinOp():
                return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -walk(node.operand)
            case ast.Constant(value=int() | float()):
                return Fraction(str(node.value))
        raise AssertionError(f"{side}: unexpected {ast.dump(node)}")

    return walk(ast.parse(plain.strip(), mode="eval").body)


def holds(equation):
    """Whether an equation, an approximation or a division with a remainder is right."""
    if match := re.fullmatch(r"(\d+) ÷ (\d+) = (\d+) remainder (\d+)", equation):
        dividend, divisor, quotient, rest = map(int, match.groups())
        return divmod(dividend, divisor) == (quotient, rest)
    parts = re.split(r" ([=≈]) ", equation)
    for left, sign, right in zip(parts[:-2:2], parts[1::2], parts[2::2], strict=True):
        digits = len(right.partition(".")[2])
        error = abs(value(left) - value(right))
        if error > (Fraction(1, 2 * 10**digits) if sign == "≈" else 0):
            return False
    return True


# What the index says.


@pytest.mark.parametrize("row", [*SETS.values(), PROMPT_SET], ids=[*SETS, "prompts"])
def test_the_index_describes_the_files(row):
    raw = (FOLDER / row["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]
    assert len(raw) == row["bytes"]
    assert row["licence"] == "Apache-2.0"
    assert row["origin"]
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") == row["prompts" if row is PROMPT_SET else "documents"]


def test_every_file_is_in_the_index():
    listed = {row["file"] for row in [*SETS.values(), PROMPT_SET]}
    assert {path.name for path in FOLDER.glob("*.jsonl")} == listed


def test_the_languages_that_were_promised_are_shipped():
    assert {name: row["language"] for name, row in SETS.items()} == LANGUAGES
    assert set(COMMON_WORDS) | set(SCRIPTS) == set(LANGUAGES.values()) - {"code", "mul"}


@pytest.mark.parametrize("row", SETS.values(), ids=SETS)
def test_documents_are_of_their_kind_and_long_enough(row):
    documents = [json.loads(line) for line in (FOLDER / row["file"]).read_text("utf-8").splitlines()]
    key = {"text": "text", "chat": "messages"}[row["kind"]]
    assert all(set(document) == {key} for document in documents)
    assert all(len(text.encode()) >= 500 for text in TEXTS[row["name"]])
    assert 7_000 <= row["bytes"] <= 14_000


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("code", "arithmetic", "dialogue")])
def test_every_document_is_in_the_language_of_its_part(name):
    language = LANGUAGES[name]
    for text in TEXTS[name]:
        letters = re.findall(r"[^\W\d_]", text.casefold())
        if language in SCRIPTS:
            assert len(re.findall(SCRIPTS[language], text.casefold())) > 0.95 * len(letters), text[:40]
            assert bool(re.search(r"[ぁ-ヿ]", text)) == (language == "ja")
        else:
            words = Counter(re.findall(r"\w+", text.casefold()))
            counts = {other: sum(words[word] for word in common) for other, common in COMMON_WORDS.items()}
            assert max(counts, key=counts.__getitem__) == language, (text[:40], counts)


def test_no_set_of_the_hub_is_a_training_split():
    assert INDEX["hub"]
    for row in INDEX["hub"].values():
        assert row["split"] in ("test", "validation")
        assert row["licence"]
        assert row["language"]


def test_the_wheel_ships_the_folder():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["evaluation"] == "quantkit/evaluation"


# Nothing of calibration, nothing twice.


@pytest.fixture(scope="module")
def calibrated():
    return {
        "hashes": set(map(digest, CALIBRATION)),
        "shingles": set(chain.from_iterable(map(shingles, CALIBRATION))),
        "sentences": set(chain.from_iterable(map(sentences, CALIBRATION))),
    }


@pytest.mark.parametrize("texts", [*TEXTS.values(), PROMPT_TEXTS], ids=[*TEXTS, "prompts"])
def test_nothing_is_shared_with_calibration(texts, calibrated):
    assert not {digest(text) for text in texts} & calibrated["hashes"]
    assert not set(chain.from_iterable(map(shingles, texts))) & calibrated["shingles"]
    assert not set(chain.from_iterable(map(sentences, texts))) & calibrated["sentences"]


@pytest.mark.parametrize("language", ["english", "chinese", "japanese", "arabic"])
def test_a_copied_stretch_would_be_noticed(language):
    text = TEXTS[language][0]
    stretch = text[len(text) // 3 : len(text) * 2 // 3]
    assert shingles("x " + stretch) & shingles(text)
    assert not shingles(stretch) & shingles(TEXTS["russian"][0])


def test_no_sentence_and_no_shingle_stands_in_two_documents():
    texts = [text for name, part in TEXTS.items() if name != "code" for text in part] + PROMPT_TEXTS
    seen = Counter(chain.from_iterable(shingles(text) | set(sentences(text)) for text in texts))
    assert not [shingle for shingle, count in seen.items() if count > 1]
    assert not [line for text in texts for line, count in Counter(sentences(text)).items() if count > 1]


# Sums and code.


@pytest.mark.parametrize("text", TEXTS["arithmetic"], ids=lambda text: text.partition("\n")[0])
def test_every_sum_is_right(text):
    equations = EQUATION.findall(text)
    for equation in equations:
        assert holds(equation), equation
    assert sum(len(re.findall("[=≈]", equation)) for equation in equations) == len(re.findall("[=≈]", text))


def test_a_wrong_sum_would_be_noticed():
    assert holds("67 × 39 = 2613")
    assert holds("(60 - 24) ÷ (6 + 2) = 4.5")
    wrong = ["67 × 39 = 2603", "1 + 1 = 2 = 3", "7 ÷ 2 = 3 remainder 2", "2 ÷ 3 ≈ 0.66", "18% of 50 = 90", "-9 + 5 = 4"]
    assert not [equation for equation in wrong if holds(equation)]


def test_the_code_is_code():
    python = [text for text in TEXTS["code"] if text.startswith('"""')]
    queries = [text for text in TEXTS["code"] if text.startswith("-- ")]
    assert len(python) == 2
    assert len(queries) == 1
    for text in python:
        compile(text, "shipped", "exec")
    sqlite3.connect(":memory:").executescript(queries[0])


# Prompts.


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["id"])
def test_prompts_have_the_fields_that_are_documented(prompt):
    asked = {"prompt", "messages"} & set(prompt)
    assert len(asked) == 1
    answered = {"answer"} if prompt["kind"] == "arithmetic" else set()
    assert set(prompt) == {"id", "kind", "language", "max_new_tokens"} | asked | answered
    assert re.fullmatch(r"[a-z0-9-]+", prompt["id"])
    assert prompt["kind"] in KINDS
    assert prompt["language"] in LANGUAGES.values()
    assert 0 < prompt["max_new_tokens"] <= 512
    for message in prompt.get("messages", []):
        assert set(message) == {"role", "content"}
        assert message["content"].strip()


def test_prompts_are_of_every_kind_and_unlike():
    assert Counter(prompt["kind"] for prompt in PROMPTS).keys() == KINDS
    assert len({prompt["id"] for prompt in PROMPTS}) == len(PROMPTS) >= 24
    assert len(set(PROMPT_TEXTS)) == len(PROMPT_TEXTS)
    assert {"zh", "ja"} <= {prompt["language"] for prompt in PROMPTS if prompt["kind"] == "question"}
    assert any(len(text.split()) >= 300 for text in PROMPT_TEXTS)


def test_answers_are_right():
    sums = {prompt["prompt"].rstrip("=") for prompt in PROMPTS if prompt["kind"] == "arithmetic"}
    assert {"6712+3957", "67*39"} <= sums
    for prompt in PROMPTS:
        if prompt["kind"] == "arithmetic":
            (found,) = re.findall(r"\d+[-+*/]\d+", prompt["prompt"]) or [WORD_PROBLEMS[prompt["id"]]]
            assert str(value(found)) == prompt["answer"], prompt["id"]
            numbers = re.findall(r"\d+", prompt["prompt"].replace("五千", "5000"))
            assert sorted(re.findall(r"\d+", found)) == sorted(numbers), prompt["id"]
