"""Scenes and motions on a page: what is written of them, and in a real browser what is drawn, turned and played."""

import base64
import re

import numpy as np
import pytest
from helpers.chromium import webgl_browser

from plait.codecs import viewer
from plait.codecs.base import Codec
from plait.codecs.motions import MotionCodec
from plait.codecs.viewer import motion_html, scene_html, viewer_scripts
from plait.codecs.voxels import VoxelCodec, VoxelOptions

pytest.importorskip("PIL")
SIDE = 8


def scene() -> np.ndarray:
    """Return a hollow red block, with a core, beside a blue one."""
    cells = np.zeros((SIDE, SIDE, SIDE, 4), np.uint8)
    cells[0:4, 2:6, 0:4] = (200, 40, 40, 255)
    cells[5:8, 2:6, 0:2] = (40, 40, 200, 255)
    return cells


def motion(cells_per_step: float = 0.05, steps: int = 24) -> np.ndarray:
    """Return the first block of `scene` sliding to the right, and the second standing."""
    item = np.zeros((steps, 2, 15), np.float32)
    item[..., 3], item[..., 7] = 1, 1
    item[..., 12:] = (0.85, 0.2, 0.15), (0.2, 0.3, 0.85)
    item[:, 0, :3], item[:, 0, 9:12] = (-0.25, 0, 0.25), 0.5
    item[:, 0, 0] += cells_per_step * np.arange(steps)
    item[:, 1, :3], item[:, 1, 9:12] = (0.3125, 0, 0.125), (0.375, 0.5, 0.25)
    return item


def data_of(html: str, name: str, kind: type = np.uint8) -> np.ndarray:
    (text,) = re.findall(rf'data-{name}="([^"]*)"', html)
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_scene_is_a_picture_with_the_cells_that_can_be_seen():
    html = scene_html(scene())
    assert 'alt="8 × 8 × 8 cells, 88 filled"' in html and "data:image/png;base64," in html
    rows = data_of(html, "cells").reshape(-1, 6)
    assert len(rows) == 64 - 8 + 24  # the first block's core is covered
    assert all(tuple(scene()[x, y, z, :3]) == (r, g, b) for x, y, z, r, g, b in rows)
    assert VoxelCodec(VoxelOptions(size=SIDE)).to_html(scene()) == html
    assert data_of(scene_html(np.zeros_like(scene())), "cells").size == 0


def test_a_motion_moves_the_cells_of_the_scene_beside_it():
    codec = MotionCodec.from_options({})
    alone = codec.to_html(motion())
    assert "<svg" in alone and "data-cells" not in alone
    assert np.array_equal(data_of(alone, "motion", np.float32).reshape(24, 2, 15), motion())
    among = codec.to_html_among(motion(), [("text", "it is pushed"), ("scene3d", scene())])
    assert among == motion_html(motion(), scene()) and "<svg" not in among
    rows = data_of(among, "cells").reshape(-1, 7)
    assert set(rows[rows[:, 0] < 4, 6]) == {0} and set(rows[rows[:, 0] > 4, 6]) == {1}
    absent = motion()
    absent[:, 1] = 0
    assert set(data_of(motion_html(absent, scene()), "cells").reshape(-1, 7)[:, 6]) == {0}


def test_codecs_without_a_script_say_so():
    assert Codec.page_scripts() == ()
    assert VoxelCodec.page_scripts() == MotionCodec.page_scripts() == viewer_scripts()


def test_without_trimesh_there_is_the_picture_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(viewer.importlib.util, "find_spec", lambda name: None)
    viewer._three.cache_clear()
    assert viewer_scripts() == ()
    viewer._three.cache_clear()


def page_of(*items: str) -> str:
    scripts = "\n".join(viewer_scripts())
    return (f"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><style>div {{ width: 200px }}</style>"
            f"<body>{''.join(items)}<script>{scripts}</script>")  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    pytest.importorskip("trimesh")
    with webgl_browser() as browser:
        yield browser


SHOWN = "document.querySelectorAll('.plait-3d > canvas:not([hidden])').length"
PIXELS = """[...document.querySelectorAll('canvas')].map((c) => {
    const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});
    copy.drawImage(c, 0, 0);
    const d = copy.getImageData(0, 0, c.width, c.height).data;
    let [red, blue, sum, at] = [0, 0, 0, 0];
    for (let i = 0; i < d.length; i += 4) {
      const warm = d[i + 3] > 200 && d[i] > 2 * d[i + 2];
      red += warm; at += warm ? i / 4 % c.width : 0;
      blue += d[i + 3] > 200 && d[i + 2] > 2 * d[i];
      sum = (31 * sum + d[i] + 7 * d[i + 1] + 49 * d[i + 2]) % 1000003; }
    return {red, blue, sum, at: at / red / c.width}; })"""


def test_a_scene_is_drawn_and_turns_under_the_mouse(drawn, tmp_path):
    (tmp_path / "page.html").write_text(page_of(scene_html(scene())))
    drawn.open(tmp_path / "page.html", calm=True)
    drawn.until(f"{SHOWN} === 1 && {PIXELS}[0].red > 500")
    (before,) = drawn.run(PIXELS)
    assert before["blue"] > 200 and drawn.run("getComputedStyle(document.querySelector('img')).display") == "none"
    assert "Drag it" in drawn.run("document.querySelector('canvas').ariaLabel")
    drawn.drag("canvas", 90, 20)
    drawn.until(f"{PIXELS}[0].sum !== {before['sum']}")
    drawn.run("document.querySelector('canvas').dispatchEvent(new MouseEvent('dblclick'))")
    drawn.until(f"{PIXELS}[0].sum === {before['sum']}")
    drawn.run("document.querySelector('canvas').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}))")
    drawn.until(f"{PIXELS}[0].sum !== {before['sum']}")
    assert drawn.problems() == []


def test_a_motion_plays_and_its_time_can_be_chosen(drawn, tmp_path):
    (tmp_path / "page.html").write_text(page_of(motion_html(motion(0.02), scene()), motion_html(motion(0.02))))
    drawn.open(tmp_path / "page.html", calm=True)
    drawn.until(f"{SHOWN} === 2 && {PIXELS}.every((c) => c.red > 200)")
    first = drawn.run(PIXELS)
    drawn.run(
        """for (const s of document.querySelectorAll('input')) { s.value = 1; s.dispatchEvent(new Event('input')); }"""
    )
    drawn.until(f"{PIXELS}.every((c, i) => c.at > {[c['at'] for c in first]}[i] + 0.08)")
    assert drawn.run("document.querySelectorAll('.playing').length") == 0
    drawn.run("document.querySelectorAll('button').forEach((button) => button.click())")
    drawn.until("[...document.querySelectorAll('input')].every((s) => s.value != 1)")
    assert drawn.run("document.querySelector('button').ariaLabel") == "Pause"
    assert drawn.problems() == []


def test_what_comes_later_is_shown_and_what_leaves_the_screen_is_let_go(drawn, tmp_path):
    (tmp_path / "page.html").write_text(page_of("<main></main>"))
    drawn.open(tmp_path / "page.html", calm=True)
    drawn.run(f"document.querySelector('main').innerHTML = {scene_html(scene())!r}")
    drawn.until(f"{SHOWN} === 1 && {PIXELS}[0].red > 500")
    drawn.run("document.querySelector('main').style.marginTop = '4000px'")
    drawn.until("document.querySelector('canvas').width === 1")
    drawn.run("document.querySelector('main').style.marginTop = '0'")
    drawn.until(f"{PIXELS}[0].red > 500")
    assert drawn.problems() == []


def test_without_webgl_the_picture_stays(drawn, tmp_path):
    no_webgl = "<script>HTMLCanvasElement.prototype.getContext = () => null;</script>"
    (tmp_path / "page.html").write_text(page_of(no_webgl, scene_html(scene())))
    drawn.open(tmp_path / "page.html", calm=True)
    assert drawn.run("document.querySelector('img').checkVisibility()") and drawn.run(SHOWN) == 0
    assert drawn.problems() == []
