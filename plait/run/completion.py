"""What a shell completes: commands, their options, and the settings of a config (`plait completion bash`)."""

import argparse
from collections.abc import Mapping
from typing import Any

from plait.common.errors import ResourceError
from plait.config.shipped import described_settings


def script(parser: argparse.ArgumentParser, commands: Mapping[str, Any], shell: str) -> str:
    """Return the script that makes a shell complete the commands of a parser. Raises ResourceError without shtab."""
    try:
        import shtab
    except ImportError:
        raise ResourceError("plait completion needs the package shtab; run `pip install shtab`") from None
    # those of a modality or tower have as many names as there are of these
    settings = [s for s in described_settings() if "." in s.name and "<" not in s.name]
    for command in commands.values():
        for setting in settings if command.takes_settings else ():
            command.add_argument(f"--{setting.name}", help=setting.text.partition(". ")[0])
        for action in command._actions:
            if _names_files(action):
                action.complete = shtab.FILE
    made: str = shtab.complete(parser, shell)
    return made


def _names_files(action: argparse.Action) -> bool:
    """Say whether an argument names files or folders: a place on its own, or an option that takes one."""
    shown = action.metavar if isinstance(action.metavar, str) else action.dest
    is_place = not action.option_strings and action.choices is None
    return is_place or any(word in shown.upper() for word in ("FILE", "FOLDER")) or action.dest in ("out", "config")
