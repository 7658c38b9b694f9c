"""The traffic that documents show, and what is held out.

Splits, whose documents no split shares:

- ``train``.
- ``unseen_combinations``: traffic, what is ahead and who cuts in, in combinations that training never has. It is first.
- ``seen``: as training has them, fresh.

A scene is aimed at a combination and drawn from highway-env's traffic: IDM vehicles of several densities, of which some
change lanes where MOBIL would. What is simulated counts, not what was aimed at: a scene in which something else
happens that the split may not have, in which vehicles touch, or that is near a threshold, is drawn again.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from plait.codecs.traffic import FRONT, KINDS, LANE_WIDTH, LENGTH, REAR, SPEED, TARGET_Y, X, Y, ordered, present
from plait.common.errors import DataError
from plait.common.randomness import generator
from plait.driving.drivers import IDLE, INSTRUCTIONS
from plait.driving.events import AHEAD, CUT_INS, Happening, clear_happening, sentence
from plait.driving.simulate import ACTIONS, LANES, Run, highway, overlaps, watch

VEHICLES = 16
SPLITS = ("unseen_combinations", "seen")
_HELD = SPLITS[:1]
NUM_HELD_OUT = 16
"""Combinations of 96 that training never has."""
TRIES = 200
_DENSITIES = {"empty": 0.04, "light": 0.4, "dense": 0.36, "jam": 0.2}
_STATES = {"": 0.2, "on": 0.2, "slow": 0.3, "braking": 0.15, "stopped": 0.15}
_CUTS = 0.5
_COUNTS = {"empty": (0, 0), "light": (1, 5), "dense": (8, 15), "jam": (8, 15)}
_CRUISE = (29.0, 27.0, 25.0, 22.0)
"""Speeds of the lanes, from the left, in m/s."""
_CHANGES = 0.25

EPISODE, CHUNK, MOMENTS = 20, 4, 4
"""Decisions of an expert's drive, those that a document has, and documents that a drive becomes."""
_STRAYS = 0.15
"""How often a decision is drawn at random, so that the expert has to put things right."""
_EVENTFUL = (8.0, 3.0)
"""How much more often a moment is taken at which the expert does not keep on, and one soon after which it does not."""

Combination = tuple[str, str, str]
"""Traffic, what is ahead, and who cuts in ("" for nobody)."""


@dataclass(frozen=True)
class Scene:
    """What one document shows and says."""

    traffic: np.ndarray
    happening: Happening

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        return sentence(self.happening)


@dataclass(frozen=True)
class Moment:
    """A moment of an expert's drive."""

    sentence: str
    """How it is told to drive."""
    seen: np.ndarray
    actions: np.ndarray
    """int32 [CHUNK]: what it does from then on."""


@functools.cache
def held_out(seed: int) -> frozenset[Combination]:
    """Return the combinations that training never has."""
    pairs = [(t, a, c) for t in ("light", "dense", "jam") for a in AHEAD[1:] for c in CUT_INS]
    order = generator(seed, "driving: held out").permutation(len(pairs))
    return frozenset(pairs[i] for i in order[:NUM_HELD_OUT])


def combinations(what: Happening) -> frozenset[Combination]:
    """Return what happens together, for each vehicle that cuts in."""
    return frozenset((what.density, what.ahead, cut_in) for cut_in in what.cut_ins or ("",))


@dataclass(frozen=True)
class World:
    """The scenes of a seed."""

    seed: int

    def scene(self, split: str, index: int) -> Scene:
        """Draw scene ``index`` of a split."""
        rng, held = generator(self.seed, f"driving: {split}", item=index), held_out(self.seed)
        for scene in _draws(rng, held, split):
            track = watch(scene)
            what = None if overlaps(scene, track).any() else clear_happening(scene, track)
            if what is not None and bool(combinations(what) & held) == (split in _HELD):
                return Scene(scene, what)
        raise DataError(f"driving: no scene {index} of {split!r} in {TRIES} draws")

    def hard(self, split: str, count: int) -> list[Scene]:
        """Return the first ``count`` scenes of a split that ask something of a driver: one that keeps on crashes in
        nearly all of them."""
        scenes = (self.scene(split, i) for i in itertools.count())
        return [*itertools.islice((s for s in scenes if s.happening.is_hard), count)]

    def moment(self, split: str, index: int) -> Moment:
        """Draw moment ``index`` of the drives of a split."""
        return _drive(self.seed, split, index // MOMENTS)[index % MOMENTS]


@functools.lru_cache(maxsize=8)
def _drive(seed: int, split: str, index: int) -> tuple[Moment, ...]:
    """Draw a drive in which the expert does not crash: moments of it."""
    rng = generator(seed, f"driving: drives of {split}", item=index)
    sentence = [*INSTRUCTIONS][rng.integers(len(INSTRUCTIONS))]
    for scene in _draws(rng, held_out(seed), split):
        run, seen, actions = Run(scene, is_driven=True), [], []
        strays = rng.random(EPISODE) < _STRAYS
        for is_random in strays:
            seen.append(run.observed())
            actions += INSTRUCTIONS[sentence](seen[-1:])[0]
            run.go(int(rng.integers(len(ACTIONS))) if is_random else actions[-1])
        if not run.ego.crashed:
            return _moments(rng, sentence, seen, np.array(actions, np.int32), strays)
    raise DataError(f"driving: no drive {index} of {split!r} in {TRIES} draws")


def _draws(rng: np.random.Generator, held: frozenset[Combination], split: str) -> Iterator[np.ndarray]:
    """Yield scenes that are aimed at combinations of a split, ``TRIES`` at most."""
    for _ in range(TRIES):
        aim = sorted(held)[rng.integers(len(held))] if split in _HELD else _aim(rng)
        if split in _HELD or aim not in held:
            scene = _drawn(rng, aim)
            if scene is not None:
                yield scene


def _moments(
    rng: np.random.Generator, sentence: str, seen: list[np.ndarray], actions: np.ndarray, strays: np.ndarray
) -> tuple[Moment, ...]:
    """Choose moments of a drive from which on the expert was followed for a chunk."""
    starts = [k for k in range(EPISODE - CHUNK + 1) if not strays[k : k + CHUNK - 1].any()] or [0]
    acts = [actions[k : k + CHUNK] != IDLE for k in starts]
    weights = np.where([a[0] for a in acts], _EVENTFUL[0], np.where([a.any() for a in acts], _EVENTFUL[1], 1.0))
    chosen = rng.choice(starts, MOMENTS, replace=len(starts) < MOMENTS, p=weights / weights.sum())
    return tuple(Moment(sentence, seen[k], actions[k : k + CHUNK]) for k in chosen)


def _aim(rng: np.random.Generator) -> Combination:
    density = _choice(rng, _DENSITIES)
    if density == "empty":
        return density, "", ""
    state, kind = _choice(rng, _STATES), [*KINDS][rng.integers(len(KINDS))]
    ahead = "" if not state else f"{state} {kind}".removeprefix("on ")
    return density, ahead, CUT_INS[rng.integers(len(CUT_INS))] if rng.random() < _CUTS else ""


def _choice(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return [*shares][int(rng.choice(len(shares), p=[*shares.values()]))]


def _drawn(rng: np.random.Generator, aim: Combination) -> np.ndarray | None:
    """Draw a scene aimed at a combination; None where it found no room."""
    density, ahead, cut_in = aim
    is_jam = density == "jam"
    lane, speed = int(rng.integers(LANES)), 5.0 * rng.integers(*((1, 5) if is_jam else (4, 7)))
    rows = [vehicle("car", 0, lane, speed)]
    least, most = _COUNTS[density]
    count = int(rng.integers(least, most + 1))
    if ahead and not _added(rows, lambda: _leader(rng, ahead, lane, speed, is_jam)):
        return None
    if cut_in and not _added(rows, lambda: _cutting_in(rng, cut_in, lane, speed)):
        return None
    for _ in range(4 * count):
        if len(rows) > count:
            break
        row = _background(rng, is_jam)
        blocks = row[Y] == lane * LANE_WIDTH and row[X] > 0 and (not ahead or row[X] < rows[1][X])
        if not blocks and fits(rows, row):
            rows.append(row)
    if len(rows) - 1 < least:
        return None
    scene = np.zeros((VEHICLES, 8), np.float32)
    scene[: len(rows)] = rows
    _change_lanes(rng, scene, first=1 + bool(ahead) + bool(cut_in))
    return ordered(scene)


def _added(rows: list[np.ndarray], draw: Callable[[], np.ndarray | None]) -> bool:
    """Add a drawn vehicle that fits; return whether there was one."""
    for _ in range(12):
        row = draw()
        if row is not None and fits(rows, row):
            rows.append(row)
            return True
    return False


def vehicle(kind: str, x: float, lane: float, speed: float, *, goes_for: float | None = None,
            into: float | None = None) -> np.ndarray:  # fmt: skip
    """Return the numbers [8] of a vehicle; ``goes_for`` and ``into`` are its target speed and lane, else its own."""
    length, width = KINDS[kind]
    goal = speed if goes_for is None else goes_for
    return np.array(
        [x, lane * LANE_WIDTH, speed, 0, length, width, goal, (lane if into is None else into) * LANE_WIDTH]
    )


def _leader(rng: np.random.Generator, ahead: str, lane: int, speed: float, is_jam: bool) -> np.ndarray:
    *state, kind = ahead.split()
    x = float(rng.uniform(15, 95))
    if state == ["slow"]:
        return vehicle(kind, x, lane, max(float(speed - rng.uniform(8, 18)), 2.0))
    if state == ["stopped"]:
        return vehicle(kind, x, lane, 0)
    own = max(float(speed + rng.uniform(-3, 2)), 2.0)
    if state == ["braking"]:
        return vehicle(kind, x, lane, own, goes_for=float(rng.uniform(1, max(own - 12, 2))))
    return vehicle(kind, x, lane, own)


def _cutting_in(rng: np.random.Generator, cut_in: str, lane: int, speed: float) -> np.ndarray | None:
    kind, side = cut_in.split()
    start = lane + (1 if side == "right" else -1)
    if not 0 <= start < LANES:
        return None
    slower = float(rng.uniform(3, 9)) if speed > 12 else float(rng.uniform(1, 3))
    return vehicle(kind, float(rng.uniform(10, 40)), start, max(float(speed) - slower, 3.0), into=lane)


def _background(rng: np.random.Generator, is_jam: bool) -> np.ndarray:
    lane = int(rng.integers(LANES))
    kind = "lorry" if rng.random() < (0.3 if lane >= LANES // 2 else 0.05) else "car"
    cruise = 6.0 if is_jam else _CRUISE[lane]
    speed = max(float(cruise + rng.normal(0, 1.5)), 2.0)
    return vehicle(kind, float(rng.uniform(REAR + 2, FRONT - 2)), lane, speed)


def fits(rows: list[np.ndarray], row: np.ndarray) -> bool:
    """Return whether a vehicle has room beside others, in the lane where it is and in that which it goes for."""
    for other in rows:
        lanes = abs(np.subtract.outer(row[[Y, TARGET_Y]], other[[Y, TARGET_Y]]))
        if lanes.min() > LANE_WIDTH / 2:
            continue
        rear, front = (row, other) if row[X] < other[X] else (other, row)
        closing = max(rear[SPEED] - front[SPEED], 0)
        room = 3 + 0.35 * rear[SPEED] + closing**2 / 8
        if front[X] - rear[X] - (front[LENGTH] + rear[LENGTH]) / 2 < room:
            return False
    return True


def _change_lanes(rng: np.random.Generator, scene: np.ndarray, first: int) -> None:
    """Let some vehicles go for another lane, where highway-env's MOBIL would."""
    road, _ = highway().steady_ego(scene, LANES, changes_lanes=False)
    for k in range(first, int(present(scene).sum())):
        if rng.random() < _CHANGES:
            v = road.vehicles[k]
            lanes = [index for index in road.network.side_lanes(v.lane_index) if v.mobil(index)]
            if lanes:
                v.target_lane_index = lanes[int(rng.integers(len(lanes)))]
                scene[k, TARGET_Y] = v.target_lane_index[2] * LANE_WIDTH
