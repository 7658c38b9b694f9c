"""Drivers: who keeps on, who draws lots, who does as IDM and MOBIL would, and a model that was trained to drive.

A driver is a function of observations (`plait.driving.simulate.Driver`).
"""

import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from plait.codecs.traffic import LANE_WIDTH, SPEED, TARGET_SPEED, TARGET_Y, Y, present
from plait.common.randomness import generator
from plait.driving.simulate import ACTIONS, LANES, Driver, Observation, highway
from plait.prepare.raw import Act

LEFT, IDLE, RIGHT, FASTER, SLOWER = range(len(ACTIONS))

_LOOK = 0.8
"""Seconds for which IDM's acceleration is thought to last."""
_STEP = 5.0  # between the speeds that meta-actions choose


def idle(observations: Sequence[Observation]) -> list[list[int]]:
    """Keep lane and speed."""
    return [[IDLE] for _ in observations]


def random_driver(seed: int) -> Driver:
    """Return a driver that draws lots."""
    rng = generator(seed, "driving: random driver")
    return lambda observations: [[int(rng.integers(len(ACTIONS)))] for _ in observations]


def expert(observations: Sequence[Observation]) -> list[list[int]]:
    """Drive as fast as is safe: what highway-env's IDM and MOBIL would do, as far as meta-actions allow."""
    return [[_like_idm(seen, changes_lanes=True)] for seen in observations]


def lane_keeper(observations: Sequence[Observation]) -> list[list[int]]:
    """The same without changing lanes."""
    return [[_like_idm(seen, changes_lanes=False)] for seen in observations]


def _like_idm(seen: Observation, *, changes_lanes: bool) -> int:
    """Return the meta-action that is nearest to what highway-env's IDMVehicle would do at this moment."""
    is_changing = abs(seen[0, Y] - seen[0, TARGET_Y]) > 0.5
    roads, lane = highway(), round(float(seen[0, TARGET_Y]) / LANE_WIDTH)
    _, ego = roads.steady_ego(seen, LANES, changes_lanes=changes_lanes and not is_changing)
    ego.timer = 2 * ego.LANE_CHANGE_DELAY  # it may change now
    ego.act()
    if ego.target_lane_index[2] != lane:
        return LEFT if ego.target_lane_index[2] < lane else RIGHT
    wanted = min(max(float(seen[0, SPEED] + _LOOK * ego.action["acceleration"]), 0.0), roads.SPEED_LIMIT)
    goal = float(seen[0, TARGET_SPEED])
    if wanted < goal - _STEP / 2:
        return SLOWER
    is_slow = wanted > goal + _STEP / 2 or (goal < roads.SPEED_LIMIT and wanted > roads.SPEED_LIMIT - 1)
    return FASTER if is_slow else IDLE


DRIVERS: dict[str, Driver | Literal["idm"]] = {
    "idm": "idm", "idle": idle, "random": random_driver(0), "expert": expert, "lane_keeper": lane_keeper,
}  # fmt: skip
"""By name."""

INSTRUCTIONS: dict[str, Callable[[Sequence[Observation]], list[list[int]]]] = {
    "drive as fast as is safe": expert,
    "keep the lane": lane_keeper,
}
"""What a driver is told in training, and who drives so."""


def told(act: Act, sentence: str, *, execute: int = 2) -> Driver:
    """Return a model that acts as a driver that is told a sentence: it executes the first actions of each chunk.

    ``act`` is `plait.generate.actor.Actor.chunks` of a model.
    """

    def chunks(observations: Sequence[Observation]) -> list[list[int]]:
        # a prompt takes text, and a path or a list as text where an item is none
        seen = [[{"text": sentence, "traffic": json.dumps(o[present(o)].tolist())}] for o in observations]
        return [[int(action) for action in np.ravel(chunk)[:execute]] for chunk in act(seen)]

    return chunks
