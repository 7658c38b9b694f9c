"""What a client waits for: one request of the engine, and the events that it is told of while that is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from plait.batch.documents import Part
from plait.generate.request import Request, Result, Score

UNFINISHED = "\ufffd"
"""What a tokenizer shows of a character whose last bytes are still to come."""


@dataclass(frozen=True)
class TextPiece:
    """More of the text that is being written, and the scores of its ids where they are wanted."""

    text: str
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Item:
    """A finished part that is no text."""

    part: Part


@dataclass(frozen=True)
class Preview:
    """An item on its way from noise: its level (1 is noise), and what it is by now."""

    level: float
    part: Part


@dataclass(frozen=True)
class Ended:
    """The request is over: what it made, and why it stopped (stop, length, cancelled)."""

    result: Result
    reason: str


@dataclass(frozen=True)
class Failed:
    """The request could not be carried out."""

    error: Exception


Event = TextPiece | Item | Preview | Ended | Failed


@dataclass(eq=False)
class Job:
    """One request of the engine with whoever waits for it. ``deliver`` is called from the engine's thread."""

    request: Request
    deliver: Callable[[Event], None]
    decode: Callable[[np.ndarray], str]
    """Text of local ids of the host."""
    stops: Sequence[str] = ()
    """Texts before which an answer ends."""
    streams: bool = False
    """Whether text is wanted while it is written."""
    id: int | None = None
    """The engine's number of it, once it is under way."""
    added: float = 0.0
    """When it came in, and when the first thing of it was there (seconds of the scheduler's clock)."""
    first: float = 0.0
    num_parts: int = 0
    """Parts of the row that were told of, and snapshots of the open one."""
    num_snapshots: int = 0
    num_scores: int = 0
    writer: "TextWriter" = field(init=False)

    def __post_init__(self) -> None:
        self.writer = TextWriter(self.decode, self.stops)


class TextWriter:
    """Turns ids that come one by one into pieces of text, which put together are the text of all of them.

    Ids are decoded in a window from the last place where a character ended, as most servers do: a tokenizer may show
    an id otherwise at the beginning of a text. Text that may begin a stop is held back.
    """

    def __init__(self, decode: Callable[[np.ndarray], str], stops: Sequence[str] = ()):
        self.decode, self.stops = decode, [s for s in stops if s]
        self.stopped = False
        self._restart()

    def _restart(self) -> None:
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        """Take all ids of the open text so far, and return the piece that is new."""
        self._ids = list(ids)
        before = self._text(self._start, self._read)
        text = self._text(self._start, len(self._ids))
        if len(text) <= len(before) or text.endswith(UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._before_stop(text[len(before) :])

    def end(self, ids: Sequence[int]) -> str:
        """Return the rest of a text that is finished."""
        self._ids = list(ids)
        before = self._text(self._start, self._read)
        piece = self._before_stop(self._text(self._start, len(self._ids))[len(before) :])
        held = "" if self.stopped else self._held
        self._restart()
        return piece + held

    def _text(self, start: int, stop: int) -> str:
        return self.decode(np.array(self._ids[start:stop], dtype=np.int64)) if stop > start else ""

    def _before_stop(self, piece: str) -> str:
        """Return what can be shown of a new piece: up to a stop, and without what may become one."""
        if self.stopped or not self.stops:
            return "" if self.stopped else piece
        text = self._held + piece
        places = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        most = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - most :]
        return text[: len(text) - most]
