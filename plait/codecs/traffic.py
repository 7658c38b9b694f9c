"""Traffic at one moment as continuous tokens: the vehicles on a straight road, and where each of them is heading.

Media are float32 [V, 8], the vehicle that is driven (ego) first. The eight numbers of a vehicle are

- 0 how far it is ahead of ego along the road, in metres: 0 of ego itself, below 0 behind it;
- 1 where it is across the road, in metres from the middle of the leftmost lane to the right: lanes are 4 m wide;
- 2 its speed in m/s, and 3 its heading in radians, to the right above 0;
- 4 its length and 5 its width, in metres;
- 6 the speed and 7 the place across the road, the middle of a lane, that its driver goes for.

A vehicle that is not there is all zeros. There is nothing to train: numbers are shifted and scaled by constants.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Progress
from plait.codecs.latents import checked_latents
from plait.common.errors import DataError, first_line, require, shown, unknown

NAMES = ("x", "y", "speed", "heading", "length", "width", "target_speed", "target_y")
"""Of the numbers of a vehicle, as they are called in JSON."""
X, Y, SPEED, HEADING, LENGTH, WIDTH, TARGET_SPEED, TARGET_Y = range(8)
"""Where they are."""
LANE_WIDTH = 4.0
KINDS = {"car": (5.0, 2.0), "lorry": (10.0, 2.5)}
"""Length and width of what there is."""
FASTEST, STEEPEST = 40.0, 0.6
"""Most speed and heading."""
REAR, FRONT = -60.0, 120.0
"""What a scene shows of the road, from ego."""

_LEAST_LENGTH = 2.5  # what is shorter is not there
# constants, not the data's own deviations: about mean 0 and deviation 1, with the zeros of those not there
_MEAN = np.array([10, 4.5, 14, 0, 3.8, 1.5, 15, 4.5], np.float32)
_SCALE = np.array([40, 4.5, 11, 0.05, 3, 1, 12, 4.5], np.float32)


@dataclass
class TrafficOptions:
    """Settings of `TrafficCodec`."""

    vehicles: int = 16
    """Vehicles, ego among them, of which the others may not be there."""
    lanes: int = 4
    """Lanes of the road."""

    def __post_init__(self):
        require(self.vehicles >= 1, "codec_options.vehicles", self.vehicles, "at least 1")
        require(self.lanes >= 1, "codec_options.lanes", self.lanes, "at least 1")


class TrafficCodec(Codec):
    """The numbers of vehicles, scaled by constants: a token each.

    Ego's token is first, then those of the others from the rearmost to the foremost, then those not there: so a scene
    has one order, whatever the order of its rows.
    """

    name: ClassVar[str] = "traffic"
    kind: ClassVar[str] = "traffic"
    suffix: ClassVar[str] = ".npz"
    formats: ClassVar[tuple[str, ...]] = (".json",)
    judge: ClassVar[str] = "plait.driving.judge:TrafficJudge"
    reads_values: ClassVar[bool] = True
    options_class: ClassVar[type] = TrafficOptions

    def __init__(self, options: TrafficOptions):
        super().__init__(options)
        self.latent_channels = len(NAMES)

    @property
    def shape(self) -> tuple[int, int]:
        """Vehicles, and numbers of a vehicle, of its media."""
        return (self.options.vehicles, len(NAMES))

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.vehicles,)

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Return at once: there is nothing to train."""
        progress(1.0, "fixed scales")

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode scenes: latents [vehicles, 8]. Raises DataError for another shape, NaN, or a place off the road."""
        scenes = [ordered(check_traffic(item, self.shape, self.options.lanes)) for item in media]
        return [Encoded(latents=scaled(scene), grid=self.default_grid) for scene in scenes]

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens into scenes that can be: see `possible`."""
        return [possible(self._checked(item) * _SCALE + _MEAN, self.options.lanes) for item in encoded]

    def _checked(self, item: Encoded) -> np.ndarray:
        latents = checked_latents(item, self.latent_channels, "traffic")
        if tuple(item.grid) != self.default_grid or len(latents) != self.options.vehicles:
            raise DataError(
                f"traffic codec: the grid {tuple(item.grid)} of {len(latents)} tokens is not allowed, "
                f"it must be {self.default_grid}"
            )
        return latents

    def read(self, value: Any, base: Path) -> np.ndarray:
        """Read the path of an .npz or .json file, or a list of vehicles itself, ego first."""
        return read_traffic(value, base, self.shape, self.options.lanes)

    def write(self, media: np.ndarray, path: Path) -> None:
        """Write a scene as .npz, or as .json: a list of the vehicles that are there, each {"x": ..., "y": ...}."""
        scene = check_traffic(media, self.shape, self.options.lanes)
        if Path(path).suffix == ".json":
            rows = [dict(zip(NAMES, (float(str(n)) for n in row), strict=True)) for row in scene[present(scene)]]
            Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        else:
            np.savez_compressed(path, traffic=scene)

    def to_html(self, media: np.ndarray) -> str:
        """Return a view from above as SVG."""
        return road_svg(np.asarray(media), self.options.lanes)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the mean ``error`` of places after the round trip, in metres, and ``latent_std``."""
        encoded = self.encode(media)
        errors = [
            np.linalg.norm((again - ordered(item))[present(ordered(item)), :SPEED], axis=-1)
            for item, again in zip(media, self.decode(encoded), strict=True)
        ]
        return {
            "error": float(np.concatenate(errors).mean()) if errors else 0.0,
            "latent_std": float(np.std([self._checked(item) for item in encoded])),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "TrafficCodec":
        return saved.read_description(cls, folder)[0]


def present(scene: np.ndarray) -> np.ndarray:
    """Return which vehicles of scenes [..., V, 8] are there: bool [..., V]."""
    return np.asarray(scene[..., LENGTH] > 0)


def scaled(scene: np.ndarray) -> np.ndarray:
    """Return the numbers [V, 8] of a scene as tokens have them."""
    return np.asarray((scene - _MEAN) / _SCALE, np.float32)


def ordered(scene: np.ndarray) -> np.ndarray:
    """Return a scene [V, 8] with its rows in order: ego, then the others along the road, then those not there."""
    others = scene[1:]
    return np.concatenate([scene[:1], others[np.lexsort([others[:, Y], others[:, X], ~present(others)])]])


def possible(numbers: np.ndarray, lanes: int) -> np.ndarray:
    """Return the scene float32 [V, 8] that any numbers [V, 8] are near to, in order.

    Ego is there, at 0. What is shorter than 2.5 m is not there; others are the nearest of `KINDS`. All are on the road,
    drive forward, and go for the middle of a lane. Vehicles may still overlap.
    """
    scene = np.array(numbers, np.float32)
    last = (lanes - 1) * LANE_WIDTH
    scene[0, X], scene[0, LENGTH] = 0, KINDS["car"][0]
    is_there = scene[:, LENGTH] >= _LEAST_LENGTH
    sizes = np.array(list(KINDS.values()), np.float32)
    scene[:, [LENGTH, WIDTH]] = sizes[abs(scene[:, LENGTH, None] - sizes[:, 0]).argmin(1)]
    scene[:, [SPEED, TARGET_SPEED]] = scene[:, [SPEED, TARGET_SPEED]].clip(0, FASTEST)
    scene[:, HEADING] = scene[:, HEADING].clip(-STEEPEST, STEEPEST)
    scene[:, Y] = scene[:, Y].clip(0, last)
    scene[:, TARGET_Y] = (scene[:, TARGET_Y] / LANE_WIDTH).round().clip(0, lanes - 1) * LANE_WIDTH
    scene[~is_there] = 0
    return ordered(scene)


def check_traffic(scene: Any, shape: tuple[int, int], lanes: int) -> np.ndarray:
    """Return a scene as float32; raises DataError unless it is numbers of ``shape``, on the road, ego first."""
    scene = np.asarray(scene)
    if scene.shape != shape or scene.dtype.kind != "f":
        raise DataError(
            f"traffic: an array of {scene.dtype} {list(scene.shape)} is not allowed, it must be float32 {list(shape)} "
            "(vehicles, numbers of a vehicle)"
        )
    if not np.isfinite(scene).all():
        raise DataError("traffic: values that are not numbers (NaN or infinite) are not allowed")
    scene = scene.astype(np.float32)
    is_there = present(scene)
    if not is_there[0] or scene[0, X] != 0:
        raise DataError("traffic: the first vehicle is ego, so it must be there (length above 0) and at x 0")
    if scene[~is_there].any():
        raise DataError("traffic: a vehicle of length 0 is not there, so all its numbers must be 0")
    most = (lanes - 0.5) * LANE_WIDTH
    across = scene[is_there][:, [Y, TARGET_Y]]
    if across.min() < -LANE_WIDTH / 2 or across.max() > most:
        raise DataError(f"traffic: y and target_y must be on the road, from {-LANE_WIDTH / 2:g} to {most:g} m")
    return scene


def read_traffic(value: Any, base: Path, shape: tuple[int, int], lanes: int) -> np.ndarray:
    """Return a scene that a manifest names or says; raises DataError with the reason."""
    where = ""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value, where = _of_file(value, base), f", in {Path(value).name!r}"
    elif isinstance(value, str):
        value = _parsed(value, "the list")
    try:
        return check_traffic(value if isinstance(value, np.ndarray) else _rows(value, shape), shape, lanes)
    except DataError as error:
        raise DataError(f"{error}{where}") from None


def _of_file(value: str, base: Path) -> Any:
    path = base / value
    if path.suffix.lower() not in (".npz", ".json"):
        raise DataError(f"traffic: {value!r} is not allowed, it must be a list, or the path of an .npz or .json file")
    if not path.is_file():
        raise DataError(f"traffic: {value!r} is not there")
    if path.suffix.lower() == ".json":
        try:
            return _parsed(path.read_text(encoding="utf-8"), repr(path.name))
        except UnicodeDecodeError:
            raise DataError(f"traffic: {path.name!r} is not UTF-8") from None
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["traffic"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = first_line(error)
        raise DataError(f"traffic: {path.name!r} has no array 'traffic' that can be read ({reason})") from None


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"traffic: {what} is not JSON ({first_line(error)})") from None


def _rows(vehicles: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return a list of vehicles, ego first, as a scene. What a vehicle does not say is that of a car that keeps on."""
    if not isinstance(vehicles, list) or not 1 <= len(vehicles) <= shape[0]:
        count = f"{len(vehicles)} vehicles" if isinstance(vehicles, list) else shown(vehicles)
        raise DataError(f"traffic: {count} is not allowed, it must be a list of 1 to {shape[0]} vehicles, ego first")
    scene = np.zeros(shape, np.float32)
    for row, said in zip(scene, vehicles, strict=False):
        row[:] = _row(said)
    return scene


def _row(said: Any) -> list[float]:
    if isinstance(said, dict):
        for name in said:
            if name not in NAMES:
                raise DataError(unknown("traffic: a vehicle", name, NAMES))
        length, width = KINDS["car"]
        silent = {"x": 0, "y": 0, "speed": 0, "heading": 0, "length": length, "width": width}
        silent |= {"target_speed": said.get("speed", 0), "target_y": said.get("y", 0)}
        said = [(silent | said)[name] for name in NAMES]
    is_row = isinstance(said, list) and len(said) == len(NAMES)
    if not is_row or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in said):
        raise DataError(
            f"traffic: {shown(said)} is not allowed, a vehicle must be {len(NAMES)} numbers, or some by name"
        )
    return [float(n) for n in said]


_ACROSS = 6.0  # pixels per metre across the road; along it a metre is a share of the page's width
_TOP = 3.0
_ROAD, _LINE, _EGO, _AMBER, _BRAKE = "#434a54", "#aab2bd", "#fb923c", "#fde047", "#f43f5e"
_PAINT = {"car": "#e6e9ed", "lorry": "#7dd3fc"}


def road_svg(scene: np.ndarray, lanes: int) -> str:
    """Return an SVG of the road from above, as wide as the page: all drive to the right, ego is orange.

    Numbers are speeds in m/s. A dashed line leads to the lane that a driver goes for; a red tail brakes.
    """
    height = lanes * LANE_WIDTH * _ACROSS
    borders = [_TOP + n * LANE_WIDTH * _ACROSS for n in range(lanes + 1)]
    dashed = 'stroke-dasharray="10 14" opacity=".6"'
    lines = "".join(
        f'<line x1="0" x2="100%" y1="{y:g}" y2="{y:g}" stroke="{_LINE}" {dashed if 0 < number < lanes else ""}/>'
        for number, y in enumerate(borders)
    )
    vehicles = "".join(_vehicle_svg(row, is_ego=k == 0) for k, row in enumerate(scene) if row[LENGTH] > 0)
    said = f"{int(present(scene).sum())} vehicles, from {-REAR:g} m behind ego to {FRONT:g} m ahead; speeds in m/s"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" height="{height + 2 * _TOP + 15:g}" role="img" '
        f'aria-label="{said}" font-family="system-ui, sans-serif" '
        'style="display:block;min-width:260px;max-width:1100px">'
        f'<rect width="100%" height="{height + 2 * _TOP:g}" rx="3" fill="{_ROAD}"/>{lines}{vehicles}'
        f'<text x="0" y="{height + 2 * _TOP + 12:g}" font-size="10.5" fill="currentColor" opacity=".65">{said}</text>'
        "</svg>"
    )


def _vehicle_svg(row: np.ndarray, *, is_ego: bool) -> str:
    """Return a vehicle: its body with a windscreen, its speed behind it, where it goes for, and whether it brakes."""
    kind = "lorry" if row[LENGTH] > sum(length for length, _ in KINDS.values()) / 2 else "car"
    paint = _EGO if is_ego else _PAINT[kind]
    half, wide = _share(float(row[LENGTH])) / 2, float(row[WIDTH]) * _ACROSS * 0.85
    front = 0.3 if kind == "car" else 0.78  # of the half length, where the windscreen is
    drawn = [
        f'<rect x="{-half:.2f}%" y="{-wide / 2:.1f}" width="{2 * half:.2f}%" height="{wide:.1f}" rx="2.5" '
        f'fill="{paint}"/>',
        f'<rect x="{front * half:.2f}%" y="{1.5 - wide / 2:.1f}" width="{0.2 * _share(5) / 2:.2f}%" '
        f'height="{wide - 3:.1f}" rx="1" fill="{_ROAD}"/>',
    ]
    if row[TARGET_SPEED] < row[SPEED] - 3:
        drawn.append(f'<rect x="{-half:.2f}%" y="{-wide / 2:.1f}" width="2" height="{wide:.1f}" fill="{_BRAKE}"/>')
    turned = f'<g transform="rotate({np.degrees(row[HEADING]):.1f})">{"".join(drawn)}</g>'
    aside = float(row[TARGET_Y] - row[Y]) * _ACROSS
    if abs(aside) > _ACROSS / 2:
        turned += (
            f'<line x1="{half:.2f}%" y1="0" x2="{half + _share(14):.2f}%" y2="{aside:.1f}" stroke="{_AMBER}" '
            'stroke-width="1.5" stroke-dasharray="3 2"/>'
        )
    turned += (
        f'<svg x="{-half:.2f}%" overflow="visible"><text x="-3" y="3.4" font-size="9.5" text-anchor="end" fill="#fff">'
        f"{row[SPEED]:.0f}</text></svg>"
    )
    x, y = _share(float(row[X]) - REAR), _TOP + (float(row[Y]) + LANE_WIDTH / 2) * _ACROSS
    return f'<svg x="{x:.2f}%" y="{y:.1f}" overflow="visible">{turned}</svg>'


def _share(metres: float) -> float:
    """Return metres along the road as percent of the width that is shown."""
    return 100 * metres / (FRONT - REAR)
