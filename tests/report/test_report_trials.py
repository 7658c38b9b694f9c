"""Episodes on a run's page: who succeeds how often, and films that move."""

import json

import numpy as np
from PIL import Image

from plait.report.run_page import write_report


def test_shares_and_films(tmp_path):
    """A GIF keeps its frames in the page, and an image that does not move is shown as before."""
    trials = tmp_path / "evaluation" / "trials"
    trials.mkdir(parents=True)
    frames = [Image.fromarray(np.full((40, 40, 3), shade, np.uint8)) for shade in (0, 120, 250)]
    frames[0].save(trials / "00.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    records = [{"title": "Open a <drawer>", "said": "succeeds after 40 steps", "file": "00.gif", "success": True},
               {"title": "Close it", "said": "fails in 200 steps", "file": "gone.gif", "success": False}]  # fmt: skip
    (trials / "trials.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = {"success": 0.83, "success_low": 0.74, "success_high": 0.89, "success_count": 100, "success_expert": 1.0,
               "success/drawer-open-v3": 0.9, "success/drawer-open-v3_low": 0.6, "success/drawer-open-v3_high": 0.98,
               "success/drawer-open-v3_count": 10, "seconds_per_action": 0.02}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps({"name": "robot", **figures}))
    page = write_report(tmp_path).read_text()
    assert "What it does" in page and "83.0%" in page and "74.0% to 89.0%" in page and "the scripted expert" in page
    assert page.count("data:image/gif") == 1 and "the file is not there" in page
    assert "Open a &lt;drawer&gt;" in page and "50 actions a second" in page
    assert page.count('"row">drawer-open-v3</th>') == 1


def test_a_page_without_episodes_has_no_such_part(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"name": "run"}))
    assert "What it does" not in write_report(tmp_path).read_text()
