"""Blocks of README and docs that say `<!-- run -->` do run: quick ones here, `<!-- run: slow -->` by `make test-docs`.

The slow ones run page after page in one folder, as a reader goes through them, since later pages use earlier runs.
"""

import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.programs import ran

from plait.compare.study import load_study
from plait.config.shipped import config_path

PAGES = ["docs/first_quarter_hour.md", "docs/my_folder.md"]
"""Those that come first, in the order in which a reader has them."""
PAGES += sorted({str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]} - set(PAGES))
BLOCK = re.compile(r"<!-- run(: slow)? -->\n```(bash|python)\n(.*?)```", re.DOTALL)
FOUND = [(page, i, *m) for page in PAGES for i, m in enumerate(BLOCK.findall((ROOT / page).read_text()), start=1)]


def named(found) -> str:
    return f"{Path(found[0]).stem}-{found[1]}"


def run(language: str, code: str, folder: Path) -> None:
    """Run a block as a reader would, with this interpreter's `plait`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    ran(*command, cwd=folder, env=environment)


@pytest.mark.parametrize("found", [f for f in FOUND if not f[2]], ids=named)
def test_quick_blocks_run(found, tmp_path):
    run(*found[3:], tmp_path)


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """The folder in which a reader works."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.docs
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("found", [f for f in FOUND if f[2]], ids=named)
def test_slow_blocks_run(found, reader):
    run(*found[3:], reader)


def test_the_study_of_the_tutorial_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(# my_study\.yaml\n.*?)```", (ROOT / "docs/my_study.md").read_text(), re.DOTALL)
    (tmp_path / "my_study.yaml").write_text(text)
    study = load_study(tmp_path / "my_study.yaml", find_base=config_path)
    assert [*study.config.arms] == ["dense", "mot", "ffn"]


def test_blocks_are_found():
    """A mark that stands before no block would claim what nobody runs."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert len(BLOCK.findall(text)) == len(re.findall(r"<!-- run(?:: slow)? -->", text)), page
    assert {f[0] for f in FOUND} >= {"docs/first_quarter_hour.md", "docs/my_folder.md", "docs/scale_out.md"}
