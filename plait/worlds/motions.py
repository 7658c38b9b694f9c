"""Drawn motions: what is to happen, the places and the speeds that make it so, and the simulation that decides.

Every class of `plait.worlds.events.EVENTS` is aimed at equally often. What was simulated counts, not what was aimed at:
a draw that came out otherwise, or near a threshold, is drawn again. Speeds come in a few classes, from which they
vary by some percent, so that the caption's words ("a little", "far", "high") tell nearly all of the motion.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from plait.codecs.motions import LEAST_EXTENT, corners, present
from plait.common.errors import DataError
from plait.worlds.events import DIRECTIONS, EVENTS, WAYS, Happening, clear_happening, event_of
from plait.worlds.physics import FRICTION, GRAVITY, MOST_BODIES, Body, simulate

CELLS = 32
"""Of the scene's cube along each side: boxes start on their borders."""
LARGEST = 0.48
"""Most extent of a box, so that there is room for two beside each other."""
REACH = 0.75
"""How far from the middle a corner may come, along x and y."""
PROPOSALS, TRIES = 60, 12
"""Draws of places and speeds for one class, and of these simulations, before it is given up."""
VARIATION = 0.06
"""Of speeds, to both sides."""

_SLOWING = FRICTION * GRAVITY
_WAYS_SLID = (0.14, 0.3, 0.5)  # sides of the cube: a little, "", far
_HEIGHTS = (0.15, 0.36)  # of jumps
_TURNS = (math.pi / 2, math.pi)
_OVER = 1.15  # of the speed that just tips a box over
_SLIDES_THAT_TIP = (1.2, 1.6, 2.2)
_HIT_SPEEDS = (1.6, 2.2)  # when the second is met
_NUDGE = 0.45
_WITH_OTHER = 0.5  # share of motions of one body that have another one, which stays

_AIMED = {"slides and tips": 1.3, "hits: slides": 2.0, "hits: tips": 7.0}
"""How often `draw` aims at a class beside once: few boxes allow it, so that many draws of it come to nothing."""

Drawn = tuple[list[Body], np.ndarray, Happening]
"""Bodies as they start, the motion [T, 2, 15], and what happened in it."""


def draw(rng: np.random.Generator, extents: Sequence[Sequence[float]]) -> Drawn:
    """Draw a motion of the first of two boxes, or of both: bodies as they start, the motion, what happened.

    ``extents`` [n, 3], one or two boxes in sides of the cube, become whole cells. The first one acts; the second one is
    left out of about half of the motions that do not need it (the bodies are one then). Raises DataError for other
    boxes.
    """
    check_extents(extents)
    possible = [e for e in EVENTS if len(extents) > 1 or not needs_two(e)]
    weights = np.array([_AIMED.get(e, 1.0) for e in possible])
    while True:
        if drawn := attempt(rng, extents, str(rng.choice(possible, p=weights / weights.sum()))):
            return drawn


def attempt(rng: np.random.Generator, extents: Sequence[Sequence[float]], event: str) -> Drawn | None:
    """Draw a motion of one class of `EVENTS`, as `draw` does; None where `TRIES` draws with these boxes gave none."""
    check_extents(extents)
    boxes = [snapped(box) for box in extents]
    if needs_two(event) and len(boxes) < 2:
        return None
    alone = not needs_two(event) and (len(boxes) < 2 or rng.random() >= _WITH_OTHER)
    proposals = (_proposed(rng, boxes[:1] if alone else boxes, event) for _ in range(PROPOSALS))
    for bodies in itertools.islice(filter(_are_in_the_cube, proposals), TRIES):
        motion = simulate(bodies)
        if abs(corners(motion[:, present(motion)])[..., :2]).max() > REACH:
            continue
        what = clear_happening(motion)
        if what and event_of(what) == event:
            return bodies, motion, what
    return None


def check_extents(extents: Sequence[Sequence[float]]) -> None:
    """Raise DataError unless these are one or two boxes that two of fit beside each other in the cube."""
    if not 1 <= len(extents) <= MOST_BODIES:
        raise DataError(f"worlds: {len(extents)} boxes are not allowed, there must be 1 or {MOST_BODIES}")
    for box in extents:
        if not (len(box) == 3 and min(box) > 0 and max(box) <= LARGEST and sum(box) >= 3 * LEAST_EXTENT):
            raise DataError(
                f"worlds: a box of extents {[round(float(side), 3) for side in box]} is not allowed, they must be "
                f"three numbers above 0 and at most {LARGEST}, {LEAST_EXTENT} or more on average"
            )


def needs_two(event: str) -> bool:
    """Return whether a class of what happens needs a second body."""
    return event.startswith("hits") or event == "falls onto"


def snapped(box: Sequence[float]) -> tuple[float, ...]:
    """Return extents in whole cells."""
    return tuple(max(1, round(side * CELLS)) / CELLS for side in box)


def _proposed(rng: np.random.Generator, boxes: list[tuple[float, ...]], event: str) -> list[Body]:
    if event == "falls onto":
        return _onto(rng, boxes)
    if event.startswith("hits"):
        return _towards(rng, boxes, event)
    maker = _MAKERS.get(event) or _MAKERS[event.split(" ")[0]]
    actor = maker(rng, boxes[0], event)
    return [] if actor is None else [actor, *(_on_floor(rng, box) for box in boxes[1:])]


def _varied(rng: np.random.Generator, speed: float) -> float:
    return float(speed * rng.uniform(1 - VARIATION, 1 + VARIATION))


def _way(rng: np.random.Generator, event: str) -> np.ndarray:
    """Return the direction [3] that a class names, or any of the four."""
    last = event.rsplit(" ", 1)[-1]
    return np.array([*DIRECTIONS[last if last in DIRECTIONS else WAYS[rng.integers(len(WAYS))]], 0.0])


def _along(box: Sequence[float], way: np.ndarray) -> float:
    """Return the extent of a box along a direction [3] of the floor."""
    return float(abs(way @ np.array(box)))


def _slides(box: Sequence[float], way: np.ndarray) -> bool:
    """Return whether a box that is pushed along the floor slides: what is taller tips over."""
    return box[2] < 2.2 * _along(box, way)


def _place(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a border of cells between two places, any as likely."""
    first, last = math.ceil(low * CELLS - 1e-6), math.floor(high * CELLS + 1e-6)
    return float(rng.integers(first, max(first, last) + 1)) / CELLS


def _on_floor(
    rng: np.random.Generator, box: Sequence[float], travel: np.ndarray | Sequence[float] = (0, 0), up: float = 0
) -> Body:
    """Return a body at rest, anywhere in the cube from where ``travel`` along x and y keeps it within `REACH`."""
    corner = [
        _place(rng, max(-0.5, -REACH - min(t, 0)), min(0.5, REACH - max(t, 0)) - side)
        for side, t in zip(box, travel, strict=False)
    ]
    return Body(box, (corner[0] + box[0] / 2, corner[1] + box[1] / 2, up + box[2] / 2))


def _are_in_the_cube(bodies: Sequence[Body]) -> bool:
    """Return whether there are boxes that start within the cube, and not in nor beside each other but a cell apart."""
    if not bodies:
        return False
    places, extents = (np.array([getattr(b, name) for b in bodies]) for name in ("position", "extents"))
    low, high = places - extents / 2, places + extents / 2
    if low[:, :2].min() < -0.5 - 1e-6 or high[:, :2].max() > 0.5 + 1e-6 or low[:, 2].min() < 0 or high[:, 2].max() > 1:
        return False
    apart = np.maximum(low[0] - high[-1], low[-1] - high[0]).max()
    return len(bodies) == 1 or bool(apart >= 1 / CELLS - 1e-6)


def _sliding(rng: np.random.Generator, box: Sequence[float], event: str) -> Body | None:
    way, length = _way(rng, event), _WAYS_SLID[rng.integers(3)]
    if not _slides(box, way):
        return None
    speed = _varied(rng, math.sqrt(2 * _SLOWING * length))
    return replace(_on_floor(rng, box, length * way), velocity=tuple(speed * way))


def _staying(rng: np.random.Generator, box: Sequence[float], event: str) -> Body:
    return _on_floor(rng, box)


def _tipping(rng: np.random.Generator, box: Sequence[float], event: str, slide: float = 0) -> Body | None:
    """Return a body that turns about its lower edge, a little faster than what just lifts it over that edge."""
    way, height = _way(rng, event), box[2]
    width = _along(box, way)
    if height < 0.5 * width:  # it would turn over and over
        return None
    radius = math.hypot(width, height) / 2
    rate = _varied(rng, _OVER * math.sqrt(2 * GRAVITY * (radius - height / 2) / (4 / 3 * radius**2)))
    velocity = rate * height / 2 * way + (0, 0, rate * width / 2) + slide * way
    body = _on_floor(rng, box, ((width + height) / 2 + slide**2 / 2 / _SLOWING) * way)
    return replace(body, velocity=tuple(velocity), spin=tuple(rate * np.cross((0, 0, 1), way)))


def _sliding_then_tipping(rng: np.random.Generator, box: Sequence[float], event: str) -> Body | None:
    return _tipping(rng, box, event, slide=_varied(rng, _SLIDES_THAT_TIP[rng.integers(3)]))


def _spinning(rng: np.random.Generator, box: Sequence[float], event: str) -> Body:
    """A box that stands on its four corners slows down by 3 FRICTION GRAVITY / (half its base's diagonal)."""
    slowing = 3 * _SLOWING / (math.hypot(box[0], box[1]) / 2)
    rate = _varied(rng, math.sqrt(2 * slowing * _TURNS[rng.integers(2)]))
    return replace(_on_floor(rng, box), spin=(0.0, 0.0, rate if event.endswith("left") else -rate))


def _jumping(rng: np.random.Generator, box: Sequence[float], event: str) -> Body:
    speed = _varied(rng, math.sqrt(2 * GRAVITY * _HEIGHTS[rng.integers(2)]))
    return replace(_on_floor(rng, box), velocity=(0.0, 0.0, speed))


def _jumping_then_tipping(rng: np.random.Generator, box: Sequence[float], event: str) -> Body:
    way, speed = _way(rng, event), _varied(rng, math.sqrt(2 * GRAVITY * _HEIGHTS[0]))
    rate = _varied(rng, 1.3 / (2 * speed / GRAVITY))
    body = _on_floor(rng, box, box[2] / 2 * way)
    return replace(body, velocity=(0.0, 0.0, speed), spin=tuple(rate * np.cross((0, 0, 1), way)))


def _falling(rng: np.random.Generator, box: Sequence[float], event: str) -> Body | None:
    """Return a body that falls: straight, with a way to slide after it landed, or turning."""
    most = 0.3 if event == "falls and slides" else 1 - box[2]
    if most < 0.15 or box[2] > 0.85:
        return None
    up = _place(rng, 0.15, min(most, 1 - box[2], 0.55))
    seconds, way = math.sqrt(2 * up / GRAVITY), _way(rng, event)
    if event == "falls and slides":
        # on landing it loses FRICTION times the speed of the fall
        length, lost = _WAYS_SLID[1 + rng.integers(2)], _SLOWING * seconds
        if 2 * _SLOWING * length < 2 * lost**2 or not _slides(box, way):
            return None
        speed = _varied(rng, math.sqrt(2 * _SLOWING * length - lost**2))
        return replace(_on_floor(rng, box, length * way, up), velocity=tuple(speed * way))
    if event == "falls and tips":
        spin = tuple(_varied(rng, 1.2 / seconds) * np.cross((0, 0, 1), way))
        return replace(_on_floor(rng, box, box[2] / 2 * way, up), spin=spin)
    return _on_floor(rng, box, up=up)


def _onto(rng: np.random.Generator, boxes: list[tuple[float, ...]]) -> list[Body]:
    """Return a body above the middle of another one."""
    (upper, lower), second = boxes, _on_floor(rng, boxes[1])
    room = 1 - lower[2] - upper[2]
    if room < 0.1:
        return []
    # corners on the borders of cells, at most a cell and a half from centred
    place = [
        round((middle - side / 2) * CELLS + rng.uniform(-1, 1)) / CELLS + side / 2
        for middle, side in zip(second.position[:2], upper[:2], strict=True)
    ]
    up = lower[2] + _place(rng, 0.1, min(room, 0.45))
    return [Body(upper, (*place, up + upper[2] / 2)), second]


def _towards(rng: np.random.Generator, boxes: list[tuple[float, ...]], event: str) -> list[Body]:
    """Return a body that slides towards another one and meets it, their middles in line."""
    way = _way(rng, "")
    along = int(abs(way[1]))
    room = 1 - boxes[0][along] - boxes[1][along]
    if room < 0.125 or not _slides(boxes[0], way):
        return []
    if event == "hits: tips" and boxes[1][2] < 1.7 * boxes[1][along]:
        return []
    if event == "hits: slides" and not _slides(boxes[1], way):
        return []
    gap = _place(rng, 0.125, min(room, 0.3))  # so that nothing is met within the first step
    speed = _NUDGE if event == "hits: stays" else _HIT_SPEEDS[rng.integers(2)]
    speed = math.sqrt(_varied(rng, speed) ** 2 + 2 * _SLOWING * gap)
    low = np.zeros((2, 2))
    # the first one near the border that it leaves, so that the second one has room to move
    start, forward = -0.5 + _place(rng, 0, min(room - gap, 0.12)), way[along] > 0
    low[0, along] = start if forward else -start - boxes[0][along]
    low[1, along] = low[0, along] + (boxes[0][along] + gap if forward else -gap - boxes[1][along])
    widths = [box[1 - along] for box in boxes]
    middle = _place(rng, max(widths) / 2 - 0.5, 0.5 - max(widths) / 2)
    low[:, 1 - along] = [round((middle - width / 2) * CELLS) / CELLS for width in widths]
    first, second = (
        Body(box, (*(corner + np.array(box[:2]) / 2), box[2] / 2)) for box, corner in zip(boxes, low, strict=True)
    )
    return [replace(first, velocity=tuple(speed * way)), second]


_MAKERS: dict[str, Callable[[np.random.Generator, Sequence[float], str], Body | None]] = {
    "stays": _staying,
    "slides": _sliding,
    "tips": _tipping,
    "spins": _spinning,
    "jumps": _jumping,
    "jumps and tips": _jumping_then_tipping,
    "falls": _falling,
    "falls and slides": _falling,
    "falls and tips": _falling,
    "slides and tips": _sliding_then_tipping,
}
