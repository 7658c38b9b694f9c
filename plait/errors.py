"""Errors that a user can cause, each one sentence, and the exit codes that scripts can read."""

import difflib
from collections.abc import Iterable


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""``."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: object) -> str:
    """Return text in one line, without what a terminal would obey or UTF-8 cannot hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def unknown(field: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not among the known ones."""
    known = sorted(map(printable, known))
    hint = nearest(str(name), known)
    return f"{field}: unknown name {name!r}, allowed: {', '.join(known) or 'none'}{hint}"


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise a ConfigError that says what ``field`` may be, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{field}: {value!r} is not allowed, it must be {allowed}")
