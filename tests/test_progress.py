"""Progress: lines for logs, bars for terminals, nothing from Python."""

import io
import re
import sys

import pytest

from quantkit.progress import Bars, Lines, Shown, Silent

RECORD = {"name": "model.layers.0.mlp.down_proj", "loss": 0.25, "relative_error": 2e-3}
WORSE = {"name": "model.layers.0.self_attn.q_proj", "loss": 0.125, "relative_error": 4e-3}
EVENTS = ("say", "start", "linear", "layer", "transfer", "stop")


def play(progress, layers=3, done=0):
    progress.say("calibration: 8 x 64 tokens")
    progress.start(layers, done)
    for index in range(done, layers):
        progress.linear(RECORD)
        progress.linear(WORSE)
        progress.layer(index, 1.5)
    progress.stop()


def test_lines_say_layer_time_worst_linear_and_time_to_go():
    stream = io.StringIO()
    play(Lines(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "calibration: 8 x 64 tokens"
    pattern = r"layer (\d)/3 in 1\.5 s, largest relative error 4\.00e-03 \(self_attn\.q_proj\), (.*)"
    found = [re.fullmatch(pattern, line) for line in lines[1:]]
    assert [match[1] for match in found] == ["1", "2", "3"]
    assert [match[2] for match in found] == ["0.0 s to go", "0.0 s to go", "done"]


def test_lines_of_a_continued_run_count_from_the_whole():
    stream = io.StringIO()
    play(Lines(stream), done=2)
    assert [line.split(" in ")[0] for line in stream.getvalue().splitlines()[1:]] == ["layer 3/3"]


def test_the_time_to_go_follows_the_layers_of_this_run(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    lines = Lines(io.StringIO())
    lines.start(10, 4)
    clock[0] += 120
    lines.layer(4, 60.0)
    lines.layer(5, 60.0)
    assert lines.remaining() == "4 min 00 s to go"


def test_a_layer_without_linears_is_a_line_too():
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(1, 0)
    lines.layer(0, 2.0)
    assert stream.getvalue() == "layer 1/1 in 2.0 s, done\n"


def test_lines_go_to_stderr_without_escape_codes(capsys):
    play(Lines())
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err


def test_silence(capsys):
    play(Silent())
    assert capsys.readouterr() == ("", "")


def test_bars_show_every_event_on_stderr(capsys):
    play(Bars())
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibration: 8 x 64 tokens" in err
    assert "3/3" in err


def test_bars_take_text_for_text(capsys):
    bars = Bars()
    bars.say("notes [/bold] and [red] stay")
    bars.stop()
    assert "notes [/bold] and [red] stay" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Silent, Lines, Bars])
def test_stopping_twice_does_no_harm(kind):
    progress = kind()
    progress.start(2, 0)
    progress.stop()
    progress.stop()


@pytest.mark.parametrize("kind", [Silent, Lines, Bars])
def test_every_kind_has_every_event(kind):
    assert all(callable(getattr(kind, event)) for event in EVENTS)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # the notebook's test has left it here
    assert type(Shown().progress) is Lines
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(Shown().progress) is Bars


@pytest.mark.parametrize("module", ["google.colab", "ipykernel"])
def test_lines_in_a_notebook(monkeypatch, module):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, module, sys)
    assert type(Shown().progress) is Lines


def test_the_terminal_is_given_back_after_a_failure(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = Shown()
    stopped = []
    monkeypatch.setattr(shown.progress, "stop", lambda: stopped.append(True))
    with pytest.raises(KeyboardInterrupt), shown:
        raise KeyboardInterrupt
    assert stopped == [True]


def transfer(progress, monkeypatch, seconds, total=100_000_000):
    """A transfer of so many seconds, told ten times a second."""
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    for tick in range(seconds * 10 + 1):
        progress.transfer(total * tick // (seconds * 10), total)
        clock[0] += 0.1
    progress.stop()


def test_a_transfer_is_a_line_every_ten_seconds(monkeypatch):
    stream = io.StringIO()
    transfer(Lines(stream), monkeypatch, 40)
    first, *_, last = stream.getvalue().splitlines()
    assert re.fullmatch(r"downloaded 25\.\d+ MB of 100\.00 MB, 2\.50 MB/s, 30 s to go", first)
    assert last == "downloaded 100.00 MB"
    assert len(stream.getvalue().splitlines()) == 4


def test_a_short_transfer_is_no_line(monkeypatch):
    stream = io.StringIO()
    transfer(Lines(stream), monkeypatch, 5)
    assert stream.getvalue() == ""


def test_a_transfer_that_loses_bytes_still_has_a_rate(monkeypatch):
    clock, stream = [0.0], io.StringIO()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    lines = Lines(stream)
    for done in (50, 0):
        lines.transfer(done, 100)
        clock[0] += 20
    assert stream.getvalue() == "downloaded 0 B of 100 B, 1 B/s, 1 min 40 s to go\n"


def test_the_bar_of_a_transfer_goes_when_all_is_there(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    monkeypatch.setenv("COLUMNS", "100")
    bars = Bars()
    for _ in range(2):  # one download after another
        bars.transfer(0, 10)
        bars.transfer(10, 10)
    bars.transfer(5, 10)
    bars.stop()
    bars.stop()
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/10 bytes" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
