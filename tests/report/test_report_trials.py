"""Episodes on a run's page: who fares how, and films that move."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.common.errors import DataError
from plait.prepare.raw import TrialRow, TrialTable
from plait.report.run_page import write_report

SHARES = TrialTable(
    "Share of episodes that succeed, from starts that training never shows, with its 95% interval.",
    (
        TrialRow("the model", "success"),
        TrialRow("the <expert>", "success_expert"),
        TrialRow("chance", "success_random"),
    ),
    parts="success",
)


def write_films(run: Path, size: tuple[int, int], *tables: TrialTable) -> None:
    """Write a film that is there and one that is not, and tables."""
    trials = run / "evaluation" / "trials"
    trials.mkdir(parents=True)
    frames = [Image.fromarray(np.full((*size, 3), shade, np.uint8)) for shade in (0, 120, 250)]
    frames[0].save(trials / "00.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    records = [{"title": "Open a <drawer>", "said": "succeeds after 40 steps", "file": "00.gif", "success": True},
               {"title": "Close it", "said": "fails in 200 steps", "file": "gone.gif", "success": False}]  # fmt: skip
    (trials / "trials.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (trials / "tables.json").write_text(json.dumps([asdict(table) for table in tables]))


def test_shares_and_films(tmp_path):
    """A GIF keeps its frames in the page, and an image that does not move is shown as before."""
    write_films(tmp_path, (40, 40), SHARES)
    figures = {"success": 0.83, "success_low": 0.74, "success_high": 0.89, "success_count": 100, "success_expert": 1.0,
               "success/drawer-open-v3": 0.9, "success/drawer-open-v3_low": 0.6, "success/drawer-open-v3_high": 0.98,
               "success/drawer-open-v3_count": 10, "seconds_per_action": 0.02}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps({"name": "robot", **figures}))
    page = write_report(tmp_path).read_text()
    assert "What it does" in page and "83.0%" in page and "74.0% to 89.0%" in page and "the &lt;expert&gt;" in page
    assert page.count("data:image/gif") == 1 and "the file is not there" in page
    assert "Open a &lt;drawer&gt;" in page and "50 actions a second" in page
    assert page.count('"row">drawer-open-v3</th>') == 1 and page.count('"row">chance</th>') == 0
    assert '"gallery episodes"' in page and "Succeeds" in page and "Mean speed" not in page
    (tmp_path / "evaluation" / "trials" / "tables.json").write_text('[{"rows": []}]')
    with pytest.raises(DataError, match=r"tables\.json' is corrupt, run `plait evaluate` again"):
        write_report(tmp_path)


def test_a_page_without_episodes_has_no_such_part(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"name": "run"}))
    assert "What it does" not in write_report(tmp_path).read_text()


def shown_with(tables: Sequence[TrialTable], run: Path) -> str:
    """Return the part of a page with figures for all rows of some tables, and check that each row has its own."""
    rows = [row for table in tables for row in table.rows]
    write_films(run, (40, 200), *tables)
    ends = {"": 0.25, "_low": 0.125, "_high": 0.375, "_count": 40}
    figures = {row.figure + end: value for row in rows for end, value in ends.items()}
    ends = {"": 24.06, "_low": 23.8, "_high": 24.42}
    figures |= {row.second + end: value for row in rows if row.second for end, value in ends.items()}
    (run / "summary.json").write_text(json.dumps(figures))
    page = write_report(run).read_text()
    (section,) = re.findall(r'<section id="trials">.*?</section>', page, re.DOTALL)
    assert section.count("12.5% to 37.5%") == section.count(">40<") == len(rows) == len({row.figure for row in rows})
    assert all(f">{table.share}</th>" in section and table.note in section for table in tables)
    return section


def test_the_tables_of_robots(tmp_path):
    pytest.importorskip("metaworld", reason="Meta-World is not installed")
    from plait.robots.trials import TABLES

    section = shown_with(TABLES, tmp_path)
    assert section.count("<table") == 1 and "told another task" in section


@pytest.mark.parametrize("width", [1400, 390])
def test_the_tables_of_driving(tmp_path, browser, width):
    """Crashes with speeds beside them, and a film that is much wider than high has half of the page."""
    from plait.driving.trials import TABLES

    section = shown_with(TABLES, tmp_path)
    assert section.count("24.1\N{NO-BREAK SPACE}m/s") == section.count("23.8 to 24.4") == len(TABLES[0].rows)
    assert section.count("<table") == section.count("Interval</th>") == 2
    browser.open(tmp_path / "report.html", width, calm=True)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth") and browser.problems() == []
    film, page = (browser.run(f"document.querySelector({one!r}).clientWidth") for one in (".episodes img", "main"))
    assert 0.4 < film / page < 0.5 if width > 1000 else film / page > 0.8
