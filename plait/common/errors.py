"""Errors that a user can cause, each one sentence, and the exit codes that scripts can read."""

import difflib
from collections.abc import Iterable
from typing import Any


class PlaitError(Exception):
    """Something a user can put right. The message is one sentence; the command line prints it alone."""

    exit_code = 1


class ConfigError(PlaitError, ValueError):
    """A setting is wrong: names the field, the value, and what is allowed."""

    exit_code = 2


class DataError(PlaitError, ValueError):
    """Input data is missing, broken, or of another kind than said."""

    exit_code = 3


class CheckpointError(PlaitError, ValueError):
    """A checkpoint or saved model is missing, broken, or of another architecture."""

    exit_code = 4


class ResourceError(PlaitError, RuntimeError):
    """The machine lacks something: a device, disk space, an optional package."""

    exit_code = 5


class Held(PlaitError):
    """Somebody else writes a folder at this moment (plait.common.locks)."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library's error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""``."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: object) -> str:
    """Return text in one line, without what a terminal would obey or UTF-8 cannot hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def is_storable(text: str) -> bool:
    """Whether files and their names can hold a text: no half of a surrogate pair, no NUL."""
    try:
        return b"\0" not in text.encode("utf-8")
    except UnicodeEncodeError:
        return False


LONGEST_SHOWN = 300


def shown(value: object) -> str:
    """Return a value as a sentence shows it: in one line, cut off where it is long, arrays by type and shape alone."""
    try:
        text = printable(repr(_without_arrays(value)))
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


class _Said(str):
    """A text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _without_arrays(value: Any) -> Any:
    """Return a value with the arrays and images in it, which are no text, as what they are."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if shape and dtype is not None:
        return _Said(f"an array of {dtype} {list(shape)}")
    if isinstance(value, dict):
        return {name: _without_arrays(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_arrays(v) for v in value[:LONGEST_SHOWN])
    if isinstance(value, str | bytes):
        return value[:LONGEST_SHOWN]
    return value


def unknown(field: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not among the known ones."""
    known = sorted(map(printable, known))
    hint = nearest(str(name), known)
    return f"{field}: unknown name {shown(name)}, allowed: {', '.join(known) or 'none'}{hint}"


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise a ConfigError that says what ``field`` may be, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{field}: {shown(value)} is not allowed, it must be {allowed}")
