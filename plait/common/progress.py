"""Progress of long steps: bars with the time left on a terminal, a plain line now and then elsewhere.

::

    progress = Progress()
    with progress.stage("encode train", total=16_000) as bar:
        for batch in batches:
            ...
            bar.advance(len(batch), "speech")

A stage may be opened inside another one (validation while training). Leaving a stage by an exception marks it as
stopped, so that Ctrl-C leaves a clean screen.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0
"""How often a stage says something where there is no terminal."""


_KNOWN_FROM = 0.02
"""Share of a stage from which on its speed is known: before, starting up counts too much."""


class Bar:
    """One stage under way."""

    def __init__(self, title: str, total: float | None):
        self.title = title
        self.total = total
        self.done = 0.0
        self.text = ""
        self.started = time.monotonic()
        self._done_before = 0.0

    def resume(self, done: float) -> None:
        """Say that ``done`` was finished by an earlier run: it counts as done, but not for the speed."""
        self._done_before = done
        self.to(done)

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Count ``amount`` more as done, and show a short text, such as the current loss."""
        self.to(self.done + amount, text)

    def to(self, done: float, text: str | None = None) -> None:
        """Say how much is done in all; ``total`` is everything (a codec that trains counts from 0 to 1)."""
        self.done = done
        self.text = self.text if text is None else text
        self._show()

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the speed so far, or None where nothing is known yet."""
        fresh = self.done - self._done_before
        if not self.total or fresh < _KNOWN_FROM * self.total:
            return None
        return max(self.total - self.done, 0) * self.seconds / fresh

    def _show(self) -> None:
        """Draw; a plain bar draws nothing."""

    def _finish(self, stopped: bool) -> None:
        """Say that the stage is over."""


class Progress:
    """Where long steps report to. Also prints lines, which never tear a bar."""

    def __init__(self, console: Console | None = None):
        # asked of the stream itself: notebooks set FORCE_COLOR, and would show every look of a bar as a line
        self.console = console or Console(stderr=True, highlight=False, force_terminal=sys.stderr.isatty())
        self._rich: RichProgress | None = None
        self._depth = 0

    def print(self, text: str) -> None:
        """Print a line of plain text above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: float | None = None) -> Iterator[Bar]:
        """Open a stage of ``total`` pieces of work (None where nobody knows) and close it at the end."""
        bar = self._open(title, total)
        stopped = True
        try:
            yield bar
            stopped = False
        finally:
            self._close(bar, stopped)

    def _open(self, title: str, total: float | None) -> Bar:
        if not self.console.is_terminal:
            return _LineBar(title, total, self.console)
        if self._rich is None:
            self._rich = _bars(self.console)
            self._rich.start()
        self._depth += 1
        return _TerminalBar(title, total, self._rich, nested=self._depth > 1)

    def _close(self, bar: Bar, stopped: bool) -> None:
        bar._finish(stopped)
        if self._rich is not None:
            self._depth -= 1
            if self._depth == 0:
                self._rich.stop()
                self._rich = None


class QuietProgress(Progress):
    """Reports nothing: for tests and for use as a library."""

    def print(self, text: str) -> None:
        """Print nothing."""

    def _open(self, title: str, total: float | None) -> Bar:
        return Bar(title, total)


class _TerminalBar(Bar):
    def __init__(self, title: str, total: float | None, rich: RichProgress, nested: bool):
        super().__init__(title, total)
        self._rich = rich
        self._nested = nested
        self._task: TaskID = rich.add_task(("  " if nested else "") + title, total=total, text="", bar=self)

    def _show(self) -> None:
        self._rich.update(self._task, completed=self.done, text=self.text)

    def _finish(self, stopped: bool) -> None:
        if self._nested and not stopped:
            self._rich.remove_task(self._task)  # a validation among many would fill the screen
            return
        if not stopped and self.total is None:
            self._rich.update(self._task, total=self.done or 1, completed=self.done or 1)
        self._rich.update(self._task, text="stopped" if stopped else self.text)
        self._rich.stop_task(self._task)


class _LineBar(Bar):
    def __init__(self, title: str, total: float | None, console: Console):
        super().__init__(title, total)
        self._console = console
        self._last_line = self.started

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        amount = f"{self.done / self.total:.0%}" if self.total else f"{self.done:g}"
        left = self.seconds_left
        parts = [amount, f"{clock(left)} left" if left is not None else "", self.text]
        self._say(f"{self.title}: " + ", ".join(p for p in parts if p))

    def _finish(self, stopped: bool) -> None:
        end = "stopped after" if stopped else "done in"
        text = f", {self.text}" if self.text else ""
        self._say(f"{self.title}: {end} {clock(self.seconds)}{text}")


class _TimeColumn(ProgressColumn):
    """The time left while a stage runs, the time it took once it is over."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        bar: Bar = task.fields["bar"]
        if task.finished or task.stop_time is not None:
            return Text(f"took {clock(task.finished_time or task.elapsed or 0)}", style="green")
        left = bar.seconds_left
        return Text(f"{clock(left)} left" if left is not None else clock(bar.seconds), style="cyan")


def _bars(console: Console) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        _TimeColumn(),
        TextColumn("{task.fields[text]}", style="dim", markup=False),
        console=console,
    )


def clock(seconds: float) -> str:
    """Write a duration as a person reads it: ``8.4 s``, ``2 min 05 s``, ``3 h 12 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
