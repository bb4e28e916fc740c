"""Calibration text: what is shipped, how sets are mixed, packed and refused."""

import contextlib
import hashlib
import json
import socket
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.calibration import build_tokens, text_sets
from quantkit.errors import BadInputError, NetworkError, QuantkitError, UsageError
from quantkit.recipe import Calibration, data_folder
from quantkit.vocab.chat import plain_texts
from quantkit.vocab.load import load_tokenizer

FOLDER = data_folder("calibration")
INDEX = json.loads((FOLDER / "index.json").read_text("utf-8"))
SHIPPED = [row["name"] for row in INDEX["sets"]]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "67 x 39?"},
    {"role": "assistant", "content": "2613"},
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("tokenizer") / "model")


@pytest.fixture
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def tokens_of(tokenizer, *text, samples=8, length=64, seed=0, vocabulary=tiny.VOCABULARY, longest=None):
    calibration = Calibration(text=text or ("default",), samples=samples, sequence_length=length, seed=seed)
    return build_tokens(calibration, tokenizer, vocabulary, longest)


def render_chat(messages, tokenizer):
    ((text, _),) = plain_texts([messages], tokenizer)
    return text


def constant_file(folder: Path, letter: str, tokens: int = 5000) -> str:
    """A text of which every token is the same one, so that its share of a mix can be counted."""
    path = folder / f"{letter}.txt"
    path.write_text(letter * tokens, "utf-8")
    return str(path)


def counts(tokenizer, tokens, letters):
    """How many ids of each letter there are."""
    found = {}
    for letter in letters:
        (code,) = tokenizer(letter, add_special_tokens=False)["input_ids"]
        found[letter] = int((tokens.ids == code).sum())
    return found


# What is shipped.


@pytest.mark.parametrize("row", INDEX["sets"], ids=SHIPPED)
def test_the_index_describes_the_files(row):
    raw = (FOLDER / row["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]
    assert len(raw) == row["bytes"]
    documents = [json.loads(line) for line in raw.decode("utf-8").split("\n") if line]
    assert len(documents) == row["documents"]
    key = {"text": "text", "chat": "messages"}[row["kind"]]
    assert all(set(document) == {key} for document in documents)
    assert row["licence"]
    assert row["language"]


def test_every_file_is_in_the_index():
    assert {path.name for path in FOLDER.glob("*.jsonl")} == {row["file"] for row in INDEX["sets"]}


def test_the_languages_and_kinds_that_were_promised_are_shipped():
    wanted = {"english", "chinese", "japanese", "russian", "spanish", "french", "code", "arithmetic", "dialogue"}
    assert set(SHIPPED) == wanted


def test_mixes_are_of_shipped_sets_and_add_up():
    for mix in INDEX["mixes"].values():
        assert set(mix) <= set(SHIPPED)
        assert sum(mix.values()) == pytest.approx(1)
    assert set(INDEX["mixes"]["default"]) == set(SHIPPED)


def test_no_set_of_the_hub_is_a_test_split():
    assert {"wikitext", "c4", "ultrachat"} <= set(INDEX["hub"])
    for row in INDEX["hub"].values():
        assert row["split"].startswith("train")
        assert "test" not in row["split"]
        assert row["licence"]


def test_shipped_sets_need_no_network(tokenizer, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert tokens_of(tokenizer, "default", *SHIPPED).ids.shape == (8, 64)


def test_a_shipped_file_that_was_changed_is_refused(tokenizer, tmp_path, monkeypatch):
    row = next(row for row in INDEX["sets"] if row["name"] == "english")
    changed = {**INDEX, "sets": [{**row, "sha256": "0" * 64}], "mixes": {}}
    (tmp_path / "index.json").write_text(json.dumps(changed))
    (tmp_path / row["file"]).write_bytes((FOLDER / row["file"]).read_bytes())
    monkeypatch.setattr("quantkit.texts.data_folder", lambda _name: tmp_path)
    with pytest.raises(BadInputError, match=r"english.jsonl is not the file that index.json describes"):
        tokens_of(tokenizer, "english")


# Packing.


@pytest.mark.parametrize("name", ["default", *SHIPPED])
def test_a_set_fills_the_samples_that_are_asked_for(tokenizer, name):
    tokens = tokens_of(tokenizer, name)
    assert tokens.ids.shape == (8, 64)
    assert tokens.ids.dtype == torch.int64
    assert tokens.asked_samples == 8
    assert 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < tiny.VOCABULARY


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(tokenizer):
    one, two, other = tokens_of(tokenizer), tokens_of(tokenizer), tokens_of(tokenizer, seed=1)
    assert torch.equal(one.ids, two.ids)
    assert one.sha256 == two.sha256
    assert not torch.equal(one.ids, other.ids)
    assert one.sha256 != other.sha256


def test_the_hash_is_over_the_ids_as_little_endian_64_bit_numbers(tokenizer):
    tokens = tokens_of(tokenizer)
    raw = b"".join(int(code).to_bytes(8, "little") for code in tokens.ids.flatten())
    assert hashlib.sha256(raw).hexdigest() == tokens.sha256


def test_a_document_is_tokenized_with_the_special_tokens_of_the_tokenizer(tokenizer, tmp_path):
    lines = ["red brick", "blue river"]
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    documents = [tokenizer(line)["input_ids"] + [tokenizer.eos_token_id] for line in lines]
    assert documents[0][0] == tokenizer.bos_token_id
    length = sum(map(len, documents))
    packed = tokens_of(tokenizer, str(path), samples=1, length=length).ids[0].tolist()
    assert packed in (documents[0] + documents[1], documents[1] + documents[0])


def test_a_sample_is_no_longer_than_the_context_of_the_model(tokenizer):
    assert tokens_of(tokenizer, length=64, longest=32).ids.shape == (8, 32)
    assert tokens_of(tokenizer, length=64, longest=512).ids.shape == (8, 64)


def test_less_text_than_asked_for_gives_the_samples_there_are(tokenizer, tmp_path):
    tokens = tokens_of(tokenizer, constant_file(tmp_path, "q", 3 * 64), samples=8)
    assert tokens.ids.shape == (3, 64)
    assert tokens.asked_samples == 8


def test_sets_too_short_for_a_sample_fill_one_together(tokenizer, tmp_path):
    texts = [constant_file(tmp_path, letter, 40) for letter in "qz"]
    tokens = tokens_of(tokenizer, *texts, samples=2, length=64)
    assert tokens.ids.shape == (1, 64)
    found = counts(tokenizer, tokens, "qz")
    assert min(found.values()) >= 20


# Mixes.


def test_sets_without_weights_share_alike(tokenizer, tmp_path):
    texts = [constant_file(tmp_path, letter) for letter in "qz"]
    tokens = tokens_of(tokenizer, *texts, samples=10)
    found = counts(tokenizer, tokens, "qz")
    assert abs(found["q"] - found["z"]) <= 64


@pytest.mark.parametrize(
    ("samples", "weights"),
    [
        (8, {"q": 2, "z": 1}),
        (9, {"q": 2, "z": 1}),
        (10, {"q": 0.7, "z": 0.2, "x": 0.1}),
        (7, {"q": 1, "z": 1, "x": 1, "w": 1}),
        (5, {"q": 100, "z": 1}),
        (12, dict.fromkeys("qzxwv", 1)),
        (6, dict.fromkeys("qzxw", 1)),
        (16, dict.fromkeys("qzxwvujkgb", 1)),
    ],
)
def test_weights_are_kept_within_one_sample(tokenizer, tmp_path, samples, weights):
    texts = [f"{constant_file(tmp_path, letter)}:{weight}" for letter, weight in weights.items()]
    tokens = tokens_of(tokenizer, *texts, samples=samples, length=32)
    assert tokens.ids.shape == (samples, 32)
    found = counts(tokenizer, tokens, weights)
    for letter, weight in weights.items():
        share = samples * 32 * weight / sum(weights.values())
        assert abs(found[letter] - share) <= 32 + 2, letter  # two special tokens of a document


LENGTHS = {"q": 37, "z": 210, "x": 1000, "w": 4000}


@pytest.fixture(scope="module")
def four_files(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    paths = {letter: constant_file(folder, letter, length) for letter, length in LENGTHS.items()}
    return load_tokenizer(tokenizer_folder), paths


@given(
    st.dictionaries(st.sampled_from("qzxw"), st.floats(0.001, 1000), min_size=1),
    st.integers(1, 60),
    st.integers(1, 64),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_any_mix_gives_all_samples_there_are_by_weight(four_files, weights, samples, length, seed):
    tokenizer, paths = four_files
    texts = [f"{paths[letter]}:{weight!r}" for letter, weight in weights.items()]
    held = {letter: LENGTHS[letter] + 2 for letter in weights}  # with the special tokens
    possible = min(samples, sum(held.values()) // length)
    if not possible:
        with pytest.raises(BadInputError, match="less than one sample"):
            tokens_of(tokenizer, *texts, samples=samples, length=length, seed=seed)
        return
    tokens = tokens_of(tokenizer, *texts, samples=samples, length=length, seed=seed)
    assert tokens.ids.shape == (possible, length)
    used = dict(zip(weights, (count for _, count in tokens.sets), strict=True))
    assert sum(used.values()) == tokens.ids.numel()
    found = counts(tokenizer, tokens, weights)
    assert all(0 <= used[letter] - found[letter] <= 2 for letter in weights)
    # Whoever did not give all that it holds gave as much for its weight as any other at least.
    rates = {letter: used[letter] / weights[letter] for letter in weights}
    for letter, weight in weights.items():
        if used[letter] < held[letter]:
            assert all(rates[letter] >= rates[other] - 1 / weights[other] - 1 / weight for other in weights)


@pytest.mark.parametrize("samples", [8, 16, 31])
def test_the_default_mix_is_kept_within_one_sample(tokenizer, samples):
    tokens = tokens_of(tokenizer, samples=samples, length=64)
    assert tokens.ids.shape == (samples, 64)
    assert [name for name, _ in tokens.sets] == list(INDEX["mixes"]["default"])
    for name, used in tokens.sets:
        assert abs(used - INDEX["mixes"]["default"][name] * samples * 64) <= 64


def test_the_record_counts_the_tokens_that_were_used(tokenizer):
    tokens = tokens_of(tokenizer, samples=8, length=64)
    assert sum(used for _, used in tokens.sets) == tokens.ids.numel()


def test_a_weight_multiplies_a_whole_mix(tokenizer, tmp_path):
    tokens = tokens_of(tokenizer, "default:1", f"{constant_file(tmp_path, 'q')}:3", samples=16, length=32)
    share = counts(tokenizer, tokens, "q")["q"] / tokens.ids.numel()
    assert 0.7 <= share <= 0.83


def test_a_file_whose_name_holds_a_colon_is_a_file(tokenizer, tmp_path):
    path = tmp_path / "a:2"
    path.write_text("z" * 5000)
    assert [(entry.name, entry.weight) for entry in text_sets(Calibration(text=(str(path),)))] == [("a:2", 1.0)]


def test_names_are_resolved_without_reading_a_file():
    names = [entry.name for entry in text_sets(Calibration(text=("english", "c4:2", "default:0.5")))]
    assert names == ["english", "c4", *INDEX["mixes"]["default"]]


# Files of the user.


def test_a_text_file_is_one_document(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    text = "Les deux rives.\n\nThe other bank: 67 + 39 = 106.\n" * 20
    path.write_text(text)
    ids = tokenizer(text)["input_ids"]
    tokens = tokens_of(tokenizer, str(path), samples=1, length=len(ids))
    assert tokens.ids[0].tolist() == ids
    assert tokens.sets == (("a.txt", len(ids)),)


def test_a_jsonl_file_has_texts_and_chats(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "q" * 200}) + "\n\n" + json.dumps({"messages": CHAT}) + "\n", "utf-8")
    tokens = tokens_of(tokenizer, str(path), samples=1, length=240)
    decoded = tokenizer.decode(tokens.ids[0])
    assert "q" * 40 in decoded
    assert "67 x 39?" in decoded


def test_line_separators_inside_json_strings_are_text(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\u0085three " * 50}, ensure_ascii=False) + "\n", "utf-8")
    assert tokens_of(tokenizer, str(path), samples=1).ids.shape == (1, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"a.jsonl line 2 is not JSON"),
        ('{"text": "a"}\n\n[1]\n', r"a.jsonl line 3 has neither text nor messages"),
        ('{"content": "a"}', r"a.jsonl line 1 has neither text nor messages"),
        ('{"text": 5}', r"a.jsonl line 1 has neither text nor messages"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tokenizer, tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(BadInputError, match=message):
        tokens_of(tokenizer, str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"content": "a"}], ["a"], [["user", "a"]]])
def test_a_chat_that_is_none_is_refused_with_its_line(tokenizer, tmp_path, messages):
    tokenizer.chat_template = None
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    with pytest.raises(BadInputError, match="line 1"):
        tokens_of(tokenizer, str(tmp_path / "a.jsonl"))


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"na\xefve")
    with pytest.raises(BadInputError) as caught:
        tokens_of(tokenizer, str(tmp_path / "a.txt"))
    assert str(caught.value) == "a.txt is not UTF-8 text (byte 2)"


def test_too_little_text_is_refused_with_the_count(tokenizer, tmp_path):
    with pytest.raises(BadInputError) as caught:
        tokens_of(tokenizer, constant_file(tmp_path, "q", 40))
    assert str(caught.value) == "the calibration text has 42 tokens, less than one sample of 64"
    assert caught.value.hint == "give more text or a smaller --sequence-length"


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_file_is_too_little_text(tokenizer, tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(BadInputError, match="less than one sample"):
        tokens_of(tokenizer, str(tmp_path / name))


# Names.


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        text_sets(Calibration(text=("englisch",)))
    assert str(caught.value) == "no calibration text 'englisch'"
    assert caught.value.hint == (
        "name a text or JSONL file, or one of: default, english, chinese, japanese, russian, spanish, french, code, "
        "arithmetic, dialogue, wikitext, c4, ultrachat, pile-10k"
    )


@pytest.mark.parametrize(("text", "weight"), [("english:0", "0"), ("english:-2", "-2")])
def test_a_weight_of_nothing_is_refused(text, weight):
    with pytest.raises(UsageError) as caught:
        text_sets(Calibration(text=(text,)))
    assert str(caught.value) == f"the weight of 'english' is {weight}, expected more than 0"


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="'english:two'"):
        text_sets(Calibration(text=("english:two",)))


@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(UsageError):
        text_sets(Calibration(text=(f"english:{weight}", "chinese")))


@pytest.mark.parametrize(
    "text",
    [
        "folder",
        "x" * 300,
    ],
)
def test_a_name_that_is_no_file_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no calibration text"):
        text_sets(Calibration(text=(text,)))


# Vocabulary, tokenizer, template.


def test_an_id_past_the_vocabulary_is_refused(tokenizer):
    largest = int(tokens_of(tokenizer).ids.max())
    assert tokens_of(tokenizer, vocabulary=largest + 1).ids.max() == largest
    with pytest.raises(BadInputError) as caught:
        tokens_of(tokenizer, vocabulary=largest)
    assert str(caught.value) == f"the tokenizer gives id {largest}, the embedding has {largest} rows"
    assert caught.value.hint == "tokenizer and weights are not of the same checkpoint"


def test_a_chat_goes_through_the_template_of_the_tokenizer(tokenizer):
    assert render_chat(CHAT, tokenizer) == ("<s>system\nBe brief.</s>\n<s>user\n67 x 39?</s>\n<s>assistant\n2613</s>\n")


def test_a_chat_is_plain_text_where_there_is_no_template(tokenizer):
    tokenizer.chat_template = None
    assert render_chat(CHAT, tokenizer) == "system: Be brief.\nuser: 67 x 39?\nassistant: 2613"


def test_a_template_without_a_system_role_gets_the_chat_without_it(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['content'] }};{% endfor %}"
    )
    assert render_chat(CHAT, tokenizer) == "67 x 39?;2613;"


def test_a_template_that_refuses_every_chat_is_reported(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(QuantkitError, match="not today"):
        tokens_of(tokenizer, "dialogue")


def test_a_template_adds_the_special_tokens_by_itself(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": CHAT}))
    expected = tokenizer(render_chat(CHAT, tokenizer), add_special_tokens=False)["input_ids"]
    packed = tokens_of(tokenizer, str(path), samples=1, length=len(expected)).ids[0].tolist()
    assert packed == expected
    assert packed[:2] != [tokenizer.bos_token_id] * 2


def test_dialogue_uses_the_template(tokenizer):
    with_template = tokens_of(tokenizer, "dialogue")
    tokenizer.chat_template = None
    assert tokens_of(tokenizer, "dialogue").sha256 != with_template.sha256


def test_a_checkpoint_without_a_tokenizer_is_refused(tokenizer_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((tokenizer_folder / "config.json").read_bytes())
    with pytest.raises(BadInputError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"the tokenizer of {tmp_path.name} does not load: ")
    assert "--method rtn needs no calibration" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_broken_is_refused(tokenizer_folder, tmp_path, content):
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer_folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"the tokenizer of .* does not load"):
        load_tokenizer(tmp_path)


def test_the_code_of_a_checkpoint_is_never_run(tokenizer_folder, tmp_path):
    for path in tokenizer_folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(BadInputError):
        load_tokenizer(tmp_path)
    assert not marker.exists()


# Sets of the Hub.


@pytest.fixture
def fake_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(repo, config, *, split, streaming):
        asked.append((repo, config, split, streaming))
        if repo.startswith("Hugging"):
            return ({"messages": CHAT} for _ in range(100))
        return ({"text": f"line {number} of many"} for number in range(1000))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_set_of_the_hub_is_streamed_from_its_train_split(tokenizer, fake_hub):
    assert tokens_of(tokenizer, "c4", "ultrachat").ids.shape == (8, 64)
    assert fake_hub == [
        ("allenai/c4", "en", "train", True),
        ("HuggingFaceH4/ultrachat_200k", "default", "train_sft", True),
    ]


def test_a_set_of_the_hub_is_read_only_as_far_as_needed(tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    read = []

    def load_dataset(*_args, **_options):
        for number in range(10**6):
            read.append(number)
            yield {"text": "some words on a line"}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tokens_of(tokenizer, "wikitext")
    assert len(read) < 512


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        ValueError("bad split"),
        ConnectionError(),
    ],
)
def test_a_set_of_the_hub_that_fails_is_a_failure_of_the_network(tokenizer, monkeypatch, error):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_args, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(NetworkError, match="the Hub set allenai/c4 cannot be read"):
        tokens_of(tokenizer, "c4")


def test_without_the_library_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        tokens_of(tokenizer, "c4")
    assert caught.value.hint == "pip install 'quantkit[datasets]'"
