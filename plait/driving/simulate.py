"""Traffic scenes in highway-env: what happens in one, and drivers that are put into many.

Scenes are float32 [V, 8] (`plait.codecs.traffic`), on a straight road. A driver is a function of observations, which
are scenes too: ego and the vehicles nearest to it at a moment. It returns meta-actions, `ACTIONS`, twice a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from plait.codecs.traffic import FRONT, LANE_WIDTH, LENGTH, NAMES, REAR, TARGET_SPEED, WIDTH, ordered, present
from plait.common.errors import ResourceError
from plait.evaluate.measures import Measure, mean_of, rate_of

STEPS_PER_SECOND = 10
DECISIONS_PER_SECOND = 2
LANES = 4
SECONDS = 6.0
"""How long a scene is watched, to say what happens in it."""
DRIVE_SECONDS = 10.0
"""How long a driver is tested in a scene."""
ACTIONS = ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")
"""highway-env's meta-actions (DiscreteMetaAction), by their ids."""
LEFT, IDLE, RIGHT, FASTER, SLOWER = range(5)

Observation = np.ndarray
Driver = Callable[[Sequence[Observation]], Sequence[Sequence[int]]]
"""Observations of several scenes to some meta-actions each, which are executed in order before it is asked again."""


def highway() -> ModuleType:
    """Return `plait.driving.roads`; raises ResourceError where highway-env is not installed."""
    try:
        from plait.driving import roads
    except ImportError as error:
        if (error.name or "plait").startswith("plait"):
            raise
        raise ResourceError(
            "driving: package 'highway-env' is not installed, install it: pip install 'plait[driving]'"
        ) from None
    return roads


def watch(scene: np.ndarray, seconds: float = SECONDS) -> np.ndarray:
    """Return the track float32 [T, V, 4] of a scene: x (from where ego starts), y, speed and heading, ten a second.

    Ego keeps its lane and goes for its own target speed, as far as IDM lets it. Vehicles not there are zeros.
    """
    roads = highway()
    road, _ = roads.steady_ego(scene, LANES, changes_lanes=False, wants=float(scene[0, TARGET_SPEED]))
    return _tracked(road, scene, round(seconds * STEPS_PER_SECOND))


def _tracked(road: Any, scene: np.ndarray, steps: int) -> np.ndarray:
    track = np.zeros((steps + 1, len(scene), 4), np.float32)
    there = np.flatnonzero(present(scene))
    track[0, there] = _state(road)
    for step in range(1, steps + 1):
        road.act()
        road.step(1 / STEPS_PER_SECOND)
        track[step, there] = _state(road)
    return track


def _state(road: Any) -> list[tuple[float, float, float, float]]:
    start = highway().START
    return [(v.position[0] - start, v.position[1], v.speed, v.heading) for v in road.vehicles]


def overlaps(scene: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Return at which steps of a track [T, V, 4] some vehicles overlap, as boxes along the road: bool [T]."""
    there = present(scene)
    places, sizes = track[:, there, :2], scene[there][:, [LENGTH, WIDTH]]
    apart = abs(places[:, :, None] - places[:, None]) - (sizes[:, None] + sizes[None]) / 2
    touching = (apart < 0).all(-1)
    touching[:, np.arange(there.sum()), np.arange(there.sum())] = False
    return np.asarray(touching.any((1, 2)))


def observe(road: Any, count: int) -> Observation:
    """Return what ego sees of a road: the scene [count, 8] of itself and of those nearest to it."""
    ego = road.vehicles[0]
    scene = np.zeros((count, len(NAMES)), np.float32)
    near = [v for v in road.vehicles[1:] if REAR <= v.position[0] - ego.position[0] <= FRONT]
    near.sort(key=lambda v: abs(v.position[0] - ego.position[0]))
    for row, v in zip(scene, [ego, *near], strict=False):
        row[:] = (v.position[0] - ego.position[0], v.position[1], v.speed, v.heading, v.LENGTH, v.WIDTH,
                  v.target_speed, LANE_WIDTH * v.target_lane_index[2])  # fmt: skip
    return ordered(scene)


@dataclass
class Drive:
    """How a driver fared in a scene."""

    crashed: bool
    speed: float
    """Mean speed in m/s, until the crash where there was one."""
    distance: float
    """Metres along the road."""
    track: np.ndarray
    """float32 [T, V, 4] as `watch` has it, shorter where ego crashed."""
    actions: list[int]
    """What the driver chose; empty of highway-env's own driver."""
    hit: tuple[int, ...] = ()
    """Rows of the scene that crashed, ego and what it hit; empty where it did not crash."""


class Run:
    """A scene under way."""

    def __init__(self, scene: np.ndarray, *, is_driven: bool, watch: Callable[["Run"], None] | None = None):
        roads = highway()
        self.scene, self.watch = scene, watch
        if is_driven:
            self.road, self.ego = roads.driven_ego(scene, LANES)
        else:
            self.road, self.ego = roads.steady_ego(scene, LANES, changes_lanes=True)
        self.states = [_state(self.road)]
        self.actions: list[int] = []

    def observed(self) -> Observation:
        """Return what ego sees."""
        return observe(self.road, len(self.scene))

    def go(self, action: int | None = None) -> None:
        """Drive on for one decision; a crash ends it."""
        for step in range(STEPS_PER_SECOND // DECISIONS_PER_SECOND):
            if self.ego.crashed:
                return
            if action is not None and step == 0:
                self.actions.append(int(action))
                self.ego.act(ACTIONS[action])
            self.road.act()
            self.road.step(1 / STEPS_PER_SECOND)
            self.states.append(_state(self.road))
            if self.watch:
                self.watch(self)

    def ended(self) -> Drive:
        """Return how it went so far."""
        track, there = np.zeros((len(self.states), len(self.scene), 4), np.float32), present(self.scene)
        track[:, there] = self.states
        hit = tuple(np.flatnonzero(there)[[vehicle.crashed for vehicle in self.road.vehicles]].tolist())
        distance = float(track[-1, 0, 0])
        seconds = max(len(track) - 1, 1) / STEPS_PER_SECOND
        return Drive(bool(self.ego.crashed), distance / seconds, distance, track, self.actions, hit)


def drive(
    scenes: Sequence[np.ndarray], driver: Driver | Literal["idm"], seconds: float = DRIVE_SECONDS,
    watch: Callable[[Run], None] | None = None,
) -> list[Drive]:  # fmt: skip
    """Put a driver into each of some scenes, and return how it fared; all are driven at once.

    "idm" is highway-env's own IDMVehicle, which changes lanes by MOBIL. ``watch`` is called after each step of a scene.
    """
    runs = [Run(scene, is_driven=driver != "idm", watch=watch) for scene in scenes]
    decisions = round(seconds * DECISIONS_PER_SECOND)
    if not callable(driver):
        for run in runs:
            for _ in range(decisions):
                run.go()
        return [run.ended() for run in runs]
    done = 0
    while done < decisions and (under_way := [run for run in runs if not run.ego.crashed]):
        chosen = driver([run.observed() for run in under_way])
        steps = min(max(1, min(map(len, chosen))), decisions - done)
        for run, actions in zip(under_way, chosen, strict=True):
            for action in actions[:steps]:
                run.go(action)
        done += steps
    return [run.ended() for run in runs]


def kept_lane(driven: Drive) -> bool:
    """Return whether ego was never nearer to another lane's middle than to that of its first one."""
    across = driven.track[:, 0, 1]
    return bool((abs(across - across[0]) < LANE_WIDTH / 2).all())


def measures(drives: Sequence[Drive]) -> dict[str, Measure]:
    """Return ``crash_rate`` and ``speed`` (mean, m/s) of drives, with their intervals."""
    return {"crash_rate": rate_of([d.crashed for d in drives]), "speed": mean_of([d.speed for d in drives])}
