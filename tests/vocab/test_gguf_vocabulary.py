"""A tokenizer as GGUF metadata: tokens, types, special tokens, templates; and who is refused."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer
from vocab.gguf_tiny import END, UNREACHABLE, as_json, byte_level, byte_level_json, llama, loaded, spm_variant, unigram

from quantkit.errors import BadInputError, UsageError
from quantkit.vocab.gguf import gguf_vocabulary
from quantkit.vocab.gguf_pre_table import GPT2, O200K
from quantkit.vocab.gguf_state import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

KEY = "tokenizer.ggml."


def vocabulary(tokenizer, rows=None, config=None, **options):
    rows = len(tokenizer) if rows is None else rows
    return gguf_vocabulary(tokenizer, options.pop("name", "some-model"), rows, config or {}, **options)


def values(made):
    return {key.removeprefix(KEY): value.value for key, value in made.metadata.items()}


def gpt2_like(extra=(), template=None, change=None, **settings):
    tokenizer = byte_level(as_json((GPT2,)), change, **settings)
    if extra:
        tokenizer.add_tokens(list(extra))
    tokenizer.chat_template = template
    return tokenizer


def test_a_byte_level_bpe_has_its_tokens_and_merges_as_they_are():
    data = json.loads(byte_level_json())
    made = vocabulary(gpt2_like())
    keys = values(made)
    assert (made.kind, made.pre, made.notes, made.size) == ("gpt2", "gpt-2", (), 5000)
    assert {text: number for number, text in enumerate(keys["tokens"])} == data["model"]["vocab"]
    assert [merge.split(" ") for merge in keys["merges"]] == [list(pair) for pair in data["model"]["merges"]]
    assert keys["token_type"] == (CONTROL, *[NORMAL] * 4999)
    assert (keys["eos_token_id"], keys["add_bos_token"], keys["add_eos_token"]) == (0, False, False)
    assert "bos_token_id" not in keys
    assert made.metadata[KEY + "token_type"].kind == "int32"
    assert made.metadata[KEY + "eos_token_id"].kind == "uint32"


def test_rows_without_a_token_are_padded():
    keys = values(vocabulary(gpt2_like(), 5003))
    assert keys["tokens"][-3:] == ("[PAD5000]", "[PAD5001]", "[PAD5002]")
    assert keys["token_type"][-3:] == (UNUSED,) * 3
    scores = values(vocabulary(llama(), 1202))["scores"]
    assert len(scores) == 1202
    assert max(scores[1200:]) < min(score for score in scores[:1200] if score > -1e6)


def test_tokens_beyond_the_embedding_are_left_out_if_they_were_added():
    made = vocabulary(gpt2_like(["<image>"]), 5000)
    assert made.notes == ("left out, as the model has no embedding for it: <image>",)
    assert made.size == 5000
    with pytest.raises(BadInputError, match="it has 5000 tokens, the model 4999 rows of embeddings"):
        vocabulary(gpt2_like(), 4999)


def test_added_tokens_are_control_or_the_users():
    added = [AddedToken("<|tool|>", special=True), AddedToken("    ", special=False), AddedToken("▁x", special=False)]
    keys = values(vocabulary(gpt2_like(added)))
    assert keys["tokens"][5000:] == ("<|tool|>", "    ", "▁x")
    assert keys["token_type"][5000:] == (CONTROL, USER_DEFINED, USER_DEFINED)


def test_scores_are_the_ranks_of_merges():
    tokenizer = llama()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    made = vocabulary(tokenizer)
    keys = values(made)
    assert (made.kind, made.pre, made.notes) == ("llama", "default", ())
    score = dict(zip(keys["tokens"], keys["scores"], strict=True))
    merged = [left + right for left, right in data["model"]["merges"]]
    first = list(dict.fromkeys(merged))
    assert [score[text] for text in first] == [-float(merged.index(text)) for text in first]
    assert sorted(first, key=score.__getitem__, reverse=True) == first
    assert keys["token_type"][:3] == (UNKNOWN, CONTROL, CONTROL)
    assert keys["token_type"][3:259] == (BYTE,) * 256
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["unknown_token_id"]) == (1, 2, 0)
    assert (keys["add_bos_token"], keys["add_eos_token"], keys["add_space_prefix"]) == (True, False, True)
    assert made.metadata[KEY + "scores"].kind == "float32"


def test_bos_and_eos_are_added_where_transformers_adds_them():
    keys = values(vocabulary(llama(add_bos=False, add_eos=True)))
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, True)


def test_a_run_of_spaces_stays_a_piece_and_prints_as_spaces():
    """Gemma's: as a token of the user's it would be printed as ▁▁."""

    def add(data):
        entry = {"id": data["model"]["vocab"]["▁▁"], "content": "▁▁", "special": False, "normalized": False}
        data["added_tokens"].append(entry | {"lstrip": False, "rstrip": False, "single_word": False})

    keys = values(vocabulary(spm_variant(add)))
    assert keys["token_type"][keys["tokens"].index("▁▁")] == NORMAL


def metaspace(scheme):
    def change(data):
        data["normalizer"] = None
        data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}

    return change


@pytest.mark.parametrize(
    ("scheme", "prefix", "untouched", "touched"),
    [
        ("never", False, ("a", " a", "<s>a", "<s> a"), ()),
        ("always", True, ("a", "<s>a"), (" a", "<s> a", "▁a")),
        ("first", True, ("a", "a</s>"), (" a", "<s>a", "a</s>b")),
    ],
)
def test_a_space_in_front_is_put_as_the_scheme_says_and_the_rest_is_told(scheme, prefix, untouched, touched):
    made = vocabulary(spm_variant(metaspace(scheme)))
    assert values(made)["add_space_prefix"] is prefix
    for text in untouched:
        assert not any(limit.touches(text) for limit in made.limits), text
    for text in touched:
        assert any(limit.touches(text) for limit in made.limits), text
    assert made.notes == tuple(limit.sentence for limit in made.limits)


def test_unicode_normalization_is_told():
    def compose(data):
        data["normalizer"]["normalizers"].insert(0, {"type": "NFKC"})

    made = vocabulary(spm_variant(compose))
    assert made.notes == ("llama.cpp does not normalize to NFKC, texts that are not in this form get other ids",)
    assert [limit.touches("ﬁne") for limit in made.limits] == [True]
    assert [limit.touches("fine") for limit in made.limits] == [False]


def drop_a_byte(data):
    del data["model"]["vocab"]["<0x0A>"]


def lowercase(data):
    data["normalizer"]["normalizers"].append({"type": "Lowercase"})


def no_spaces(data):
    data["normalizer"] = None


def words_with_inner_spaces(data):
    metaspace("never")(data)
    data["pre_tokenizer"]["split"] = True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_a_byte, "its BPE has no token for 1 of the 256 bytes"),
        (lowercase, "its normalizer has the step Lowercase"),
        (no_spaces, "it does not write spaces as ▁"),
        (words_with_inner_spaces, "its token '▁▁' spans words"),
        (lambda data: data["model"].update(byte_fallback=False), "its BPE has no token for every of the 256 bytes"),
    ],
)
def test_a_sentencepiece_bpe_that_llama_cpp_would_read_otherwise_is_refused(change, reason):
    with pytest.raises(BadInputError, match=reason):
        vocabulary(spm_variant(change))


def test_a_unigram_has_its_scores_and_its_normalization():
    tokenizer = unigram()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    made = vocabulary(tokenizer)
    keys = values(made)
    assert (made.kind, made.pre) == ("t5", "default")
    assert list(zip(keys["tokens"], keys["scores"], strict=True)) == [tuple(one) for one in data["model"]["vocab"]]
    assert keys["token_type"][:4] == (UNKNOWN, CONTROL, CONTROL, NORMAL)
    assert (keys["add_space_prefix"], keys["remove_extra_whitespaces"]) == (True, True)
    assert len(keys["precompiled_charsmap"]) > 1000
    assert made.metadata[KEY + "precompiled_charsmap"].kind == "uint8"


def test_what_stands_in_front_of_a_text_is_bos():
    made = vocabulary(unigram())
    keys = values(made)
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["add_bos_token"]) == (2, 2, True)
    assert "BOS is </s>, which transformers puts in front of a text" in made.notes


def test_a_unigram_that_falls_back_on_bytes_is_refused():
    with pytest.raises(BadInputError, match=r"falls back on bytes, which llama\.cpp's unigram does not"):
        vocabulary(unigram(byte_fallback=True))


def test_texts_that_end_in_a_space_are_told_for_a_unigram():
    (limit,) = [limit for limit in vocabulary(unigram()).limits if "at the end" in limit.sentence]
    assert limit.touches("a ")
    assert limit.touches("a\n")
    assert limit.touches("a </s>b")
    assert not limit.touches("  a b")


def test_a_longer_frame_is_told_and_not_half_kept():
    data = json.loads(byte_level_json())
    made = Tokenizer.from_str(json.dumps(data | {"pre_tokenizer": as_json((GPT2,))}))
    made.add_special_tokens(["[gMASK]", "<sop>"])
    made.post_processor = processors.TemplateProcessing(
        "[gMASK] <sop> $A", "[gMASK] <sop> $A $B", [("[gMASK]", 5000), ("<sop>", 5001)]
    )
    result = vocabulary(loaded(made, eos_token=END))
    assert result.notes == ("llama.cpp puts nothing around a text, transformers [gMASK]<sop> in front of it",)
    assert not result.frames
    assert values(result)["add_bos_token"] is False


def test_special_tokens_that_the_tokenizer_does_not_name_come_from_the_configurations():
    tokenizer = loaded(json.dumps(json.loads(byte_level_json()) | {"pre_tokenizer": as_json((GPT2,))}))
    keys = values(
        vocabulary(tokenizer, config={"bos_token_id": 7, "eos_token_id": 8}, generation={"eos_token_id": [9, 8]})
    )
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["eot_token_id"]) == (7, 9, 8)
    keys = values(vocabulary(tokenizer, config={"bos_token_id": 5000, "eos_token_id": None}))
    assert not {"bos_token_id", "eos_token_id"} & set(keys)


def test_every_end_of_generation_is_stated_or_told():
    tokenizer = gpt2_like(["<|eot_id|>", "<|eom_id|>", "<done>", "<bye>"])
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<|eot_id|>", "<|eom_id|>", "<done>", "<bye>")}

    def ends(*texts):
        made = vocabulary(tokenizer, generation={"eos_token_id": [ids[text] for text in texts]})
        keys = values(made)
        return keys["eos_token_id"], keys.get("eot_token_id"), keys.get("eom_token_id"), made.notes

    assert ends("<|eot_id|>", "<|eom_id|>") == (0, ids["<|eot_id|>"], ids["<|eom_id|>"], ())
    assert ends("<done>") == (0, ids["<done>"], None, ())
    told = ("llama.cpp does not end generation at <bye>",)
    assert ends("<|eot_id|>", "<|eom_id|>", "<bye>") == (0, ids["<|eot_id|>"], ids["<|eom_id|>"], told)


def test_tokens_that_fill_in_the_middle_are_named():
    tokenizer = gpt2_like(["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<reponame>"])
    keys = values(vocabulary(tokenizer))
    names = [f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep")]
    assert [keys[name] for name in names] == list(range(5000, 5005))
    assert "fim_sep_token_id" not in keys


def test_chat_templates_are_kept_to_the_letter():
    template = "{{ bos_token }}\n  {% for m in messages %}é{% endfor %} "
    assert vocabulary(gpt2_like(template=template)).metadata["tokenizer.chat_template"].value == template
    made = vocabulary(gpt2_like(template={"default": "a", "rag": "b", "tool_use": "c"})).metadata
    assert made["tokenizer.chat_template"].value == "a"
    assert made["tokenizer.chat_templates"].value == ("rag", "tool_use")
    assert (made["tokenizer.chat_template.rag"].value, made["tokenizer.chat_template.tool_use"].value) == ("b", "c")
    assert not any("chat_template" in key for key in vocabulary(gpt2_like()).metadata)


def test_what_llama_cpp_takes_for_special_by_its_looks_is_told():
    made = vocabulary(gpt2_like(change=lambda data: data["model"]["vocab"].update({"</s>": 5000})))
    assert made.notes == ("llama.cpp takes </s> in a text for a special token",)
    assert made.limits[0].touches("a</s>b")


def test_a_model_is_not_called_phi_3_unless_its_tokens_strip_as_llama_cpp_lets_them():
    def stripping(data):
        for entry in data["added_tokens"]:
            entry["rstrip"] = entry["content"] == "</s>"

    assert vocabulary(llama(), name="my-Phi-3-tune").name == "my-Phi 3-tune"
    made = vocabulary(spm_variant(stripping), name="Phi-3-mini")
    assert (made.name, made.notes) == ("Phi 3-mini", ("llama.cpp takes no spaces away around </s>",))
    assert made.limits[0].touches("a</s> b")

    tokenizer = spm_variant(stripping)
    tokenizer.add_special_tokens({"pad_token": AddedToken(END, normalized=False)})
    made = vocabulary(tokenizer, name="Phi-3-mini")
    assert (made.name, made.limits) == ("Phi-3-mini", ())
    assert vocabulary(tokenizer, name="other").limits


def test_limits_of_a_pre_tokenizer_are_told():
    tokenizer = byte_level(as_json((O200K,)), lambda data: data["model"]["vocab"].update({UNREACHABLE: 5000}))
    made = vocabulary(tokenizer)
    assert made.pre == "gpt-4o"
    assert len(made.notes) == 2
    assert any(limit.touches("हिन्दी") for limit in made.limits)
    assert not any(limit.touches("camelCase École") for limit in made.limits)


def test_a_pre_tokenizer_of_the_users_is_taken():
    tokenizer = byte_level(as_json((r"\p{L}+",)))
    made = vocabulary(tokenizer, pre="kimi-k2")
    assert (made.pre, made.chosen) == ("kimi-k2", True)
    with pytest.raises(UsageError, match="is no byte-level BPE and has no pre-tokenizer"):
        vocabulary(llama(), pre="gpt-2")


def test_two_tokens_of_one_text_are_refused():
    """llama.cpp aborts at them."""
    with pytest.raises(BadInputError, match="1 of its tokens have the same text"):
        vocabulary(gpt2_like(change=lambda data: data["model"]["vocab"].update({"[PAD5001]": 5000})), 5002)


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_a_token_that_llama_cpp_would_cut_is_refused(text):
    with pytest.raises(BadInputError, match="one of its tokens is empty or has a zero byte"):
        vocabulary(gpt2_like(change=lambda data: data["model"]["vocab"].update({text: 5000})))


def test_what_is_put_around_a_text_must_have_an_embedding():
    data = json.loads(byte_level_json()) | {"pre_tokenizer": as_json((GPT2,))}
    made = Tokenizer.from_str(json.dumps(data))
    made.add_special_tokens(["<bos>"])
    made.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", 5000)])
    assert vocabulary(loaded(made)).frames
    with pytest.raises(BadInputError, match="it has 5001 tokens, the model 5000 rows of embeddings"):
        vocabulary(loaded(made), 5000)


def test_other_kinds_are_refused_by_name(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    with pytest.raises(BadInputError, match="expected BPE or Unigram") as caught:
        vocabulary(BertTokenizer(str(tmp_path / "vocab.txt")))
    assert "found a tokenizer of the kind WordPiece" in str(caught.value)
    made = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(BadInputError, match="of the kind WordLevel"):
        vocabulary(loaded(made))


def test_a_tokenizer_without_a_backend_is_refused():
    class Slow:
        pass

    with pytest.raises(BadInputError, match=r"found Slow, which is not made of a tokenizer\.json"):
        vocabulary(Slow(), 10)
