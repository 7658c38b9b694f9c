"""Scenes in which a model drives; a `plait.prepare.raw.Trials`.

They are held out (unseen combinations), and in each something slow, braking or standing is ahead, or cuts in.
"""

from pathlib import Path

from plait.common.progress import Progress
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

    def figures(self, act: Act, count: int, *, seed: int, folder: Path | None, progress: Progress) -> dict[str, float]:
        """Return drive_crash_rate and drive_speed (m/s) of the model in ``count`` scenes, told to drive fast, beside
        those of `DRIVERS`; and drive_kept_lane, the share of drives in its lane where it is told to keep it."""
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
