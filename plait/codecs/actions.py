"""Actions of a robot, a car or a game as continuous tokens of time: chunks of numbers, normalised by their quantiles.

Media are float32 [T, D]: T steps of D numbers, such as joint targets, a gripper or the steering, NaN where one is
missing. Proprioception is the same with ``key: state`` and one step. Steps and numbers are counted from 0.

There is nothing to train: `ActionsCodec.fit` measures the range of each number, and which of them are ever missing.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Progress
from plait.codecs.latents import checked_latents
from plait.common.errors import CheckpointError, DataError, first_line, require, shown

_LARGEST = float(np.finfo(np.float32).max)
_MOST = 1 << 20  # numbers of a step
_ROUNDING = 1e-6
"""A range below this share of the numbers themselves may be float32's rounding alone."""


@dataclass
class ActionsOptions:
    """Settings of `ActionsCodec`."""

    steps: int = 0
    """Steps of an item, the horizon of a chunk; 0: any number of steps."""
    dimensions: int = 0
    """Numbers of a step; 0: as many as the data has."""
    per_token: int = 1
    """Steps in one token."""
    quantile: float = 0.01
    """This and 1 - this quantile of each number become -1 and 1, as in pi0 (arXiv 2410.24164); 0: the extremes."""
    least_range: float = 1e-4
    """A number whose range is smaller is nearly constant: it is shifted to 0 and keeps its scale."""

    def __post_init__(self):
        where = "codec_options"
        require(self.per_token >= 1, f"{where}.per_token", self.per_token, "at least 1")
        require(self.steps >= 0 and self.steps % self.per_token == 0, f"{where}.steps", self.steps,
                f"0, or a multiple of per_token ({self.per_token})")  # fmt: skip
        require(self.dimensions >= 0, f"{where}.dimensions", self.dimensions, "0 or more")
        require(0 <= self.quantile < 0.5, f"{where}.quantile", self.quantile, "in [0, 0.5)")
        require(0 < self.least_range < math.inf, f"{where}.least_range", self.least_range, "above 0")


class ActionsCodec(Codec):
    """Numbers of which nearly all lie between -1 and 1: a token holds ``per_token`` steps. Nothing is clipped.

    A step in a token is its D numbers, 0 where one is missing, and then for each number that was ever missing in
    training one more: 1 where it is present, -1 where it is missing.
    """

    name: ClassVar[str] = "actions"
    kind: ClassVar[str] = "actions"
    suffix: ClassVar[str] = ".npy"
    formats: ClassVar[tuple[str, ...]] = (".json", ".csv")
    reads_values: ClassVar[bool] = True
    options_class: ClassVar[type] = ActionsOptions

    def __init__(self, options: ActionsOptions):
        super().__init__(options)
        self._ranges: Ranges | None = None  # until fitted

    @property
    def is_fitted(self) -> bool:
        return self._ranges is not None

    @property
    def _fitted(self) -> "Ranges":
        assert self._ranges is not None, "a codec is fitted before it is used"
        return self._ranges

    @property
    def dimensions(self) -> int:
        """Numbers of a step; 0 while it is not known."""
        return self._ranges.dimensions if self._ranges else self.options.dimensions

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.steps // self.options.per_token,) if self.options.steps else ()

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Measure the range of each number, and which are ever missing. Raises DataError where that cannot be."""
        items = [self._checked(item) for item in media]
        if not items:
            raise DataError(f"{self.key}: there is nothing to fit the codec on, it needs at least one item")
        for i, item in enumerate(items):
            if item.shape[1] != items[0].shape[1]:
                what = f"item {i} has {item.shape[1]} numbers a step, item 0 has {items[0].shape[1]}"
                raise DataError(f"{self.key}: {what}; set codec_options.dimensions, and others are broken rows")
        rows = np.concatenate(items).astype(np.float64)
        for number in np.flatnonzero(np.isnan(rows).all(axis=0)):
            raise DataError(f"{self.key}: number {number} is missing in all training items, leave it out of the data")
        self._take(Ranges.measure(rows, self.options.quantile, self.options.least_range))
        progress(1.0, "ranges measured")

    def _take(self, ranges: "Ranges") -> None:
        self._ranges = ranges
        self.latent_channels = self.options.per_token * ranges.width

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode items: latents [steps / per_token, latent_channels]. Raises DataError for another shape."""
        encoded = []
        for item in media:
            actions = self._checked(item)
            for step, number in np.argwhere(np.isnan(actions) & ~self._fitted.may_miss.numpy()):
                what = f"number {number} is missing in step {step}, but never was in the data of the codec"
                raise DataError(f"{self.key}: {what}; give it, or fit the codec again")
            latents = self._fitted.normalize(actions).reshape(-1, self.latent_channels)
            encoded.append(Encoded(latents=latents, grid=(len(latents),)))
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens into float32 [steps, numbers], NaN where a number is said to be missing."""
        return [self._fitted.restore(self._latents(item).reshape(-1, self._fitted.width)) for item in encoded]

    def _latents(self, item: Encoded) -> np.ndarray:
        latents = checked_latents(item, self.latent_channels, self.key)
        if self.default_grid not in ((), (len(latents),)):
            raise DataError(f"{self.key}: the number of tokens is {len(latents)}, it must be {self.default_grid[0]}")
        return latents

    def _checked(self, item: Any) -> np.ndarray:
        """Return an item as float32 [T, D]; raises DataError unless it has the codec's steps and numbers."""
        actions, options = as_steps(item, self.key), self.options
        steps, numbers = actions.shape
        wrong = ""
        if self.dimensions not in (0, numbers):
            wrong = f"{numbers} numbers a step are not allowed, the codec has {self.dimensions}"
        elif options.steps not in (0, steps):
            wrong = f"the number of steps is {steps}, it must be {options.steps}"
        elif steps % options.per_token:
            wrong = f"the number of steps is {steps}, it must be a multiple of per_token ({options.per_token})"
        if wrong:
            raise DataError(f"{self.key}: {wrong}")
        return actions

    def read(self, value: Any, base: Path) -> np.ndarray:
        """Read a list of steps, each a list of numbers, null where one is missing; a flat list is one step; or a path.

        A file is .npy (NaN where a number is missing) or .json; text may be the JSON itself. Raises DataError.
        """
        if not isinstance(value, str):
            return self._checked(value)
        values = read_values(value, base, self.key)
        try:
            return self._checked(values)
        except DataError as error:
            raise DataError(f"{error}, in {value!r}") from None

    def write(self, media: np.ndarray, path: Path) -> None:
        """Write an item as .npy; as .json, a list of steps with null; or as .csv, a step a line, empty cells."""
        actions = as_steps(media, self.key)
        # the shortest text that float32 reads back exactly
        rows = [[None if np.isnan(number) else float(str(number)) for number in step] for step in actions]
        if path.suffix == ".npy":
            np.save(path, actions, allow_pickle=False)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([range(actions.shape[1]), *rows])

    def to_html(self, media: np.ndarray) -> str:
        return actions_html(media)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the mean absolute ``error`` of the round trip over present numbers, and ``latent_std``."""
        encoded = self.encode(media)
        before = np.concatenate([self._checked(item).ravel() for item in media]).astype(np.float64)
        errors = abs(np.concatenate([item.ravel() for item in self.decode(encoded)]) - before)[~np.isnan(before)]
        latents = np.concatenate([self._latents(item).ravel() for item in encoded])
        return {"error": float(errors.mean()) if errors.size else 0.0, "latent_std": float(latents.std())}

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder, dimensions=self._fitted.dimensions)
        saved.write_weights(self._fitted, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ActionsCodec":
        codec, description = saved.read_description(cls, folder)
        dimensions, wanted = description.get("dimensions"), codec.options.dimensions
        if type(dimensions) is not int or not 1 <= dimensions <= _MOST or wanted not in (0, dimensions):
            what = f"dimensions in {str(folder)!r} is {shown(dimensions)}"
            raise CheckpointError(f"codec: {what}, it must be {wanted or f'a whole number from 1 to {_MOST:,}'}")
        ranges = Ranges(dimensions)
        saved.read_weights(ranges, folder)
        if not (torch.stack([ranges.centre, ranges.scale]).isfinite().all() and ranges.scale.min() > 0):
            raise CheckpointError(f"codec: the ranges in {str(folder)!r} must be finite, and above 0")
        codec._take(ranges)
        return codec


class Ranges(nn.Module):
    """What each of D numbers ranges over: its middle and half its width, and whether it may be missing."""

    centre: Tensor
    scale: Tensor
    may_miss: Tensor

    def __init__(self, dimensions: int):
        super().__init__()
        self.dimensions = dimensions
        self.register_buffer("centre", torch.zeros(dimensions, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dimensions, dtype=torch.float64))
        self.register_buffer("may_miss", torch.zeros(dimensions, dtype=torch.bool))

    @property
    def width(self) -> int:
        """Numbers of a step in a token."""
        return self.dimensions + int(self.may_miss.sum())

    @classmethod
    def measure(cls, rows_ND: np.ndarray, quantile: float, least_range: float) -> "Ranges":
        """Measure on steps [N, D], NaN where a number is missing; each must be present somewhere.

        What is constant between its quantiles, as a button that is seldom pressed, ranges over its extremes.
        """
        ranges = cls(rows_ND.shape[1])
        for number, column in enumerate(rows_ND.T):
            present = column[~np.isnan(column)]
            least = max(least_range, _ROUNDING * abs(present).max())
            low, high = np.quantile(present, [quantile, 1 - quantile])
            if high - low < least:
                low, high = present.min(), present.max()
            ranges.centre[number] = (low + high) / 2
            ranges.scale[number] = (high - low) / 2 if high - low >= least else 1
            ranges.may_miss[number] = len(present) < len(column)
        return ranges

    def normalize(self, actions_TD: np.ndarray) -> np.ndarray:
        """Return steps as tokens have them, float32 [T, width]: see `ActionsCodec`."""
        actions = torch.from_numpy(actions_TD).double()
        missing = actions.isnan()
        numbers = ((actions - self.centre) / self.scale).masked_fill(missing, 0)
        presence = 1 - 2 * missing[:, self.may_miss].double()
        return torch.cat([numbers, presence], dim=1).float().numpy()

    def restore(self, steps_TW: np.ndarray) -> np.ndarray:
        """Undo `normalize`: float32 [T, D]."""
        steps = torch.from_numpy(steps_TW).double()
        numbers = steps[:, : self.dimensions] * self.scale + self.centre
        missing = steps[:, self.dimensions :] < 0
        numbers[:, self.may_miss] = numbers[:, self.may_miss].masked_fill(missing, math.nan)
        return numbers.float().numpy()


def as_steps(value: Any, key: str) -> np.ndarray:
    """Return lists or an array of numbers as float32 [T, D], NaN where one is missing; what is flat is one step.

    Raises DataError that names ``key``, the value and what is allowed.
    """
    if isinstance(value, np.ndarray):
        return _array_as_steps(value, key)
    if not isinstance(value, list | tuple) or not value:
        raise DataError(
            f"{key}: {shown(value)} is not allowed, it must be a list of steps, each a list of numbers, or the path of "
            "a .npy or .json file"
        )
    rows = value if any(isinstance(row, list | tuple) for row in value) else [value]
    for step, row in enumerate(rows):
        if not isinstance(row, list | tuple):
            raise DataError(f"{key}: {shown(row)} (step {step}) is not allowed, each step must be a list of numbers")
        if not row or len(row) != len(rows[0]):
            wanted = f"{len(rows[0])} as step 0" if rows[0] else "at least 1"
            raise DataError(
                f"{key}: step {step} has {len(row)} numbers, it must have {wanted}, null where one is missing"
            )
        for number, n in enumerate(row):
            is_number = isinstance(n, int | float | np.integer | np.floating) and not isinstance(n, bool)
            if n is not None and not (is_number and abs(n) <= _LARGEST):
                raise DataError(
                    f"{key}: {shown(n)} (step {step}, number {number}) is not allowed, it must be a finite number, or "
                    "null where it is missing"
                )
    return np.array([[math.nan if n is None else n for n in row] for row in rows], np.float32)


def _array_as_steps(array: np.ndarray, key: str) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or not array.size:
        raise DataError(
            f"{key}: an array of {array.dtype} {list(array.shape)} is not allowed, it must be float32 [steps, numbers]"
        )
    with np.errstate(over="ignore"):
        steps = np.atleast_2d(array).astype(np.float32)
    for step, number in np.argwhere(np.isinf(steps)):
        raise DataError(
            f"{key}: {np.atleast_2d(array)[step, number]} (step {step}, number {number}) is not allowed, it must be "
            "finite, or NaN where it is missing"
        )
    return steps


def read_values(value: str, base: Path, key: str) -> Any:
    """Return the array or plain values that a .npy or .json file holds, or a text of JSON. Raises DataError."""
    path = Path(base) / value
    try:
        if value.startswith("[") and value.endswith("]"):
            return json.loads(value)
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                return np.load(file, allow_pickle=False)
        if path.suffix.lower() in (".json", ""):  # "": bytes without a name
            return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{key}: there is no file {str(path)!r}") from None
    except Exception as error:  # numpy fails in many ways on a corrupt header
        raise DataError(f"{key}: {shown(value)} cannot be read ({first_line(error)})") from None
    raise DataError(f"{key}: {shown(value)} is not allowed, it must be the path of a .npy or .json file")


_COLOURS = ("#3f7fd6", "#d9641f", "#149180", "#a35cb0", "#a07d0a", "#d2487a", "#5f8a2c", "#6b7f93")
"""Readable on light and on dark pages; the second eight lines have them dashed."""
_SHOWN = 2 * len(_COLOURS)
_FIGURE = "margin:0;max-width:640px;font-size:11px;line-height:1.35;font-variant-numeric:tabular-nums"
_PLOT = "display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 8px"
_SCALE = (
    "opacity:.7;position:relative;display:flex;flex-direction:column;justify-content:space-between;text-align:right"
)
_ZERO = "position:absolute;right:0;transform:translateY(-50%)"
_SVG = 'viewBox="0 0 100 100" preserveAspectRatio="none" fill="none" role="img"'
_LEGEND = "display:flex;flex-wrap:wrap;gap:2px 10px;margin-top:6px"
_THIN = 'vector-effect="non-scaling-stroke"'


def actions_html(media: np.ndarray) -> str:
    """Return HTML of an item: a line for each number over time, or bars where there is one step.

    It is as wide as the page lets it be, and its text keeps its size.
    """
    steps, dimensions = media.shape
    values = np.where(np.isfinite(media), media, np.nan)[:, :_SHOWN].astype(np.float64)
    low, high = (float(f(values, initial=0.0, where=~np.isnan(values))) for f in (np.min, np.max))
    low, high = (low, high) if low < high else (-1.0, 1.0)
    heights, zero = 100 * (high - values) / (high - low), round(100 * high / (high - low), 2)
    drawn = _bars(heights, zero) if steps == 1 else _lines(heights)
    axis = f'<path d="M0 {zero}H100" stroke="currentColor" stroke-opacity=".4" {_THIN}/>'
    size = f"display:block;width:100%;height:{56 if steps == 1 else 128}px;overflow:visible"
    at_zero = f'<span style="{_ZERO};top:{zero}%">0</span>' if 18 < zero < 82 else ""
    said = f"{steps} step{'s' * (steps != 1)} of {dimensions} number{'s' * (dimensions != 1)}"
    said += f", first {_SHOWN} of {dimensions}" if dimensions > _SHOWN else ""
    legend = "".join(_legend(i, values) for i in range(values.shape[1]))
    return (
        f'<figure style="{_FIGURE}"><div style="{_PLOT}">'
        f'<div style="{_SCALE}"><span>{_text(high)}</span>{at_zero}<span>{_text(low)}</span></div>'
        f'<svg {_SVG} aria-label="{said}" style="{size}">{axis}{drawn}</svg></div>'
        f'<figcaption style="{_LEGEND}"><span style="opacity:.7">{said}</span>{legend}</figcaption></figure>'
    )


def _lines(heights_TD: np.ndarray) -> str:
    """Return a line for each number, broken where it is missing; a step between two missing ones is a dot."""
    across = np.linspace(0, 100, len(heights_TD))
    drawn = []
    for i, column in enumerate(heights_TD.T):
        path, is_open = "", False
        for x, y in zip(across, column, strict=True):
            if not np.isnan(y):
                path += f"{'L' if is_open else 'M'}{x:.2f} {y:.2f}{'' if is_open else 'h0'}"
            is_open = not np.isnan(y)
        drawn.append(f'<path d="{path}" {_stroke(i)} stroke-linecap="round" stroke-linejoin="round" {_THIN}/>')
    return "".join(drawn)


def _bars(heights_1D: np.ndarray, zero: float) -> str:
    """Return a bar for each number, none where it is missing."""
    width = 100 / heights_1D.shape[1]
    return "".join(
        f'<rect x="{(i + 0.2) * width:.2f}" width="{0.6 * width:.2f}" y="{min(y, zero):.2f}" '
        f'height="{abs(y - zero):.2f}" fill="{_COLOURS[i % len(_COLOURS)]}"/>'
        for i, y in enumerate(heights_1D[0])
        if not np.isnan(y)
    )


def _legend(i: int, values_TD: np.ndarray) -> str:
    """Return a number's mark and place, and its value where there is one step."""
    mark = f'<svg width="16" height="8" style="vertical-align:middle"><path d="M0 4H16" {_stroke(i)}/></svg>'
    value = f" <b>{_text(values_TD[0, i])}</b>" if len(values_TD) == 1 else ""
    return f'<span style="white-space:nowrap">{mark} {i}{value}</span>'


def _stroke(i: int) -> str:
    dashes = ' stroke-dasharray="4 4"' if i >= len(_COLOURS) else ""
    return f'stroke="{_COLOURS[i % len(_COLOURS)]}" stroke-width="1.5"{dashes}'


def _text(number: float) -> str:
    return "\u2013" if math.isnan(number) else f"{number:.3g}".replace("-", "\u2212")
