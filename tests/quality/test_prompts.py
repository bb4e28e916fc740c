"""Prompts read from files, and the number looked for in an answer."""

import json

import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.quality import prompts as module
from quantkit.quality.prompts import MAX_NEW_TOKENS, Prompt, check_answer, load_prompts

QUESTION = {"role": "user", "content": "67*39="}


def asked(answer=2613):
    return Prompt("one", (QUESTION,), plain=True, answer=answer)


def written(folder, *rows):
    path = folder / "own.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


RIGHT = [
    "2613", "= 2613.", "67*39=2613\n67*40=2680", "2,613", "2.613", "2 613", "2\u202f613", "2’613", "2{,}613", "2613.00",
    "**2613**", r"\boxed{2613}", "$2,613.0", "得数是2613。", "２６１３", "٢٦١٣", "5000-2613", "5000 - 2613",
    "is 2613, not 2614", "2613,\nthat is 39 times 67", "02613",
]  # fmt: skip
WRONG = [
    "", "no idea", "12613", "26130", "2613.5", "2613,25", "-2613", "= -2613", "−2613", "2,613,000", "26 13", "2,61,3",
    "2 6 1 3", "1,2613.5", "12,613", "two thousand six hundred and thirteen", "9" * 5000 + "2613",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_the_number_is_found_as_people_write_it(text):
    assert check_answer(asked(), text) is True


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_a_part_of_another_number_does_not_count(text):
    assert check_answer(asked(), text) is False


def test_signs_groups_and_small_numbers():
    assert check_answer(asked(-5), "The result is -5.")
    assert check_answer(asked(-5), "−5")
    assert not check_answer(asked(-5), "5")
    assert check_answer(asked(0), "0")
    assert not check_answer(asked(0), "-3.0")
    assert check_answer(asked(1234567), "1,234,567.00")
    assert not check_answer(asked(234567), "1,234,567")
    assert not check_answer(asked(1234), "1,234,567")
    assert not check_answer(asked(613), "2,613")


def test_without_an_expected_number_nothing_is_judged():
    assert check_answer(asked(None), "2613") is None


def test_the_shipped_prompts_are_whole():
    prompts = load_prompts()
    by_id = {prompt.id: prompt for prompt in prompts}
    assert len(by_id) == len(prompts) == 26
    assert by_id["multiply-two-digits"].answer == 67 * 39
    assert by_id["multiply-two-digits"].text == "67*39="
    assert {prompt.kind for prompt in prompts if prompt.answer is not None} == {"arithmetic"}
    chat = by_id["instruction-minutes"]
    assert not chat.plain
    assert [message["role"] for message in chat.messages] == ["system", "user"]
    assert chat.text.startswith("system: 你是")
    assert "\n\nuser: 请把" in chat.text


def test_changed_prompts_are_not_those_that_ship(monkeypatch, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "another"}', encoding="utf-8")
    monkeypatch.setattr(module, "data_folder", lambda _name: tmp_path)
    with pytest.raises(BadInputError, match=r"prompts\.jsonl is not the file that index\.json describes"):
        load_prompts()


def test_a_prompt_needs_nothing_but_its_text(tmp_path):
    own = written(tmp_path, {"prompt": "First?"}, "", {"messages": [QUESTION], "answer": "2613", "max_new_tokens": 5})
    first, second = load_prompts(own)
    assert first == Prompt("1", ({"role": "user", "content": "First?"},), plain=True)
    assert first.max_new_tokens == MAX_NEW_TOKENS
    assert (second.id, second.plain, second.answer, second.max_new_tokens) == ("3", False, 2613, 5)
    assert (first.kind, first.language) == ("prompt", "unknown")


BAD = {
    "not JSON": ('{"prompt"', "line 1 is not JSON"),
    "a list": ("[1]", "line 1 has not one of prompt and messages"),
    "neither": ({"text": "a"}, "line 1 has not one of prompt and messages"),
    "both": ({"prompt": "a", "messages": [QUESTION]}, "line 1 has not one of prompt and messages"),
    "an unknown key": ({"prompt": "a", "anwser": "1"}, "line 1 has an unknown key 'anwser'"),
    "no text": ({"prompt": " "}, "line 1 asks nothing"),
    "a number": ({"prompt": 3}, "line 1 asks nothing"),
    "no messages": ({"messages": []}, "line 1 asks nothing"),
    "no chat": ({"messages": ["a"]}, "line 1 asks nothing"),
    "an answered chat": ({"messages": [{"role": "assistant", "content": "a"}]}, "line 1 ends with the assistant"),
    "a word for a number": ({"prompt": "a", "answer": "many"}, "line 1: found answer 'many', expected a whole number"),
    "a fraction": ({"prompt": "a", "answer": 0.5}, "line 1: found answer 0.5, expected a whole number"),
    "a truth": ({"prompt": "a", "answer": True}, "line 1: found answer True, expected a whole number"),
    "no tokens": ({"prompt": "a", "max_new_tokens": 0}, "line 1: found max_new_tokens 0, expected a number from 1"),
    "text for tokens": ({"prompt": "a", "max_new_tokens": "9"}, "line 1: found max_new_tokens '9', expected a number"),
    "a number for a kind": ({"prompt": "a", "kind": 3}, "line 1: found kind 3, expected text"),
    "an empty id": ({"prompt": "a", "id": ""}, "line 1: found id '', expected text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named(tmp_path, kind):
    row, message = BAD[kind]
    with pytest.raises(BadInputError, match=message) as caught:
        load_prompts(written(tmp_path, row))
    assert str(caught.value).startswith("own.jsonl ")


def test_two_prompts_of_one_id_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="two prompts with the id '2'"):
        load_prompts(written(tmp_path, {"prompt": "a", "id": "2"}, {"prompt": "b"}))


def test_files_that_hold_no_prompts(tmp_path):
    with pytest.raises(BadInputError, match=r"own\.jsonl holds no prompts"):
        load_prompts(written(tmp_path, "", " "))
    with pytest.raises(UsageError, match="no prompts") as caught:
        load_prompts(str(tmp_path / "absent.jsonl"))
    assert "default" in caught.value.hint
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(BadInputError, match=r"latin\.jsonl is not UTF-8 text \(byte 12\)"):
        load_prompts(str(tmp_path / "latin.jsonl"))
