"""A model that drives, shown: where vehicles are in an image, which drives are films, and what is watched."""

import json
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from plait.codecs.traffic import LANE_WIDTH, LENGTH
from plait.common.errors import ConfigError
from plait.common.progress import QuietProgress
from plait.config.run import EvaluateConfig
from plait.driving import trials as module
from plait.driving.draw import BEHIND, COLOURS, PIXELS, VERGE, draw, film
from plait.driving.drivers import IDLE, SLOWER, idle
from plait.driving.events import happening
from plait.driving.simulate import STEPS_PER_SECOND, Drive, drive, watch
from plait.driving.trials import FAST, KEEP, DrivingTrials
from plait.driving.world import Scene, vehicle
from plait.evaluate.films import FAILURES, SHOWN
from plait.evaluate.measures import wilson

pytest.importorskip("highway_env")


def scene(*others: np.ndarray, speed: float = 25) -> np.ndarray:
    rows = np.zeros((16, 8), np.float32)
    rows[: 1 + len(others)] = [vehicle("car", 0, 1, speed), *others]
    return rows


BLOCKED, BESIDE = scene(vehicle("lorry", 45, 1, 5)), scene(vehicle("lorry", 30, 2, 25), vehicle("car", -20, 0, 25))


class Road:
    """A world whose scenes block ego's lane, all but every third one."""

    def hard(self, split: str, count: int) -> list[Scene]:
        assert split == "unseen_combinations"
        scenes = [BESIDE if i % 3 == 2 else BLOCKED for i in range(count)]
        return [Scene(traffic, happening(traffic, watch(traffic))) for traffic in scenes]


def act(observations):
    """Keep on where that is what is asked, else brake to a stand."""
    return [np.array([IDLE if seen[-1]["text"] == FAST else SLOWER] * 4) for seen in observations]


def colours_at(image: np.ndarray, traffic: np.ndarray, driven: Drive, step: int) -> list[str]:
    """Return for each vehicle which of `COLOURS` its bonnet has, or a lorry its middle; "" for none of them."""
    known, found = {colour: name for name, colour in COLOURS.items()}, []
    for x, y, row in zip(*(driven.track[step, :, n] for n in range(2)), traffic, strict=True):
        if row[LENGTH]:
            ahead = x - driven.track[step, 0, 0] + (2.0 if row[LENGTH] < 7 else 0)
            spot = ((VERGE + LANE_WIDTH / 2 + y) * PIXELS, (BEHIND + ahead) * PIXELS)
            found.append(known.get(tuple(int(part) for part in image[tuple(map(round, spot))]), ""))
    return found


def test_vehicles_are_where_they_are():
    (driven,) = drive([BESIDE], idle, seconds=2)
    images = film(BESIDE, driven)
    assert len(images) == 21 and {image.shape for image in images} == {(126, 636, 3)} and images[0].dtype == np.uint8
    for step in (0, 10, 20):
        assert np.array_equal(images[step], draw(BESIDE, driven, step))
        assert colours_at(images[step], BESIDE, driven, step) == ["ego", "lorry", "car"]
    assert not np.array_equal(images[0], images[1])  # the road moves


def test_turns_brakes_and_crashes_are_seen():
    (driven,) = drive([BLOCKED], idle)
    assert driven.hit == (0, 1) and drive([BESIDE], idle)[0].hit == ()
    last = len(driven.track) - 1
    assert colours_at(draw(BLOCKED, driven, last), BLOCKED, driven, last) == ["crashed"] * 2
    assert colours_at(draw(BLOCKED, driven, last - 1), BLOCKED, driven, last - 1) == ["ego", "lorry"]
    track = np.repeat(driven.track[:1], 2, 0)
    before = draw(BLOCKED, Drive(False, 0, 0, track, []), 1)
    track[1, 0, 2] -= 1
    braking = draw(BLOCKED, Drive(False, 0, 0, track, []), 1)
    rows, columns = np.nonzero((braking != before).any(2)[:110])  # below it is the speed in words
    assert np.ptp(rows) > 5 and abs(columns / PIXELS - (BEHIND - 2.5)).max() < 1
    track[1, 0, 3] = 0.3
    turned = draw(BLOCKED, Drive(False, 0, 0, track, []), 1)
    red = [image[..., 0].astype(int) - image[..., 2] > 150 for image in (before, turned)]  # ego is orange
    assert np.ptp(np.nonzero(red[1][:110])[0]) > np.ptp(np.nonzero(red[0][:110])[0]) + 4


def test_films_are_the_first_crashes_and_the_first_arrivals(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "film", lambda scene, d: [draw(scene, d, step) for step in (0, len(d.track) - 1)])
    settings, progress = EvaluateConfig(trials=9), QuietProgress()
    figures = DrivingTrials(Road()).figures(act, settings, seed=0, folder=tmp_path, progress=progress)
    records = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    numbers = [int(record["file"].split("-")[-1].removesuffix(".gif")) for record in records]
    assert numbers == [0, 1, 3, 4, 2, 5, 8] and FAILURES == 4 and SHOWN == 8
    assert [record["success"] for record in records] == [number % 3 == 2 for number in numbers]
    assert records[0]["title"].startswith("light traffic, ego in the second lane, a slow lorry ahead")
    assert records[0]["said"] == "crashes after 1.9 s" and records[-1]["said"] == "arrives, 25.0 m/s"
    with Image.open(tmp_path / records[0]["file"]) as image:
        assert image.n_frames == 2 and image.size == (636, 126)
    rates, lanes = json.loads((tmp_path / "tables.json").read_text())
    assert {row[name] for row in rates["rows"] for name in ("figure", "second")} <= figures.keys()
    assert {row["figure"] for row in lanes["rows"]} <= figures.keys()
    for name in ("drive_crash_rate", "drive_crash_rate_idle"):
        assert (figures[name], figures[f"{name}_count"]) == (pytest.approx(2 / 3), 9)
        assert (figures[f"{name}_low"], figures[f"{name}_high"]) == wilson(2 / 3, 9)
    for driver in ("idm", "expert", "lane_keeper", "in_lane"):
        assert figures[f"drive_crash_rate_{driver}"] == 0
        assert figures[f"drive_crash_rate_{driver}_high"] == wilson(0, 9)[1]
    assert figures["drive_speed_idm_low"] < figures["drive_speed_idm"] < figures["drive_speed_idm_high"]
    assert figures["drive_kept_lane"] == figures["drive_kept_lane_fast_high"] == 1


def test_drives_are_watched(tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    waits, images = [], []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    seen = DrivingTrials(Road()).watch(
        act, tasks=[FAST], episodes=2, seed=1, videos=tmp_path, show=lambda image, said: images.append((image, said))
    )
    assert [(task, success) for task, success, _ in seen] == [(FAST, False), (FAST, True)]
    assert len(images) == 19 + 100 == len(waits) and min(waits) >= 0 and max(waits) <= 12
    assert images[0][1] == f"{FAST}, scene 1" and images[-1][1] == f"{FAST}, scene 2"
    assert not np.array_equal(images[17][0], images[18][0])
    assert {path.name for path in tmp_path.iterdir()} == {f"drive-as-fast-as-is-safe-{n}.mp4" for n in (1, 2)}
    with av.open(str(tmp_path / "drive-as-fast-as-is-safe-1.mp4")) as file:
        assert file.streams.video[0].average_rate == STEPS_PER_SECOND
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 20 + STEPS_PER_SECOND and abs(frames[-1].astype(int) - images[18][0]).mean() < 4


def test_drives_are_watched_without_images():
    trials = DrivingTrials(Road())
    lines = [said for _, _, said in trials.watch(act, tasks=[], episodes=1, seed=0, videos=None, show=None)]
    assert lines[0] == f"{FAST}, scene 0: crashes after 1.9 s" and lines[1].startswith(f"{KEEP}, scene 0: arrives, ")
    with pytest.raises(ConfigError, match=r"--task: unknown name 'keep the lanes'"):
        next(islice(trials.watch(act, tasks=["keep the lanes"], episodes=1, seed=0, videos=None, show=None), 1))
