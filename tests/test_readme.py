"""What the README says runs, runs."""

import re
import shlex
from pathlib import Path

import pytest

from plait.cli import _parser

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_five_lines_of_python():
    scope: dict = {}
    exec(blocks("python")[0], scope)
    assert len(scope["hidden"]) == 2 and scope["hidden"][0].shape[1] == 256


COMMANDS = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines() if line.startswith("plait ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    chosen, rest = _parser().parse_known_args(shlex.split(command)[1:])
    assert chosen.command in command
    assert all(word.startswith("--") for word in rest[::2])


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
