"""A rank that hangs makes all others wait without a word. The watchdog of every rank says which one it is, and ends.

Training says where it is (`Watchdog.at`), which costs nothing. A thread of each rank writes that to the store that the
ranks met at, with what the main thread does once it has stood still for a while; the first and the last rank read what
all wrote. Two things are looked for:

- a rank whose thread is not heard from: its process is stopped, or its machine is gone;
- ranks that have all stood still: those that are behind, or of several at the same place those that do not wait in a
  collective, keep the others waiting.

The process then ends with exit code 1, so that the launcher can start all ranks anew; nothing can be saved when a rank
is missing, and the newest checkpoint is whole.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch.distributed as dist

from plait.common.errors import PlaitError

BEATS = 8
"""How often a rank is heard within the time after which it counts as hung."""
LONGEST_BEAT = 15.0
"""Seconds between two beats at most."""
VERDICT = "verdict"


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    number: int
    """Counts the beats, so that a new one is told from an old one."""
    place: int
    """Counts what training did since it began: the same number is the same place on every rank."""
    step: int
    phase: str
    still: float
    """Seconds since the place changed."""
    frame: str
    """What the main thread does, where it has stood still for a while."""
    collective: str
    """The collective that it waits in, if it does."""
    process: str
    done: bool
    """Whether it has left the training loop, as it should."""


LOST = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL error",
    "remote process exited",
)
"""What torch says where the rank at the other end of a connection is gone."""


@contextlib.contextmanager
def lost_ranks() -> Iterator[None]:
    """Turn an error of a connection to a rank that ended into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, PlaitError) or not any(words in str(error) for words in LOST):
            raise
        raise RankLost(
            "training: another rank ended or its machine is gone, see what that one says; "
            "rerun the same command to resume from the newest checkpoint"
        ) from None


class RankLost(PlaitError):
    """The connection to another rank broke."""


class Watchdog:
    """Watches the ranks of a process group while its context is open.

    ``seconds`` is the time without progress after which a rank counts as hung; 0, or one process alone, watches
    nothing. ``end`` is called with the sentence that says who hangs, on the first or the last rank, and with "" on
    the others.
    """

    def __init__(self, seconds: float, *, end: Callable[[str], None] | None = None):
        self.seconds = seconds
        self._end = end or _end_process
        self._at = (0, 0, "starting")
        self._since = time.monotonic()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._heard: dict[int, tuple[Beat, float]] = {}

    def at(self, step: int, phase: str) -> None:
        """Say what training is about to do; every rank says the same things in the same order."""
        self._at = (self._at[0] + 1, step, phase)
        self._since = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0 and dist.is_initialized() and dist.get_world_size() > 1:
            self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
            self._main = threading.get_ident()
            self._beat = min(self.seconds / BEATS, LONGEST_BEAT)
            self._since = self._answered = time.monotonic()
            self._store = _own_store(timedelta(seconds=max(self.seconds, 1.0)))
            self._say(0)  # a rank that stops before its first beat is missed too
            self._threads = [
                threading.Thread(target=f, name="plait-watchdog", daemon=True) for f in (self._talk, self._watch)
            ]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=self._beat)
        if self._threads and kind is None:
            with contextlib.suppress(RuntimeError):  # the rank that kept the store is done too
                self._say(10**9, done=True)

    # -- the threads --------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        """Say where this rank is; the first and the last one listen to all, the others to what those found."""
        number = 0
        try:
            while not self._stopped.wait(self._beat):
                number += 1
                self._say(number)
                if self._store.check([VERDICT]):
                    self._end("")
                if self._rank in (0, self._world_size - 1):
                    self._listen()
                self._answered = time.monotonic()
        except RuntimeError:  # the connection broke: `_watch` sees that nothing is answered
            pass

    def _say(self, number: int, *, done: bool = False) -> None:
        place, step, phase = self._at
        still = time.monotonic() - self._since
        frame, collective = where(self._main) if still > self.seconds / 2 else ("", "")
        process = f"process {os.getpid()} on {socket.gethostname()}"
        beat = Beat(number, place, step, phase, still, frame, collective, process, done)
        self._store.set(str(self._rank), json.dumps(asdict(beat)))

    def _listen(self) -> None:
        now = time.monotonic()
        ranks = [r for r in range(self._world_size) if self._store.check([str(r)])]
        for rank, text in zip(ranks, self._store.multi_get([str(r) for r in ranks]), strict=True):
            beat = Beat(**json.loads(text))
            if rank not in self._heard or self._heard[rank][0].number != beat.number:
                self._heard[rank] = beat, now

    def _watch(self) -> None:
        """Judge what was heard. This thread never waits for the store."""
        while not self._stopped.wait(self._beat):
            now = time.monotonic()
            if min(now - self._answered, now - self._since) > self.seconds + 2 * self._beat:
                _, step, phase = self._at
                self._end(
                    f"training: rank 0, where the ranks meet, does not answer, and rank {self._rank} waits in "
                    f"{phase!r} of step {step}; no progress for train.watchdog_seconds ({self.seconds:g})"
                )
                return
            sentence = judge(dict(self._heard), self._world_size, self.seconds, now)
            if sentence:
                # for the other ranks, if the store still answers
                telling = threading.Thread(target=self._tell, args=(sentence,), daemon=True)
                telling.start()
                telling.join(timeout=1.0)
                self._end(sentence)
                return

    def _tell(self, sentence: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(VERDICT, sentence)


def judge(heard: dict[int, tuple[Beat, float]], world_size: int, seconds: float, now: float) -> str:
    """Return the sentence that says who hangs, or nothing. ``heard`` is each rank's last beat and when it came."""
    beats = {rank: beat for rank, (beat, _) in heard.items()}
    silent = [r for r, (beat, at) in heard.items() if now - at > seconds and not beat.done]
    if silent:
        return _sentence(silent, beats, "not heard from since", seconds)
    if (
        len(beats) < world_size
        or min(b.still for b in beats.values()) <= seconds
        or all(b.done for b in beats.values())
    ):
        return ""
    behind = min(beat.place for beat in beats.values())
    late = [r for r, beat in beats.items() if beat.place == behind]
    return _sentence([r for r in late if not beats[r].collective] or late, beats, "hanging in", seconds)


def _sentence(hung: list[int], beats: dict[int, Beat], what: str, seconds: float) -> str:
    first = beats[hung[0]]
    ranks = f"rank {hung[0]} is" if len(hung) == 1 else f"ranks {', '.join(map(str, hung))} are"
    doing = f" ({first.frame})" if first.frame else ""
    others = [beat for rank, beat in beats.items() if rank not in hung]
    wait = ""
    if others:
        other = max(others, key=lambda beat: (bool(beat.collective), beat.still))
        wait = f", while others wait for {other.collective or 'it'} in {other.phase!r} of step {other.step}"
    return (
        f"training: {ranks} {what} {first.phase!r} of step {first.step}{doing}, {first.process}{wait}; "
        f"no progress for train.watchdog_seconds ({seconds:g})"
    )


def where(thread: int) -> tuple[str, str]:
    """Return what a thread does, as ``file.py:line function``, and which of torch.distributed's it is in, if any."""
    frame: Any = sys._current_frames().get(thread)
    inner = collective = ""
    while frame is not None:
        code = frame.f_code
        inner = inner or f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
        if os.path.join("torch", "distributed", "") in code.co_filename and code.co_name != "wrapper":
            # the outermost of its public functions, which is the one that was called
            named = code.co_filename.endswith(("distributed_c10d.py", "_functional_collectives.py"))
            collective = code.co_name if named or not collective else collective
        frame = frame.f_back
    return inner, collective


def _own_store(timeout: timedelta) -> dist.Store:
    """Return a connection of the watchdog's own to the store that the ranks met at.

    On the group's own connection it would wait whenever training does.
    """
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):
        store = dist.TCPStore(store.host, store.port, is_master=False, timeout=timeout, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"plait-watchdog/{attempt}", store)


def _end_process(sentence: str) -> None:
    """Say it and end at once: the main thread is in a call that nothing can interrupt."""
    if sentence:
        print(f"plait: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)
