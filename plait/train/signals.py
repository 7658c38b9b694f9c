"""Being asked to stop: Ctrl-C, and SIGTERM of a scheduler."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_SIGNALS = 1.0
"""A Ctrl-C that comes later than this after the first one is meant."""


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on Ctrl-C and SIGTERM while the block runs; Ctrl-C again, a moment later, raises KeyboardInterrupt.

    A launcher passes a signal on that the terminal or the scheduler sends to all, so that it may come twice.
    """
    first = math.inf

    def ask(number, frame):
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + SECONDS_BETWEEN_SIGNALS:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())
        stop()

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
