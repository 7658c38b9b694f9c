"""Motions of rigid bodies as continuous tokens of time: where the box of each body is, and how it is turned.

Media are float32 [T, B, 15], `STEPS_PER_SECOND` time steps a second. The fifteen numbers of a body are

- 0:3 the centre of its box, in sides of the scene's cube: x to the right, y away from the viewer, z up from the floor;
- 3:9 the first and the second column of its rotation matrix;
- 9:12 the full extents of its box along its own axes, the same at every step;
- 12:15 its colour, red, green and blue from 0 to 1, the same at every step: it says whose motion this is.

A body that is not there is all zeros. There is nothing to train: numbers are shifted and scaled by constants.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Progress
from plait.codecs.latents import checked_latents
from plait.common.errors import DataError, first_line, require

STEPS_PER_SECOND = 20
NUMBERS = 15
"""Of a body at one step."""
POSITION, COLUMN_1, COLUMN_2, EXTENTS, COLOUR = (slice(i, i + 3) for i in range(0, 15, 3))
"""Where they are."""
SUNK = 0.002
"""How deep a box may be in the floor: what lands softly is, by about so much."""
LEAST_EXTENT = 0.05
"""A body whose mean extent is less is not there: half of the least extent that furniture has."""

# Constants, not the data's own deviations: one that is nearly constant would be blown up. About mean 0 and deviation 1,
# but for the place at first, of deviation 2: it is hard to read off a scene, and an error of it is one of all steps;
# and the colour, of deviation 3, so that it is the first to be seen in noise: the rest follows from whose token it is.
_MOVED = np.array([[0, 0, 0, 0.85, 0, 0, 0, 0.85, 0], [0.15, 0.15, 0.15, 0.45, 0.3, 0.3, 0.3, 0.45, 0.3]], np.float32)
_PLACE = np.array([[0, 0, 0.2], [0.125, 0.125, 0.085]], np.float32)
_SIDES = np.array([[0.26] * 3, [0.12] * 3], np.float32)
_HUE = np.array([[0.5] * 3, [0.1] * 3], np.float32)
_FIXED = np.concatenate([_PLACE, _SIDES, _HUE], axis=1)
_ACROSS = np.array([1.0, 0.6, 0.4])
"""Bodies' tokens are in the order of their places along this direction: what is left, in front or below comes first."""

_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
EDGES = tuple((i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit)
"""Pairs of the corners of a box, as `corners` orders them, that an edge joins."""


@dataclass
class MotionOptions:
    """Settings of `MotionCodec`."""

    steps: int = 24
    """Time steps, 20 a second."""
    bodies: int = 2
    """Bodies, of which some may not be there."""
    per_token: int = 2
    """Time steps in one token."""
    solid: bool = False
    """Whether bodies cannot be within each other: where decoded boxes would be, they are moved apart. Not for data in
    which boxes overlap, such as a chair's that stands under a table."""

    def __post_init__(self):
        where = "codec_options"
        require(self.bodies >= 1, f"{where}.bodies", self.bodies, "at least 1")
        require(self.per_token >= 1, f"{where}.per_token", self.per_token, "at least 1")
        require(self.steps >= 2 and self.steps % self.per_token == 0, f"{where}.steps", self.steps,
                f"at least 2, and a multiple of per_token ({self.per_token})")  # fmt: skip


class MotionCodec(Codec):
    """The numbers of a motion, scaled by constants: a token holds one body at ``per_token`` steps.

    That is how far it has come and its rotation at each of these steps; and, the same in all tokens of the body, its
    place at the first step, its extents, its colour, and its index in the media. So what happens can be told without
    knowing where, and what stays the same is said several times. Tokens are in the order of the bodies' places, not of
    their indices: then a scene alone says where each token's body is and what colour it has, and what is said of that
    colour is its motion.
    """

    name: ClassVar[str] = "motion"
    kind: ClassVar[str] = "motion"
    suffix: ClassVar[str] = ".npz"
    formats: ClassVar[tuple[str, ...]] = (".glb", ".gif")
    judge: ClassVar[str] = "plait.worlds.motion_judge:MotionJudge"
    options_class: ClassVar[type] = MotionOptions

    def __init__(self, options: MotionOptions):
        super().__init__(options)
        self.latent_channels = options.per_token * _MOVED.shape[1] + _FIXED.shape[1] + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, bodies and numbers of its media."""
        return (self.options.steps, self.options.bodies, NUMBERS)

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.steps // self.options.per_token, self.options.bodies)

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Return at once: there is nothing to train."""
        progress(1.0, "fixed scales")

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode motions: latents [tokens, latent_channels]. Raises DataError for another shape, or NaN."""
        encoded = []
        for item in media:
            motion, (times, bodies) = check_motion(item, self.shape), self.default_grid
            index = _by_place(motion)
            motion = motion[:, index]
            start = motion[0, :, POSITION]
            columns = motion[..., COLUMN_1.start : EXTENTS.start]
            moved = np.concatenate([motion[..., POSITION] - start, columns], axis=-1)
            moved = ((moved - _MOVED[0]) / _MOVED[1]).reshape(times, -1, bodies, _MOVED.shape[1])
            fixed = (np.concatenate([start, motion[0, :, EXTENTS.start :]], axis=-1) - _FIXED[0]) / _FIXED[1]
            fixed = np.concatenate([fixed, np.linspace(-1, 1, bodies)[index][:, None]], axis=-1)
            fixed = np.broadcast_to(fixed, (times, *fixed.shape))
            latents = np.concatenate([moved.swapaxes(1, 2).reshape(times, bodies, -1), fixed], axis=-1)
            latents = latents.reshape(times * bodies, -1).astype(np.float32)
            encoded.append(Encoded(latents=latents, grid=self.default_grid))
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens into motions of rigid bodies: see `rigid`. What is said several times is its median."""
        motions = [rigid(self._numbers(self._checked(item))) for item in encoded]
        return [apart(motion) for motion in motions] if self.options.solid else motions

    def _numbers(self, latents: np.ndarray) -> np.ndarray:
        """Return the numbers [steps, bodies, 15] that latents say."""
        (times, bodies), (steps, _, _) = self.default_grid, self.shape
        moved, fixed = np.split(latents.reshape(times, bodies, -1), [-_FIXED.shape[1] - 1], axis=-1)
        moved = moved.reshape(times, bodies, -1, _MOVED.shape[1]).swapaxes(1, 2).reshape(steps, bodies, -1)
        moved = moved * _MOVED[1] + _MOVED[0]
        fixed = np.median(fixed, axis=0)
        index, (start, looks) = fixed[:, -1], np.split(fixed[:, :-1] * _FIXED[1] + _FIXED[0], [3], axis=-1)
        looks = np.broadcast_to(looks, (steps, *looks.shape))
        numbers = np.concatenate([moved[..., :3] + start, moved[..., 3:], looks], axis=-1)
        return numbers[:, np.argsort(index, kind="stable")]

    def _checked(self, item: Encoded) -> np.ndarray:
        latents = checked_latents(item, self.latent_channels, "motion")
        if tuple(item.grid) != self.default_grid or len(latents) != math.prod(self.default_grid):
            raise DataError(
                f"motion codec: the grid {tuple(item.grid)} of {len(latents)} tokens is not allowed, "
                f"it must be {self.default_grid}"
            )
        return latents

    def read(self, value: Any, base: Path) -> np.ndarray:
        return read_motion(value, base, self.shape)

    def write(self, media: np.ndarray, path: Path) -> None:
        self.write_among(media, path, ())

    def write_among(self, media: np.ndarray, path: Path, others: Sequence[tuple[str, Any]]) -> None:
        """Write a motion as .npz, or as it looks, with the cells of a scene among the others: .glb, .gif."""
        motion = check_motion(media, self.shape)
        if path.suffix == ".npz":
            np.savez_compressed(path, motion=motion)
            return
        from plait.codecs import animation  # which takes from this file

        write = animation.write_gif if path.suffix == ".gif" else animation.write_animated_glb
        write(motion, path, animation.scene_among(others))

    def to_html(self, media: np.ndarray) -> str:
        return self.to_html_among(media, ())

    def to_html_among(self, media: np.ndarray, others: Sequence[tuple[str, Any]]) -> str:
        """Return HTML of a motion that plays: of the cells of a scene among the others, or of boxes."""
        from plait.codecs import animation, viewer  # which take from this file

        return viewer.motion_html(media, animation.scene_among(others))

    @classmethod
    def page_scripts(cls) -> Sequence[str]:
        from plait.codecs import viewer

        return viewer.viewer_scripts()

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the mean ``error`` of positions after the round trip, in sides of the cube, and ``latent_std``."""
        encoded = self.encode(media)
        pairs = zip(media, self.decode(encoded), strict=True)
        errors = np.concatenate([position_errors(again, item).ravel() for item, again in pairs])
        return {
            "error": float(errors.mean()) if len(errors) else 0.0,
            "latent_std": float(np.std([self._checked(item) for item in encoded])),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "MotionCodec":
        return saved.read_description(cls, folder)[0]


def _by_place(motion: np.ndarray) -> np.ndarray:
    """Return the indices of bodies in the order of their tokens: of their places at first, those not there last."""
    is_absent = ~np.isin(np.arange(motion.shape[1]), present(motion))
    return np.lexsort([motion[0, :, POSITION] @ _ACROSS, is_absent])


def check_motion(motion: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a motion as float32; raises DataError unless it is numbers of ``shape``, none of them NaN or infinite."""
    motion = np.asarray(motion)
    if motion.shape != shape or motion.dtype.kind != "f":
        raise DataError(
            f"motion: an array of {motion.dtype} {list(motion.shape)} is not allowed, it must be float32 {list(shape)} "
            "(steps, bodies, numbers of a body)"
        )
    if not np.isfinite(motion).all():
        raise DataError("motion: values that are not numbers (NaN or infinite) are not allowed")
    return motion.astype(np.float32)


def read_motion(value: Any, base: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the array "motion" of an .npz file; raises DataError with the reason."""
    if not isinstance(value, str) or Path(value).suffix.lower() != ".npz":
        raise DataError(f"motion: {value!r} is not allowed, it must be the path of a file whose suffix is .npz")
    path = base / value
    if not path.is_file():
        raise DataError(f"motion: {value!r} is not there")
    try:
        with np.load(path, allow_pickle=False) as file:
            motion = file["motion"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = first_line(error)
        raise DataError(f"motion: {path.name!r} has no array 'motion' that can be read ({reason})") from None
    try:
        motion = check_motion(motion, shape)
        check_rigid(motion)
    except DataError as error:
        raise DataError(f"{error}, in {path.name!r}") from None
    return motion


def check_rigid(motion: np.ndarray) -> None:
    """Raise DataError unless bodies keep their extents, and their columns are two of a rotation, or are not there."""
    there = present(motion)
    for name, where in (("extents", EXTENTS), ("colour", COLOUR)):
        if np.ptp(motion[..., where], axis=0).max() > 1e-3:
            raise DataError(
                f"motion: the {name} of a body (numbers {where.start} to {where.stop - 1}) "
                "must be the same at every step"
            )
    if motion[..., COLOUR].min() < 0 or motion[..., COLOUR].max() > 1:
        raise DataError("motion: the colour of a body (numbers 12 to 14) must be numbers from 0 to 1")
    if np.delete(motion, there, axis=1).any():
        raise DataError(f"motion: a body of extents below {LEAST_EXTENT} is not there, so all its numbers must be 0")
    columns = motion[:, there, 3:9].reshape(-1, 2, 3)
    if len(columns) and abs(np.einsum("nik,njk->nij", columns, columns) - np.eye(2)).max() > 1e-2:
        raise DataError("motion: numbers 3 to 8 of a body must be two columns of a rotation matrix, of length 1")


def rigid(numbers: np.ndarray) -> np.ndarray:
    """Return the motion float32 [T, B, 15] of rigid bodies above the floor that any numbers [T, B, 15] are near to.

    Extents and colours become their median over time, columns those of a rotation (Gram-Schmidt), what is smaller than
    `LEAST_EXTENT` becomes zeros, and what is deeper in the floor than `SUNK` is lifted.
    """
    motion = np.array(numbers, np.float32)
    motion[..., EXTENTS] = np.median(motion[..., EXTENTS], axis=0).clip(min=0)
    motion[..., COLOUR] = np.median(motion[..., COLOUR], axis=0).clip(0, 1)
    motion[..., 3:9] = rotations(motion)[..., :2].swapaxes(-1, -2).reshape(*motion.shape[:2], 6)
    motion[:, np.setdiff1d(np.arange(motion.shape[1]), present(motion))] = 0
    motion[..., 2] += (-corners(motion)[..., 2].min(-1) - SUNK).clip(min=0)
    return motion


def apart(motion: np.ndarray) -> np.ndarray:
    """Return a motion [T, B, 15] whose boxes are at most `SUNK` deep in each other: in each step, pair by pair, the
    upper one is lifted or both are moved aside, along the axis on which that is least."""
    motion = motion.copy()
    for a, b in itertools.combinations(present(motion), 2):
        gap, axis = _separation(motion, a, b)
        depth = (-gap - SUNK).clip(min=0)[:, None]
        axis = axis * np.where(((motion[:, b] - motion[:, a])[:, POSITION] * axis).sum(-1, keepdims=True) < 0, -1, 1)
        upright, flat = abs(axis[:, 2:]) > 0.5, axis * (1, 1, 0)
        lifted = depth / np.maximum(abs(axis[:, 2]), 0.5)[:, None] * (0, 0, 1)
        aside = depth / 2 * flat / np.maximum((flat**2).sum(-1, keepdims=True), 0.5)
        b_is_upper = axis[:, 2:] > 0
        motion[:, a, POSITION] += np.where(upright, np.where(b_is_upper, 0, lifted), -aside)
        motion[:, b, POSITION] += np.where(upright, np.where(b_is_upper, lifted, 0), aside)
    return motion


def rotations(motion: np.ndarray) -> np.ndarray:
    """Return the rotation matrices float64 [T, B, 3, 3] of the bodies: box to cube. The identity where none is said."""
    first = _unit(motion[..., COLUMN_1].astype(np.float64), np.array([1.0, 0, 0]))
    second = motion[..., COLUMN_2].astype(np.float64)
    second = second - (first * second).sum(-1, keepdims=True) * first
    # where the second says nothing: y as far as it goes, else z
    instead = np.where(abs(first[..., 1:2]) < 0.9, (0.0, 1, 0), (0.0, 0, 1))
    second = _unit(second, instead - (first * instead).sum(-1, keepdims=True) * first)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def _unit(vectors: np.ndarray, instead: np.ndarray) -> np.ndarray:
    """Return vectors [..., 3] of length 1, and ``instead``, made so, for those of length about 0."""
    vectors = np.where(np.linalg.norm(vectors, axis=-1, keepdims=True) > 1e-6, vectors, instead)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def present(motion: np.ndarray) -> list[int]:
    """Return the places of the bodies that are there."""
    mean = motion[..., EXTENTS].mean(axis=(0, 2))
    return [int(i) for i in np.flatnonzero(mean >= LEAST_EXTENT)]


def corners(motion: np.ndarray) -> np.ndarray:
    """Return the corners of the boxes, float64 [T, B, 8, 3]."""
    offsets = _SIGNS * motion[..., None, EXTENTS].astype(np.float64) / 2
    return motion[..., None, POSITION] + np.einsum("tbij,tbkj->tbki", rotations(motion), offsets)


def gaps(motion: np.ndarray) -> np.ndarray:
    """Return the gap [T] between the boxes of bodies 0 and 1, less than 0 where they overlap.

    By the theorem of separating axes: the largest gap along the faces' normals and the edges' cross products, which is
    the distance where a face is nearest, and less than it between corners.
    """
    return _separation(motion, 0, 1)[0]


def _separation(motion: np.ndarray, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the gap [T] between the boxes of two bodies, and the axis [T, 3] along which it is largest."""
    pair = motion[:, [a, b]]
    turns = rotations(pair)
    faces = turns.swapaxes(-1, -2).reshape(len(pair), 6, 3)
    crossed = np.cross(faces[:, :3, None], faces[:, None, 3:]).reshape(len(pair), 9, 3)
    lengths = np.linalg.norm(crossed, axis=-1, keepdims=True)
    crossed = np.where(lengths > 1e-6, crossed / np.maximum(lengths, 1e-6), faces[:, :1])
    axes = np.concatenate([faces, crossed], axis=1)
    reach = (abs(np.einsum("tai,tbij->tabj", axes, turns)) * pair[:, None, :, EXTENTS] / 2).sum((-1, -2))
    gap = abs(np.einsum("tai,ti->ta", axes, pair[:, 0, POSITION] - pair[:, 1, POSITION])) - reach
    best = gap.argmax(axis=-1)
    return gap.max(axis=-1), axes[np.arange(len(pair)), best]


def colour_of(motion: np.ndarray, body: int) -> tuple[int, int, int]:
    """Return the colour of a body, 0 to 255."""
    red, green, blue = np.round(motion[0, body, COLOUR] * 255).astype(int).tolist()
    return red, green, blue


def position_errors(motion: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the distances [T, bodies there] of the centres, in sides of the cube, of the bodies that the truth has."""
    there = present(truth)
    difference = motion[:, there, POSITION].astype(np.float64) - truth[:, there, POSITION]
    return np.asarray(np.linalg.norm(difference, axis=-1))


_PIXELS, _VIEW = 140, 1.6  # pixels of a cube's side, and how much is shown, in sides


def paths_svg(motion: np.ndarray) -> str:
    """Return an SVG of the paths of the centres, and of the boxes at first (faint) and at last: side and above."""
    panels = []
    for number, (title, axis, low) in enumerate((("from the side", 2, -0.1), ("from above", 1, -_VIEW / 2))):
        shapes = [_body_svg(motion, body, axis, low) for body in present(motion)]
        floor = f'<path d="M0 {_at(np.zeros(3), axis, low)[1]}H{_PIXELS * _VIEW}" stroke="#999"/>' if axis == 2 else ""
        label = f'<text x="4" y="12" font-size="11" fill="#666">{title}</text>'
        x = number * (_PIXELS * _VIEW + 8)
        panels.append(f'<g transform="translate({x} 0)">{floor}{"".join(shapes)}{label}</g>')
    size = f'width="{2 * _PIXELS * _VIEW + 8:.0f}" height="{_PIXELS * _VIEW:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} fill="none" role="img">{"".join(panels)}</svg>'


def _body_svg(motion: np.ndarray, body: int, axis: int, low: float) -> str:
    colour, boxes = f"rgb{colour_of(motion, body)}", corners(motion[[0, -1]])[:, body]
    drawn = []
    for box, opacity in zip(boxes, (0.35, 1), strict=True):
        ends = [(_at(box[a], axis, low), _at(box[b], axis, low)) for a, b in EDGES]
        lines = "".join(f"M{a[0]} {a[1]}L{b[0]} {b[1]}" for a, b in ends)
        drawn.append(f'<path d="{lines}" stroke="{colour}" stroke-opacity="{opacity}"/>')
    points = [_at(centre, axis, low) for centre in motion[:, body, POSITION]]
    path = " ".join(f"{x},{y}" for x, y in points)
    return "".join(drawn) + f'<polyline points="{path}" stroke="{colour}" stroke-width="2"/>'


def _at(point: np.ndarray, axis: int, low: float) -> tuple[float, float]:
    """Return the pixels of a point: x across, ``axis`` up, where ``low`` is what the lower edge shows."""
    return round(float(point[0] + _VIEW / 2) * _PIXELS, 1), round(float(low + _VIEW - point[axis]) * _PIXELS, 1)
