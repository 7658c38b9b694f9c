"""Films: which frames their files have, and what a run's page finds of them."""

import json

import numpy as np
import pytest

from plait.common.errors import ConfigError
from plait.evaluate.films import Film, write_film, write_shown
from plait.prepare.raw import TrialRow, TrialTable


def frames() -> list[np.ndarray]:
    return [np.full((64, 64, 3), shade, np.uint8) for shade in range(0, 250, 10)]


def test_a_gif_has_every_fourth_frame_and_the_last(tmp_path):
    from PIL import Image, ImageSequence

    write_film(frames(), tmp_path / "episode.gif", rate=80)
    with Image.open(tmp_path / "episode.gif") as file:
        images = [(np.asarray(image.convert("RGB"))[0, 0, 0], image.info["duration"])
                  for image in ImageSequence.Iterator(file)]  # fmt: skip
    assert [time for _, time in images] == [50] * 6 + [1000]
    assert [shade for shade, _ in images] == pytest.approx([0, 40, 80, 120, 160, 200, 240], abs=2)


def test_an_mp4_has_every_frame(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    write_film(frames(), tmp_path / "episode.mp4", rate=40)
    with av.open(str(tmp_path / "episode.mp4")) as file:
        assert file.streams.video[0].average_rate == 40
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in file.decode(video=0)]
    assert shades == pytest.approx(range(0, 250, 10), abs=3)


def test_a_video_of_another_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"'episode\.avi' is not allowed as a video, it must end with \.gif or \.mp4"):
        write_film(frames(), tmp_path / "episode.avi", rate=20)


def test_what_a_page_finds(tmp_path):
    """Films of an evaluation before it are gone, and frames of one film alone are held."""
    alive = []

    def films():
        for name, hit in (("a", False), ("b", True)):
            alive.append(name)
            assert len([*tmp_path.glob("*.gif")]) == len(alive) - 1
            yield Film(name, f"do {name}", "done", hit, frames())

    (tmp_path / "07-old.gif").write_bytes(b"GIF")
    table = TrialTable("How often.", (TrialRow("the model", "success"),), parts="success")
    write_shown(tmp_path, [table], films(), 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00-a.gif", "01-b.gif", "tables.json", "trials.jsonl"]
    records = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert records[1] == {"title": "do b", "said": "done", "file": "01-b.gif", "success": True}
    (kept,) = json.loads((tmp_path / "tables.json").read_text())
    assert TrialTable(**kept | {"rows": tuple(TrialRow(**row) for row in kept["rows"])}) == table
