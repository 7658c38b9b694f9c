"""Progress: bars on a terminal, few plain lines elsewhere, and a clean end when stopped."""

import io

import pytest
from rich.console import Console

from plait.common import progress as module
from plait.common.progress import Progress, QuietProgress, clock


def work(progress: Progress) -> None:
    with progress.stage("outer", total=4) as bar:
        bar.resume(2)
        bar.advance(1, "loss 3")
        with progress.stage("inner", total=None) as inner:
            inner.advance()
        progress.print("a line [with] brackets")
        bar.advance()
        assert bar.done == 4 and bar.seconds_left == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_stages_nest_and_show_their_text(terminal, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    out = io.StringIO()
    work(Progress(Console(file=out, force_terminal=terminal, width=100)))
    text = out.getvalue()
    assert "outer" in text and "loss 3" in text and "a line [with] brackets" in text
    assert terminal or "inner" in text  # on a terminal it was gone before it was drawn
    assert ("\x1b[?25h" in text) == terminal  # the cursor is shown again


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stopped_stage_says_so(terminal):
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(Console(file=out, force_terminal=terminal)).stage("x", 2) as bar:
        bar.advance(1)
        raise KeyboardInterrupt
    assert "stopped" in out.getvalue()


def test_without_a_terminal_lines_are_few():
    out = io.StringIO()
    with Progress(Console(file=out)).stage("x", total=1000) as bar:
        for _ in range(1000):
            bar.advance()
    assert out.getvalue().splitlines() == ["x: done in 0.0 s"]


def test_a_notebook_gets_lines(monkeypatch, capfd):
    """It sets FORCE_COLOR, though its stream is no terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress().stage("reading", 2) as bar:
        bar.advance(2)
    said = capfd.readouterr().err
    assert said.startswith("reading: done") and "\x1b" not in said


def test_quiet_progress_counts_and_says_nothing(capsys):
    work(QuietProgress())
    assert capsys.readouterr() == ("", "")


def test_time_left_counts_only_this_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with QuietProgress().stage("x", total=100) as bar:
        bar.resume(80)
        assert bar.seconds_left is None
        now[0] = 10.0
        bar.advance(10)
        assert bar.seconds_left == 10.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11_520, "3 h 12 min")],
)
def test_durations_read_well(seconds, text):
    assert clock(seconds) == text
