"""How a command line is taken apart: settings from options, wherever they stand, and numbers within their limits."""

import argparse
import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn

from plait.common.errors import ConfigError, nearest, shown
from plait.config.bounds import ANY, Bounds, as_number
from plait.config.run import RunConfig


def split(words: list[str], commands: dict[str, "Parser"]) -> tuple[list[str], list[str]]:
    """Return a command line without its settings, and the settings as ``a.b=value``, wherever they stood.

    A word ``--name`` that is no option of the command is a setting. Its value is what follows "=", or else the next
    word, which may begin with one dash. An option's value is joined to it, so that it may begin with a dash too.
    """
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in commands:  # argparse says what is wrong
        return words, []
    options = commands[command].values_taken()
    left: list[str] = []
    settings: list[str] = []
    queue = collections.deque(words)
    while queue:
        word = queue.popleft()
        if word == "--":
            left += [word, *queue]
            break
        name, separator, _ = word.partition("=")
        if not word.startswith("--"):
            left.append(word)
        elif name in options:
            needs_value = options[name] == 1 and not separator
            left.append(f"{word}={_value(word, queue)}" if needs_value else word)
        else:
            _check_setting(name, command, commands[command])
            settings.append(word[2:] if separator else f"{word[2:]}={_value(word, queue)}")
    _check_once(settings)
    return left, settings


def _check_once(settings: list[str]) -> None:
    """Raise a ConfigError for a setting that was given two values, of which the last would count without a word."""
    values: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if values.setdefault(name, value) != value:
            raise ConfigError(
                f"command line: --{name} stands twice ({shown(values[name])} and {shown(value)}), leave one out"
            )


def _value(word: str, queue: collections.deque[str]) -> str:
    """Take the value of an option or setting from the words that follow it."""
    if not queue or queue[0].startswith("--"):
        raise ConfigError(f"command line: {word!r} has no value, give {word} VALUE (or {word}=VALUE)")
    return queue.popleft()


def _check_setting(name: str, command: str, parser: "Parser") -> None:
    """Raise a ConfigError for a word that is neither an option of the command nor can be a setting."""
    sections = [f"--{field.name}" for field in dataclasses.fields(RunConfig)] if parser.takes_settings else []
    first = name.partition(".")[0]
    if first not in sections:
        known = [*parser.values_taken(), *sections]
        raise ConfigError(f"command line: plait {command} knows no {name!r}{nearest(first, known)}")


MANY = -1
"""An option that takes any number of words."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and whose options are written out."""

    takes_settings = False

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **(settings | {"allow_abbrev": False}))
        self.commands: dict[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see {self.prog} --help")

    def values_taken(self) -> dict[str, int]:
        """Return how many words each option takes: 0, 1 or MANY."""
        count: dict[Any, int] = {None: 1, 0: 0}
        return {name: count.get(action.nargs, MANY) for action in self._actions for name in action.option_strings}


def whole(**limits: float) -> Callable[[str], int]:
    """Return what reads an option's whole number within limits (see `plait.config.bounds.Bounds`)."""
    return functools.partial(read_number, kind=int, bounds=Bounds(**limits))


def real(**limits: float) -> Callable[[str], float]:
    """Return what reads an option's number within limits."""
    return functools.partial(read_number, kind=float, bounds=Bounds(**limits))


def like(config: type, name: str) -> Callable[[str], float]:
    """Return what reads an option that stands for a setting's number."""
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    return functools.partial(
        read_number, kind=int if field.type is int else float, bounds=field.metadata.get("bounds", ANY)
    )


def read_number(text: str, *, kind: type, bounds: Bounds = ANY) -> Any:
    """Read an option's number; raises what argparse expects, with a sentence on what is allowed."""
    try:
        value = kind(text)
    except ValueError:
        value = text
    try:
        return as_number(value, kind, "", bounds)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None
