"""The page of a check in headless Chromium: no complaint, nothing fetched, nothing wider than the screen."""

import pytest
from browser import Browser, find_browser
from records import record, with_answers

from quantkit.plan.runtime import MACHINES
from quantkit.report.html import write_html

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = "a-name-as-long-as-repositories-on-the-hub-may-well-be-GPTQ-Int4-g128"
    made = {"one": record(1), "six": record(6, (long, "b")), "answers": with_answers(record(3), said="67 x 39 " * 300)}
    for name, content in made.items():
        write_html(content, folder / f"{name}.html", MACHINES)
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "six", "answers"])
def test_the_page_fits_the_screen_and_is_quiet(browser, pages, tmp_path, name, width, dark):
    page = browser.open(pages / f"{name}.html", width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints() == []
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    page.close()


def test_nothing_is_cut_off_in_the_summary_at_desktop_width(browser, pages):
    page = browser.open(pages / "one.html", 1280)
    wider = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(wider) == 0
    page.close()


def test_a_page_that_is_too_wide_would_be_noticed(browser, tmp_path):
    path = tmp_path / "wide.html"
    path.write_text("<!doctype html><title>x</title><div style='width:3000px'>x</div><script>nothing()</script>")
    page = browser.open(path, 390)
    assert page.evaluate("document.documentElement.scrollWidth") > 390
    assert page.complaints()
    page.close()
