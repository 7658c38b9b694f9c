"""What the site has that no file in docs has: the first page, the changelog, notebooks, all settings, all commands.

They are made from README.md, CHANGELOG.md, the notebooks, `plait settings` and each command's help, so that nothing is
written twice.
"""

import argparse
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    pages = {
        "index.md": _moved(ROOT / "README.md"),
        "contributing.md": _moved(ROOT / "CONTRIBUTING.md"),
        "agents.md": _moved(ROOT / "AGENTS.md"),
        "changelog.md": _moved(ROOT / "CHANGELOG.md"),
        "reference/settings.md": settings(),
        "reference/commands.md": commands(),
        **{f"notebooks/{path.stem}.md": notebook(path) for path in (ROOT / "notebooks").glob("*.ipynb")},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _moved(path: Path) -> str:
    """Return a page of the repository's root as one of docs: its links lose ``docs/``."""
    text = path.read_text(encoding="utf-8").replace("](docs/", "](").replace(".ipynb)", ".md)")
    names = {"AGENTS.md": "agents.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    return re.sub(r"\]\((\w+\.md)\)", lambda match: f"]({names.get(match[1], match[1])})", text)


def notebook(path: Path) -> str:
    """Return the page of a notebook: its texts, and its code, which the tests run."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        moved = text.replace("](../docs/", "](../").replace(".ipynb)", ".md)")
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else moved)
    name = f"`jupyter lab notebooks/{path.name}` opens this page as a notebook."
    return "\n\n".join([parts[0], name, *parts[1:]]) + "\n"


def settings() -> str:
    """Return the page of all settings, group by group."""
    from plait.config.shipped import described_settings

    lines = ["# Settings", "", "Every setting of a run's YAML file, as `plait settings` prints it. On the command line "
             "each is `--dotted.key value`. What a setting decides, and so whether it can be changed later, "
             "stands in italics.", ""]  # fmt: skip
    group = ""
    for each in described_settings():
        top = each.name.split(".")[0]
        if top != group:
            group = top
            lines += [f"## {top}", ""]
        default = f" = `{each.default}`" if each.default else ""
        decides = f" *{', '.join(each.decides)}*" if each.decides else ""
        lines += [f"`{each.name}`{default}", f":   {' '.join(each.text.split())}{decides}", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of all commands: what each says with --help."""
    from plait.cli import _parser

    parser = _parser()
    lines = ["# Commands", "", "What each command says with `--help`.", ""]
    for name, command in parser.commands.items():
        command.prog = f"plait {name}"
        command.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
        lines += [f"## plait {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)
