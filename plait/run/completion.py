"""What a shell completes: commands, their options, and the settings of a config (`plait completion bash`)."""

import argparse
import itertools
from collections.abc import Mapping
from typing import Any

from plait.common.errors import ResourceError
from plait.config.shipped import describe_settings

SHELLS = ("bash", "zsh", "tcsh")


def script(parser: argparse.ArgumentParser, commands: Mapping[str, Any], shell: str) -> str:
    """Return the script that makes a shell complete the commands of a parser. Raises ResourceError without shtab."""
    try:
        import shtab
    except ImportError:
        raise ResourceError("plait completion needs the package shtab; run `pip install shtab`") from None
    settings = dict(_settings())
    for command in commands.values():
        for name, text in settings.items() if command.takes_settings else ():
            command.add_argument(f"--{name}", help=text)
        for action in command._actions:
            if _names_files(action):
                action.complete = shtab.FILE
    made: str = shtab.complete(parser, shell)
    return made


def _settings() -> list[tuple[str, str]]:
    """Return the settings that have one name, with the first sentence on each; those of a modality have many."""
    lines = describe_settings().split("\n")
    pairs = itertools.pairwise(lines)
    texts = [(a.partition(" = ")[0], b.strip()) for a, b in pairs if not a.startswith(" ") and b.startswith("    ")]
    return [
        (name, text.partition(". ")[0].partition(" [")[0]) for name, text in texts if "." in name and "<" not in name
    ]


def _names_files(action: argparse.Action) -> bool:
    """Say whether an argument names files or folders: a place on its own, or an option that takes one."""
    shown = action.metavar if isinstance(action.metavar, str) else action.dest
    is_place = not action.option_strings and action.choices is None
    return is_place or any(word in shown.upper() for word in ("FILE", "FOLDER")) or action.dest in ("out", "config")
