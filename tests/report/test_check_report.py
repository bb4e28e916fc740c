"""A check as a table, as Markdown and as a page."""

import re
from html.parser import HTMLParser

import pytest
from records import record, with_answers

from quantkit.plan.runtime import MACHINES
from quantkit.report.check_table import markdown_table, print_check
from quantkit.report.html import write_html

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "line", "circle", "rect", "polyline"}


class Reader(HTMLParser):
    """Tags that close in order, the text between them, and every attribute that could fetch something."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(made, tmp_path):
    path = tmp_path / "report.html"
    write_html(made, path, MACHINES)
    return path.read_text("utf-8")


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("names", [(), ("an-artifact-with-a-very-long-name-" * 4, "x")])
def test_the_table_fits_a_hundred_columns(capsys, count, names):
    print_check(record(count, names))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "20.00 ± 0.50" in out


def test_the_table_says_what_failed_and_by_how_much(capsys):
    print_check(record(3))
    out = capsys.readouterr().out
    assert "artifact-0: passed" in out
    assert "artifact-1: failed\n  mean KL divergence 0.0200, allowed 0.0300" in out
    assert "2 of 3 artifacts keep their limits" in out
    assert "+0.20%" in out
    assert "+4.00%" in out


def test_the_table_names_where_the_damage_is(capsys):
    print_check(record(1))
    out = capsys.readouterr().out
    assert "layer 0 self_attn.q_proj" in out
    assert "drift jumps most in layer 2" in out


def test_answers_are_summed_up(capsys):
    print_check(with_answers(record(2)))
    assert "100% identical to the baseline's, 1 of 1 correct" in capsys.readouterr().out


def test_the_markdown_is_one_table(tmp_path):
    lines = markdown_table(record(2, ("a|b", "c"))).strip().splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(lines) == 2 + 3
    assert len(set(cells)) == 1
    assert "a\\|b" in lines[3]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_page_is_well_formed_and_fetches_nothing(tmp_path, count):
    reader = read(page(record(count), tmp_path))
    assert reader.fetched == []
    assert "script" not in reader.tags
    text = " ".join(reader.text)
    for number in range(count):
        assert f"artifact-{number}" in text
    assert "nan" not in text.lower().split()


def test_the_page_holds_the_figures_and_the_provenance(tmp_path):
    text = " ".join(read(page(record(2), tmp_path)).text)
    for said in ("Chinese", "windows of 512 tokens", "ab" * 32, "cd" * 32, "mean KL divergence 0.0200", "T4 16 GB"):
        assert said in text, said


def test_what_others_wrote_stays_text(tmp_path):
    wild = "<script>alert(1)</script><img src=http://127.0.0.1/x onerror=alert(1)>"
    made = with_answers(record(2, (wild, "b")), prompt=wild, said=wild)
    made["evaluation"]["notes"] = [wild]
    reader = read(page(made, tmp_path))
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert reader.fetched == []
    assert "".join(reader.text).count("<script>alert(1)</script>") >= 4


def test_a_differing_answer_is_marked_where_it_differs(tmp_path):
    html = page(with_answers(record(2)), tmp_path)
    assert re.search(r"It is(</\w+>)?<del[^>]*> ?2613</del>", re.sub(r"\s*\n\s*", "", html)) or "<del" in html
    assert "<mark> 2614.</mark>" in html


def test_the_same_record_gives_the_same_page(tmp_path):
    assert page(record(2), tmp_path) == page(record(2), tmp_path)
