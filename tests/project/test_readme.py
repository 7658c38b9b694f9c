"""What the README says runs, runs."""

import re
import shlex
from typing import Any

import pytest
from helpers import ROOT
from helpers.pages import README, blocks

import plait
from plait.cli import _parser
from plait.common.errors import ConfigError
from plait.config.file import _convert, kind_of, parsed
from plait.config.run import RunConfig
from plait.run.arguments import split

DESIGN = (ROOT / "docs" / "design.md").read_text()


def commands_of(page: str) -> list[str]:
    """Return the lines of a page that are a plait command, without comments and what a shell does with them."""
    found = []
    for line in page.replace("\\\n", " ").splitlines():
        line = re.split(r"\s#|\s{3,}\(|\s{2,}#", line)[0].strip()
        if re.match(r"plait [a-z]+ [^:;]*$|plait [a-z]+$", line) and "CONFIG" not in line and "STUDY" not in line:
            found.append(re.sub(r"\s[>|&].*", "", line))
    return found


def parsed_command(command: str):
    """Return a command's arguments; settings must be ones that there are, with values of their type."""
    parser = _parser()
    words, settings = split(shlex.split(command)[1:], parser.commands)
    chosen = parser.parse_args(words)
    for setting in settings:
        key, _, text = setting.partition("=")
        kind = kind_of(RunConfig, key.split("."))
        if kind is Any:
            raise ConfigError(f"{key}: there is no such setting")
        if "$" not in text:
            _convert(parsed(text, kind, key), kind, key)
    return chosen


def test_five_lines_of_python():
    scope: dict = {}
    exec(blocks("python", DESIGN)[0], scope)
    assert len(scope["hidden"]) == 2 and scope["hidden"][0].shape[1] == 256


DOCS = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = sorted({command for page in (README, *(path.read_text() for path in DOCS)) for command in commands_of(page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    """Every command of the README and of docs, in blocks, has options that there are, and settings with a value."""
    assert parsed_command(command).command == shlex.split(command)[1]


@pytest.mark.parametrize("command", list(_parser().commands))
def test_help_describes_every_option_and_its_examples_run(command, capsys):
    parser = _parser().commands[command]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help and " ".join((action.help % {"default": action.default}).split()) in text, action
        assert all(option in text for option in action.option_strings)
    examples = commands_of(parser.epilog or "")
    assert bool(examples) == ("examples" in (parser.epilog or ""))
    for example in examples:
        assert parsed_command(example).command in (command, "inspect", "report")


def test_a_command_that_is_none_is_found():
    for wrong in ("plait trian x", "plait train x --tran.steps 5", "plait train x --train.step 5", "plait train",
                  "plait train x --train.steps five", "plait generate x --txt a",
                  "plait train x --train.steps"):  # fmt: skip
        with pytest.raises(ConfigError):
            parsed_command(wrong)


def test_a_stranger_reads_it_in_a_minute():
    assert len(README.splitlines()) <= 150


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_examples_ask_for_what_the_quickstart_knows():
    """A thing that its world lacks would be drawn as a smear, at somebody's first try."""
    from plait.scenes.drawings import everyday

    known = {concept.name for concept in everyday(64)}
    pages = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *HELP)}
    said = [(path.name, thing) for path, text in pages.items() if path.name != "experiments.md"
            for thing in re.findall(r"an? ([a-z ]+?) on a [a-z]+ background\"", text)]  # fmt: skip
    assert len(said) > 10 and {path for path, _ in said} >= {"README.md", "serving.md", "hub.md", "cli.py"}
    assert [(path, thing) for path, thing in said if thing not in known] == []


HELP = [ROOT / "plait" / name for name in ("cli.py", "run/options.py", "run/load.py", "hf/__init__.py")]


def test_one_version_everywhere():
    """The newest version of the changelog is the package's, and the one that is cited, with its date."""
    number, date = re.search(r"^## (\S+) \(([0-9-]+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    cited = (ROOT / "CITATION.cff").read_text()
    assert (plait.__version__, plait.__version__) == (number, re.search(r"^version: (.+)$", cited, re.MULTILINE)[1])
    assert date == re.search(r"^date-released: (.+)$", cited, re.MULTILINE)[1]
