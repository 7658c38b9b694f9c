"""Drives as images: the road from above, in a window that follows ego.

All drive to the right. Ego is orange, lorries are blue, cars white, as on the pages that show a scene
(`plait.codecs.traffic.road_svg`); red tails brake, and what crashed is red as a whole. Legend: V vehicles.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from plait.codecs.traffic import KINDS, LANE_WIDTH, LENGTH, WIDTH, present
from plait.driving.simulate import LANES, STEPS_PER_SECOND, Drive

PIXELS = 6
"""Of a metre."""
AHEAD, BEHIND, VERGE = 76.0, 30.0, 2.5
"""Metres that are shown of the road ahead of ego and behind it, and beside the road."""
COLOURS = {"ego": (251, 146, 60), "car": (230, 233, 237), "lorry": (125, 211, 252), "crashed": (225, 29, 72)}
"""By what a vehicle is."""
BRAKES = -1.5
"""Acceleration in m/s² from which tails are red."""

_FINER = 3  # everything is drawn so many times as large
_GRASS, _ROAD, _LINE, _POST = (54, 68, 60), (67, 74, 84), (196, 202, 210), (148, 163, 150)
_GLASS, _SHADOW, _TAIL, _TEXT = (39, 46, 58), (48, 54, 62), (255, 40, 60), (226, 232, 224)
_DASH, _PERIOD, _POSTS = 4.0, 12.0, 25.0  # metres of a dash, from one to the next, and between posts beside the road
_CORNER, _CAB = 0.7, 2.6  # radius, and length of a lorry's cab
_ARC = np.linspace(0, np.pi / 2, 5)

Colour = tuple[int, int, int]


def film(scene: np.ndarray, driven: Drive) -> list[np.ndarray]:
    """Return an image of each step of a drive in a scene [V, 8], `STEPS_PER_SECOND`; see `draw`."""
    return [draw(scene, driven, step) for step in range(len(driven.track))]


def draw(scene: np.ndarray, driven: Drive, step: int) -> np.ndarray:
    """Return the image uint8 [H, W, 3] of a step of a drive; the last one shows what crashed."""
    state, before = driven.track[step], driven.track[max(step - 1, 0)]
    hit = driven.hit if step == len(driven.track) - 1 else ()
    brakes = (state[:, 2] - before[:, 2]) * STEPS_PER_SECOND < BRAKES
    canvas = _Canvas(float(state[0, 0]))
    rows = np.flatnonzero(present(scene))
    for row in rows[::-1]:  # ego last
        canvas.vehicle(state[row], scene[row], is_ego=row == 0, brakes=bool(brakes[row]), crashed=row in hit)
    return canvas.image(f"{step / STEPS_PER_SECOND:.1f} s", f"{state[0, 2]:.0f} m/s", "crash" if hit else "")


class _Canvas:
    """A piece of the road around ego, which is at ``x`` along it; drawn in metres."""

    def __init__(self, x: float):
        from PIL import Image, ImageDraw

        self._left = x - BEHIND
        self._scale = PIXELS * _FINER
        self._image = Image.new("RGB", self._size(BEHIND + AHEAD, LANES * LANE_WIDTH + 2 * VERGE), _GRASS)
        self._draw = ImageDraw.Draw(self._image)
        self._road()

    def _size(self, width: float, height: float) -> tuple[int, int]:
        return round(width * self._scale), round(height * self._scale)

    def _road(self) -> None:
        right, last = self._left + BEHIND + AHEAD, LANES * LANE_WIDTH
        self._box(self._left, 0, right, last, _ROAD)
        for y in (0.25, last - 0.25):
            self._box(self._left, y - 0.12, right, y + 0.12, _LINE)
        for y in np.arange(1, LANES) * LANE_WIDTH:
            for x in _every(_PERIOD, self._left, right):
                self._box(x, y - 0.1, x + _DASH, y + 0.1, _LINE)
        for x in _every(_POSTS, self._left, right):
            self._box(x - 0.25, -1.1, x + 0.25, -0.6, _POST)

    def _box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fill a box; ``y`` is from the left edge of the road."""
        (left, top), (right, bottom) = (self._size(x - self._left, y + VERGE) for x, y in ((x0, y0), (x1, y1)))
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)

    def vehicle(self, state: np.ndarray, row: np.ndarray, *, is_ego: bool, brakes: bool, crashed: bool) -> None:
        """Draw a vehicle: its shadow, its body, its windows, and its tail where it brakes."""
        x, y, _, heading = map(float, state)
        length, width, front = float(row[LENGTH]), float(row[WIDTH]), float(row[LENGTH]) / 2
        fill = functools.partial(self._turned, x, y, heading)
        is_lorry = length > sum(kind[0] for kind in KINDS.values()) / 2
        paint = COLOURS["crashed" if crashed else "ego" if is_ego else "lorry" if is_lorry else "car"]
        self._turned(x + 0.25, y + 0.3, heading, _rounded(0, length, width, _CORNER), _SHADOW)
        if is_lorry:
            fill(_rounded(0, length, width, 0.35), paint)
            fill(_rounded(front - _CAB, 0.3, width, 0), _SHADOW)
            fill(_rounded(front - 0.8, 0.7, width - 0.5, 0.2), _GLASS)
        else:
            fill(_rounded(0, length, width, _CORNER), paint)
            fill(_rounded(0.12 * length, 0.19 * length, width - 0.45, 0.3), _GLASS)
            fill(_rounded(-0.3 * length, 0.12 * length, width - 0.5, 0.25), _GLASS)
            fill(_rounded(-0.09 * length, 0.25 * length, width - 0.4, 0.2), _lighter(paint))
        if brakes:
            for side in (-1, 1):
                fill(_rounded(0.2 - front, 0.7, 0.7, 0.15, side * (width / 2 - 0.4)), _TAIL)

    def _turned(self, x: float, y: float, heading: float, shape: np.ndarray, colour: Colour) -> None:
        """Fill a polygon [N, 2] in a vehicle's frame."""
        c, s = math.cos(heading), math.sin(heading)
        turned = shape @ np.array([[c, s], [-s, c]]) + (x - self._left, y + LANE_WIDTH / 2 + VERGE)
        self._draw.polygon([*map(tuple, turned * self._scale)], fill=colour)

    def image(self, time: str, speed: str, warning: str) -> np.ndarray:
        """Return it at its size, with some words beside the road."""
        from PIL import ImageDraw

        small = self._image.reduce(_FINER)
        words, height = ImageDraw.Draw(small), small.height - 2
        words.text((8, height), time, fill=_TEXT, font=_font(), anchor="ls")
        words.text((56, height), speed, fill=COLOURS["ego"], font=_font(), anchor="ls")
        words.text((112, height), warning, fill=_lighter(COLOURS["crashed"]), font=_font(), anchor="ls")
        return np.asarray(small)


@functools.cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(13)


def _every(period: float, left: float, right: float) -> Iterable[float]:
    return (np.arange(math.floor(left / period), math.ceil(right / period)) * period).tolist()


def _rounded(ahead: float, length: float, width: float, radius: float, aside: float = 0) -> np.ndarray:
    """Return a box with round corners as a polygon [N, 2], whose middle is ``ahead`` of a vehicle's and ``aside``."""
    corner = np.array([length, width]) / 2 - radius + radius * np.stack([np.cos(_ARC), np.sin(_ARC)], 1)
    turned = corner[::-1]
    return np.concatenate([corner, turned * (-1, 1), -corner, turned * (1, -1)]) + np.array([ahead, aside])


def _lighter(colour: Colour) -> Colour:
    r, g, b = (round(0.65 * part + 0.35 * 255) for part in colour)
    return r, g, b
