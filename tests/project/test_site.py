"""The documentation site builds, and no link or anchor in it leads nowhere."""

import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.programs import ran

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it: strictly, so that what is a warning elsewhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    ran(sys.executable, "-m", "mkdocs", "build", "--site-dir", folder, cwd=ROOT)
    return folder


def test_every_page_of_docs_is_in_the_menu(site):
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20 and [p for p in pages if f": {p}\n" not in menu] == []


def test_links_lead_somewhere(site):
    """Those within the site, with their anchors; of README.md, whose links are moved, too."""
    missing = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            address, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//|\?|data:", link) or page.name == "404.html":
                continue
            target = (page.parent / address).resolve() if address else page
            at = rf'(?:id|name)="{re.escape(anchor)}"'
            is_there = target.exists() and (target.suffix != ".html" or not anchor or re.search(at, target.read_text()))
            if not is_there:
                missing.append((page.name, link))
    assert missing == []


def test_settings_commands_and_classes_are_described(site):
    pages = {name: (site / "reference" / f"{name}.html").read_text() for name in ("settings", "commands", "python")}
    assert "data.batch_tokens" in pages["settings"] and "Tokens" in pages["settings"]
    assert "plait completion" in pages["commands"] and "rerun the same command to resume" in pages["commands"]
    for name in ("weighted_loss", "MixtureOfTransformers", "from_pretrained", "Pipeline", "SamplingConfig"):
        assert name in pages["python"]
