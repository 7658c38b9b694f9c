"""Scenes in which a model drives; a `plait.prepare.raw.Trials`.

They are held out (unseen combinations), and in each something slow, braking or standing is ahead, or cuts in.

- drive_crash_rate, drive_speed (mean, m/s): of the model, told to drive as fast as is safe; drive_crash_rate_in_lane
  and drive_speed_in_lane: told to keep the lane; drive_crash_rate_DRIVER and drive_speed_DRIVER of each of `DRIVERS`.
- drive_kept_lane: the share of drives in its lane where it is told to keep it; drive_kept_lane_fast: where it is not.

All have 95% intervals: shares Wilson's, speeds that of resamples of the drives.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from plait.common.errors import ConfigError, unknown
from plait.common.progress import Progress
from plait.config.run import EvaluateConfig
from plait.driving.draw import draw, film
from plait.driving.drivers import DRIVERS, INSTRUCTIONS, told
from plait.driving.simulate import (
    DRIVE_SECONDS,
    STEPS_PER_SECOND,
    Drive,
    Driver,
    Run,
    drive,
    kept_lane,
    measures,
)
from plait.driving.world import SPLITS, Scene, World
from plait.evaluate.films import FAILURES, SHOWN, Film, write_film, write_shown
from plait.evaluate.measures import rate_of
from plait.prepare.raw import Act, TrialRow, TrialTable

FAST, KEEP = INSTRUCTIONS
_WHO = {
    "": f"the model, told to {FAST}", "_expert": "the expert that it learned this from",
    "_in_lane": f"the model, told to {KEEP}", "_lane_keeper": "the expert that it learned this from",
    "_idm": "highway-env’s own driver (IDM and MOBIL)", "_idle": "a driver that keeps lane and speed",
    "_random": "random actions",
}  # fmt: skip
TABLES = (
    TrialTable(
        f"Share of drives of {DRIVE_SECONDS:.0f} s that end in a crash, with its 95% interval. Training never shows "
        "the scenes; in each of them something slow, braking or standing is ahead, or cuts in.",
        tuple(TrialRow(who, f"drive_crash_rate{end}", f"drive_speed{end}") for end, who in _WHO.items()),
        who="Who drives", share="Crashes", count="Drives", second="Mean speed", unit="m/s",
    ),
    TrialTable(
        "Share of the model’s drives in which it stays in the lane where it starts.",
        (TrialRow(f"told to {KEEP}", "drive_kept_lane"), TrialRow(f"told to {FAST}", "drive_kept_lane_fast")),
        who="The model", share="In its lane", count="Drives",
    ),
)  # fmt: skip
"""How a page shows the figures."""


class DrivingTrials:
    """Drives of a model in scenes of a world."""

    def __init__(self, world: World):
        self.world = world

    def figures(
        self, act: Act, evaluate: EvaluateConfig, *, seed: int, folder: Path | None, progress: Progress
    ) -> dict[str, float]:
        """Return figures of `evaluate.trials` scenes; some drives of the model are shown in ``folder``."""
        scenes = self.world.hard(SPLITS[0], evaluate.trials)
        drivers = {"": told(act, FAST), "_in_lane": told(act, KEEP)} | {f"_{name}": d for name, d in DRIVERS.items()}
        drives: dict[str, list[Drive]] = {}
        with progress.stage(f"drive {len(scenes)} scenes of {DRIVE_SECONDS:.0f} s", total=len(drivers)) as bar:
            for end, driver in drivers.items():
                drives[end] = drive([scene.traffic for scene in scenes], driver)
                bar.advance(1, _WHO[end])
        figures: dict[str, float] = {}
        for end, own in drives.items():
            for name, measure in measures(own).items():
                figures |= measure.figures(f"drive_{name}{end}")
        for name, end in (("drive_kept_lane", "_in_lane"), ("drive_kept_lane_fast", "")):
            figures |= rate_of([kept_lane(d) for d in drives[end]]).figures(name)
        if folder is not None:
            write_shown(folder, TABLES, _films(scenes, drives[""]), STEPS_PER_SECOND)
        return figures

    def watch(
        self, act: Act, *, tasks: Sequence[str], episodes: int, seed: int, videos: Path | None,
        show: Callable[[np.ndarray, str], None] | None,
    ) -> Iterator[tuple[str, bool, str]]:  # fmt: skip
        """Drive in scenes from number ``seed`` on, told each of `INSTRUCTIONS` that ``tasks`` names.

        Success is to crash into nothing.
        """
        for task in tasks:
            if task not in INSTRUCTIONS:
                raise ConfigError(unknown("--task", task, INSTRUCTIONS))
        scenes = self.world.hard(SPLITS[0], seed + episodes)[seed:]
        for sentence in tasks or INSTRUCTIONS:
            for number, (scene, driven) in enumerate(_watched(scenes, told(act, sentence), sentence, seed, show), seed):
                if videos is not None:
                    frames = film(scene.traffic, driven)
                    path = videos / f"{sentence.replace(' ', '-')}-{number}.mp4"
                    write_film([*frames, *frames[-1:] * STEPS_PER_SECOND], path, STEPS_PER_SECOND)  # its end is seen
                yield sentence, not driven.crashed, f"{sentence}, scene {number}: {_ending(driven)}"


def _watched(
    scenes: Sequence[Scene], driver: Driver, sentence: str, first: int, show: Callable[[np.ndarray, str], None] | None
) -> Iterator[tuple[Scene, Drive]]:
    """Yield scenes and their drives: all are driven at once, but one after another where they are shown."""
    if show is None:
        yield from zip(scenes, drive([scene.traffic for scene in scenes], driver), strict=True)
        return
    for number, scene in enumerate(scenes, first):
        (driven,) = drive([scene.traffic], driver, watch=_live(show, f"{sentence}, scene {number}"))
        yield scene, driven


def _live(show: Callable[[np.ndarray, str], None], said: str) -> Callable[[Run], None]:
    """Return what shows each step of a drive, no faster than it happens."""
    due = time.monotonic()

    def watch(run: Run) -> None:
        nonlocal due
        time.sleep(max(due - time.monotonic(), 0))
        due = max(due, time.monotonic()) + 1 / STEPS_PER_SECOND
        show(draw(run.scene, run.ended(), len(run.states) - 1), said)

    return watch


def _films(scenes: Sequence[Scene], drives: Sequence[Drive]) -> Iterator[Film]:
    """Yield the first crashes in the order of the scenes, `FAILURES` at most, and the first arrivals for the rest."""
    numbered = [*enumerate(zip(scenes, drives, strict=True))]
    crashes = [one for one in numbered if one[1][1].crashed][:FAILURES]
    arrivals = (one for one in numbered if not one[1][1].crashed)
    for number, (scene, driven) in [*crashes, *itertools.islice(arrivals, SHOWN - len(crashes))]:
        yield Film(f"scene-{number}", scene.caption, _ending(driven), not driven.crashed, film(scene.traffic, driven))


def _ending(driven: Drive) -> str:
    if driven.crashed:
        return f"crashes after {(len(driven.track) - 1) / STEPS_PER_SECOND:.1f} s"
    return f"arrives, {driven.speed:.1f} m/s"
