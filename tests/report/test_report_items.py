"""Items that the page cannot show by itself: their codecs' HTML among other parts, and the scripts it needs, once."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from helpers.chromium import webgl_browser
from helpers.report_files import text, write_jsonl

from plait.codecs.motions import MotionCodec
from plait.codecs.viewer import viewer_scripts
from plait.codecs.voxels import VoxelCodec, VoxelOptions
from plait.common.errors import DataError
from plait.report import run_page, write_report

pytest.importorskip("trimesh")
SIDE = 8
CODECS = {"thing": VoxelCodec(VoxelOptions(size=SIDE)), "motion": MotionCodec.from_options({"steps": 4})}


def scene(colour: tuple[int, int, int]) -> np.ndarray:
    cells = np.zeros((SIDE, SIDE, SIDE, 4), np.uint8)
    cells[2:6, 2:6, 0:5] = (*colour, 255)
    return cells


def motion() -> np.ndarray:
    item = np.zeros((4, 2, 15), np.float32)
    item[:, 0, 3], item[:, 0, 7], item[:, 0, 9:], item[:, 0, 2] = 1, 1, 0.5, 0.25
    item[:, 0, 0] = 0.05 * np.arange(4)
    return item


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with scenes and motions, made and true, and a caption."""

    def load_codec(folder):
        if folder.name not in CODECS:
            raise DataError("no such codec")
        return CODECS[folder.name]

    monkeypatch.setattr(run_page, "load_codec", load_codec)
    samples = tmp_path / "samples"
    samples.mkdir()
    (tmp_path / "config.yaml").write_text(
        json.dumps({"model": {"modalities": {"text": {}, "thing": {}, "motion": {}}}})
    )
    for name, colour in (("made", (200, 30, 30)), ("true", (30, 30, 200))):
        CODECS["thing"].write(scene(colour), samples / f"{name}.npz")
    CODECS["motion"].write(motion(), samples / "motion.npz")
    (samples / "torn.npz").write_bytes(b"PK")
    made, true, torn = ({"modality": "thing", "file": f"{name}.npz"} for name in ("made", "true", "torn"))
    moves = {"modality": "motion", "file": "motion.npz"}
    block, pushed = text("a block"), text("pushed")
    rows = [("text>thing", [block], [made], [true]), ("thing>text", [true], [block], [text("a cube")]),
            ("thing+text>motion", [true, pushed], [moves], [moves]), ("text>motion", [pushed], [moves], []),
            ("text>thing", [block], [torn], [])]  # fmt: skip
    records = [{"task": t, "prompt": p, "output": o, "truth": r} for t, p, o, r in rows]
    write_jsonl(samples / "samples.jsonl", records)
    write_jsonl(samples / "codecs.jsonl", [{"modality": "thing", "original": true, "reconstruction": made}])
    return tmp_path


def test_scripts_of_the_codecs_are_in_the_one_script_of_the_page_once(run):
    page = write_report(run).read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert all(script.count(source) == 1 for source in viewer_scripts()) and viewer_scripts()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert page.count("data-motion") == 4 + 1  # the last one's caption has no scene: boxes
    assert len(re.findall(r"data-motion=[^>]*data-cells", page)) == 3
    assert "thing: torn.npz (2 bytes)" in page


def test_a_page_without_such_items_has_no_such_script(run):
    write_jsonl(run / "samples" / "samples.jsonl", [{"task": "free", "prompt": [], "output": [text("a block")]}])
    (run / "samples" / "codecs.jsonl").unlink()
    page = write_report(run).read_text("utf-8")
    assert "THREE" not in page and ".gallery.live" not in page


@pytest.mark.parametrize("width", [1400, 390])
def test_items_are_drawn_in_a_browser(run, width):
    with webgl_browser() as browser:
        browser.open(write_report(run), width, calm=True)
        browser.until("document.querySelectorAll('.gallery .plait-3d > canvas:not([hidden])').length >= 2")
        assert browser.run("document.querySelectorAll('.plait-3d').length") == 1 + 2 + 1 + 2 + 1 + 3 + 1 + 2
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.problems() == []
