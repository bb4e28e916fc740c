"""Names of evaluation text to documents."""

import json

import pytest

from quantkit.errors import BadInputError, UsageError
from quantkit.quality.texts import SHINGLE, evaluation_texts, overlap


def test_the_shipped_set_has_a_part_per_language():
    found = evaluation_texts(["default"])
    assert len({text.name for text in found}) == len(found) >= 10
    assert {"en", "zh", "ja", "ru", "es", "fr"} <= {text.language for text in found}
    assert all(len(text.text) > 2000 for text in found)


def test_a_part_can_be_named():
    (found,) = evaluation_texts(["chinese"])
    assert (found.name, found.language) == ("chinese", "zh")


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "one"}) + "\n" + json.dumps({"messages": [{"role": "user", "content": "two"}]}) + "\n",
        encoding="utf-8",
    )
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    found = evaluation_texts([str(tmp_path)])
    assert [(text.name, text.text) for text in found] == [("a.jsonl", "one\n\ntwo"), ("b.txt", "second")]
    assert evaluation_texts([str(tmp_path / "b.txt")])[0].text == "second"


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="holds no text"):
        evaluation_texts([str(tmp_path)])


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(UsageError, match="no evaluation text 'englisch'") as caught:
        evaluation_texts(["englisch"])
    assert "english" in caught.value.hint
    assert "wikitext" in caught.value.hint


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(BadInputError, match=r"x.txt is not UTF-8 text \(byte 3\)"):
        evaluation_texts([str(path)])


def test_overlap_is_the_share_of_stretches_found_elsewhere():
    text = "".join(chr(97 + n % 26) + str(n) for n in range(400))
    assert overlap(text, [text]) == 1
    assert overlap(text, ["something else " * 50]) == 0
    assert overlap(text, ["before " + text[: len(text) // 2] + " after"]) == pytest.approx(0.5, abs=0.05)
    assert overlap("short", ["short"]) == 0
    assert len(text) > SHINGLE
