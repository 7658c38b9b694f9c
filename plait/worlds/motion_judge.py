"""Motions of boxes: does what was said happen, where it happens in truth, and as physics would have it?

- event_accuracy: the share of motions in which the event of the document's sentence is read (`plait.worlds.events`).
- error: the mean distance of the bodies' centres from those of the document's own motion, over all time steps; ends: at
  the last step; error_second: of the body that is hit, where the document's own motion has one.
- penetration: how deep boxes overlap with each other or the floor at worst.
- again: the error of a motion against a simulation from its own first pose and velocity.

Lengths are in sides of the cube. Beside them stand what the documents' own motions have (real, of events: originals),
the codec's round trip of them (codec), another document's motion (shuffled), the training motion whose text is nearest
(nearest), and two guesses: all stays as it is at first (still), and goes on as in the first two steps (constant).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from plait.codecs import Media
from plait.codecs.motions import POSITION, position_errors
from plait.evaluate.held import Held
from plait.evaluate.judge import Found, Judge, known_hits
from plait.evaluate.measures import Measure, ratio_of
from plait.evaluate.neighbours import neighbours
from plait.worlds.events import happening
from plait.worlds.physics import again, penetration

ENDS = {"real": "originals", "codec": "codec", "nearest": "nearest", "shuffled": "shuffled"}
"""Sets of motions whose events are judged beside the made ones', and how their figures end."""
SECOND = 1
"""Place of the body that another one hits."""

DISTANCES = ("error", "ends", "error_second")
FIGURES = (*DISTANCES, "penetration", "again")
"""What is measured in sides of the cube."""

Arrays = dict[str, np.ndarray]


class MotionJudge(Judge):
    """Measures motions, float32 [T, bodies, 15]."""

    modules: ClassVar = ("scipy.stats", "mujoco")

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure motions."""
        beside = self._beside(held)
        own = self._judged(made, beside["real"]["motion"], held)
        found = Found(ranking=(-own["error"]).tolist(), ranked_by="distance from the document's own motion")
        for figure in FIGURES:
            found.measures[figure] = mean_of_known(own[figure])
            others = {name: x[figure] for name, x in beside.items() if figure in x and np.isfinite(x[figure]).any()}
            found.beside |= {f"{figure}_{name}": float(np.nanmean(values)) for name, values in others.items()}
        self._remembered(own, beside, held, found)
        for name in (n for n in own if n.startswith("hit_")):
            self._named(name, own, beside, held, found)
        return found

    def _beside(self, held: Held) -> dict[str, Arrays]:
        """Return what is judged of the sets of motions beside the made ones, by their names."""
        sets: dict[str, Arrays] = {}
        for key, rows in held.references("motions", functools.partial(self._references, held)).items():
            name, _, figure = key.partition("/")
            sets.setdefault(name, {})[figure] = rows
        return sets

    def _references(self, held: Held) -> Arrays:
        """Return it as arrays named SET/FIGURE, with a row for each document."""
        real = np.stack(held.real)
        judged: dict[str, Sequence[Media]] = {
            "real": held.real,
            "codec": held.codec.decode(held.codec.encode(held.real)),
            "nearest": held.nearest(range(len(real))),
        }
        sets = {name: self._judged(motions, real, held) for name, motions in judged.items() if motions}
        sets["real"] = {n: x for n, x in sets["real"].items() if n not in DISTANCES} | {"motion": real}
        another = list(np.roll(real, 1, axis=0))
        sets["shuffled"] = distances(another, real) | known_hits(another, held)
        sets |= {guess.__name__: distances([guess(motion) for motion in real], real) for guess in (still, constant)}
        return {f"{name}/{figure}": values for name, arrays in sets.items() for figure, values in arrays.items()}

    def _judged(self, motions: Sequence[Media], real: np.ndarray, held: Held) -> Arrays:
        """Return what is said of each motion, a row for each document; NaN where it cannot be."""
        errors = [position_errors(again(motion), motion) for motion in motions]
        return distances(motions, real) | known_hits(motions, held) | {
            "penetration": np.array([penetration(motion) for motion in motions]),
            "again": np.array([_mean(error) for error in errors]),
            "features": features(motions).numpy(),
        }  # fmt: skip

    def _remembered(self, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how near motions are to the nearest one of training."""
        sets = {"": own, "real": beside["real"], "codec": beside["codec"]}
        rows = {name: torch.from_numpy(arrays["features"]) for name, arrays in sets.items()}
        measures, figures = neighbours(rows, held.training_features("motions", features))
        found.measures |= measures
        found.beside |= figures

    def _named(self, name: str, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how often motions are right in something that the source of the data knows, as the event."""
        assert held.truths is not None, "hits are of truths"
        said = name.removeprefix("hit_")
        hits = {end: beside[key][name] for key, end in ENDS.items() if name in beside.get(key, {})}
        found.add_hits(said, own[name], hits, held.truths.chances.get(said))


def distances(motions: Sequence[Media], real: np.ndarray) -> Arrays:
    """Return how far motions are from the documents' own, `DISTANCES`, a row for each; NaN where nothing is there."""
    errors = [position_errors(*pair) for pair in zip(motions, real, strict=True)]
    hits = [happening(motion).hits for motion in real]
    return {
        "error": np.array([_mean(error) for error in errors]),
        "ends": np.array([_mean(error[-1]) for error in errors]),
        "error_second": np.array([_mean(e[:, SECOND]) if h else np.nan for e, h in zip(errors, hits, strict=True)]),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def features(motions: Sequence[Media]) -> Tensor:
    """Return float32 [B, T * bodies * 15]: the numbers of motions."""
    return torch.from_numpy(np.stack(motions).reshape(len(motions), -1).astype(np.float32))


def mean_of_known(values: np.ndarray) -> Measure:
    """Return the mean of one number for each item, of those that are no NaN."""
    known = np.isfinite(values)
    found = ratio_of(np.where(known, values, 0.0).tolist(), known.tolist())
    return replace(found, count=int(known.sum()))


def still(motion: np.ndarray) -> np.ndarray:
    """Return a motion in which all stays as it is at first."""
    return np.repeat(motion[:1], len(motion), axis=0)


def constant(motion: np.ndarray) -> np.ndarray:
    """Return a motion in which all centres go on as between the first two steps, and nothing turns."""
    guess = still(motion)
    guess[..., POSITION] += np.arange(len(motion))[:, None, None] * (motion[1] - motion[0])[:, POSITION]
    return guess
