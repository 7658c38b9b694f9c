"""Scenes in which a model drives; a `plait.prepare.raw.Trials`.

They are held out (unseen combinations), and in each something slow, braking or standing is ahead, or cuts in.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from plait.common.errors import ConfigError, unknown
from plait.common.progress import Progress
from plait.config.run import EvaluateConfig
from plait.driving.drivers import DRIVERS, INSTRUCTIONS, told
from plait.driving.simulate import DRIVE_SECONDS, drive, kept_lane, measures
from plait.driving.world import SPLITS, World
from plait.evaluate.measures import share_of
from plait.prepare.raw import Act

FAST, KEEP = INSTRUCTIONS


class DrivingTrials:
    """Drives of a model in scenes of a world."""

    def __init__(self, world: World):
        self.world = world

    def figures(
        self, act: Act, evaluate: EvaluateConfig, *, seed: int, folder: Path | None, progress: Progress
    ) -> dict[str, float]:
        """Return drive_crash_rate and drive_speed (m/s) of the model in `evaluate.trials` scenes, told to drive fast,
        beside those of `DRIVERS`; and drive_kept_lane, the share of drives in its lane where it is told to keep it."""
        count = evaluate.trials
        scenes = self.world.hard(SPLITS[0], count)
        figures: dict[str, float] = {}
        with progress.stage(f"drive {count} scenes of {DRIVE_SECONDS:.0f} s", total=2 + len(DRIVERS)) as bar:
            drives = drive(scenes, told(act, FAST))
            for name, measure in measures(drives).items():
                figures |= measure.figures(f"drive_{name}")
            figures["drive_kept_lane_fast"] = share_of([kept_lane(d) for d in drives]).value
            bar.advance(1, "the model, fast")
            figures |= share_of([kept_lane(d) for d in drive(scenes, told(act, KEEP))]).figures("drive_kept_lane")
            bar.advance(1, "the model, in its lane")
            for driver in DRIVERS:
                fared = measures(drive(scenes, DRIVERS[driver]))
                figures |= {f"drive_{name}_{driver}": measure.value for name, measure in fared.items()}
                bar.advance(1, driver)
        return figures

    def watch(
        self, act: Act, *, tasks: Sequence[str], episodes: int, seed: int, videos: Path | None,
        show: Callable[[np.ndarray, str], None] | None,
    ) -> Iterator[tuple[str, bool, str]]:  # fmt: skip
        """Drive in scenes from number ``seed`` on, told each of `INSTRUCTIONS` that ``tasks`` names.

        Success is to crash into nothing. Raises ConfigError where drives shall be shown: nothing draws them.
        """
        if show is not None or videos is not None:
            raise ConfigError("rollout: drives are not drawn, leave out --render, --port and --videos")
        for task in tasks:
            if task not in INSTRUCTIONS:
                raise ConfigError(unknown("--task", task, INSTRUCTIONS))
        scenes = self.world.hard(SPLITS[0], seed + episodes)[seed:]
        for sentence in tasks or INSTRUCTIONS:
            for number, driven in enumerate(drive(scenes, told(act, sentence)), start=seed):
                how = "crashes" if driven.crashed else "arrives"
                yield sentence, not driven.crashed, f"{sentence}, scene {number}: {how}, {driven.speed:.1f} m/s"
