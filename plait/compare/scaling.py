"""Scaling laws over the sizes that were run, and the saving that they imply.

A family (dense, MoT) has one final loss for each size and seed. Its law is a straight line in logarithms,

    log L = a - b log C,

with C the operations of the whole run. No irreducible loss is fitted: so few sizes cannot tell it from the slope. So b
is the slope of the range that was run, and what lies beyond it is marked as extrapolation. Intervals come from a
bootstrap of the residuals (Efron and Tibshirani, An Introduction to the Bootstrap, section 9.4) over all sizes and
seeds, so that both the noise of seeds and the misfit of the line count. Families with the same sizes and seeds draw
the same ones of them, as their runs are pairs on the same batches.

The saving is C'/C: the share of the first family's operations at which another one has the same loss by its law.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.common.errors import DataError
from plait.common.randomness import generator
from plait.compare.curves import TRAINING, VALIDATION
from plait.compare.records import Records

LEAST_SIZES = 3
DRAWS = 2000
"""Bootstrap draws."""
INTERVAL = (0.025, 0.975)
BEYOND = (1.0, 10.0, 100.0)
"""Where the saving is stated: at the largest run's operations, and at these multiples of it."""
LINE_POINTS = 9
"""Points of a law's line in the range that was run, and beyond."""


@dataclass(frozen=True)
class Law:
    """log L = a - b log C, and bootstrap draws of (a, b)."""

    a: float
    b: float
    draws: np.ndarray
    """[DRAWS, 2]"""
    least_flops: float
    most_flops: float

    def loss(self, flops: float) -> np.ndarray:
        """Return the loss at some operations: the fit's, then one for each draw [1 + DRAWS]."""
        return np.exp(self._all[:, 0] - self._all[:, 1] * math.log(flops))

    def flops(self, loss: np.ndarray) -> np.ndarray:
        """Return the operations at which each law has a loss [1 + DRAWS]; nan where it never falls."""
        falls = self._all[:, 1] > 0
        slope = np.where(falls, self._all[:, 1], np.nan)
        with np.errstate(over="ignore"):
            return np.exp((self._all[:, 0] - np.log(loss)) / slope)

    @property
    def _all(self) -> np.ndarray:
        return np.concatenate([[(self.a, self.b)], self.draws])


def fit(flops: Sequence[float], losses: Sequence[float], points: Sequence[tuple] = ()) -> Law:
    """Fit a law to final losses. Raises DataError for fewer than three sizes, or numbers that have no logarithm.

    Laws with the same ``points``, which say what each loss is of, draw the residuals of the same ones.
    """
    flops, losses = np.asarray(flops, np.float64), np.asarray(losses, np.float64)
    sizes = len(np.unique(flops))
    if sizes < LEAST_SIZES:
        raise DataError(f"scaling: {sizes} sizes were run, a law needs at least {LEAST_SIZES}")
    if not (np.isfinite(losses).all() and (losses > 0).all() and (flops > 0).all()):
        raise DataError("scaling: a law needs finite losses and operations above 0")
    x, y = np.log(flops), np.log(losses)
    design = np.stack([np.ones_like(x), -x], axis=1)
    solve = np.linalg.pinv(design)
    a, b = solve @ y
    residuals = y - design @ (a, b)
    # residuals of a fit of two numbers are smaller than the noise
    residuals *= math.sqrt(len(y) / (len(y) - 2))
    chosen = generator(0, f"bootstrap {list(points)}").integers(0, len(y), (DRAWS, len(y)))
    draws = (design @ (a, b) + residuals[chosen]) @ solve.T
    return Law(float(a), float(b), draws, float(flops.min()), float(flops.max()))


def fit_families(families: dict[str, list[str]], records: Records) -> dict[str, list[dict[str, Any]]]:
    """Return ``points``, ``fits``, ``lines`` and ``savings`` as rows, of what is finished.

    ``families`` are the arms of each, by name, the reference first. A family of which fewer than three sizes are
    finished has points and no fit.
    """
    rows = {"points": [], "fits": [], "lines": [], "savings": []}
    rows["points"] = [row for name, arms in families.items() for row in _points(name, arms, records)]
    keys = dict.fromkeys((row["split"], row["modality"]) for row in rows["points"])
    for split, modality in keys:
        laws = {}
        for name in families:
            points = [r for r in rows["points"] if (r["family"], r["split"], r["modality"]) == (name, split, modality)]
            if len({r["flops"] for r in points}) >= LEAST_SIZES:
                # runs of one size and seed saw the same batches, so what luck they had they had together
                drawn = [(families[name].index(r["arm"]), r["seed"]) for r in points]
                laws[name] = law = fit([r["flops"] for r in points], [r["loss"] for r in points], drawn)
                where = {"family": name, "split": split, "modality": modality}
                sizes = {"sizes": len({r["arm"] for r in points}), "points": len(points)}
                low, high = np.quantile(law.draws[:, 1], INTERVAL)
                rows["fits"].append(where | sizes | _interval("exponent", law.b, low, high))
                rows["lines"] += [where | row for row in _line(law)]
        reference = next(iter(families))
        if reference in laws:
            others = {name: law for name, law in laws.items() if name != reference}
            rows["savings"] += [{"family": name, "split": split, "modality": modality} | row
                                for name, law in others.items() for row in _savings(laws[reference], law)]  # fmt: skip
    return rows


def _points(family: str, arms: list[str], records: Records) -> list[dict[str, Any]]:
    rows = []
    runs = [run for run in records.curves if run[0] in arms and records.arm(run[0])]
    for arm, seed in sorted(runs, key=lambda run: (arms.index(run[0]), run[1])):
        row = records.arm(arm)
        for (split, modality), curve in records.curves[arm, seed].items():
            if split in (TRAINING, VALIDATION) and curve.losses:
                rows.append({"family": family, "arm": arm, "seed": seed, "split": split, "modality": modality,
                             "flops": row["flops_a_step"] * curve.steps[-1], "loss": curve.losses[-1]})  # fmt: skip
    return rows


def _line(law: Law) -> list[dict[str, Any]]:
    rows = []
    measured = np.geomspace(law.least_flops, law.most_flops, LINE_POINTS).tolist()
    beyond = np.geomspace(law.most_flops, BEYOND[1] * law.most_flops, LINE_POINTS).tolist()[1:]
    for flops in measured + beyond:
        loss = law.loss(flops)
        low, high = np.quantile(loss[1:], INTERVAL)
        rows.append({"flops": flops, **_interval("loss", loss[0], low, high),
                     "is_extrapolation": flops > law.most_flops * 1.001})  # fmt: skip
    return rows


def _savings(reference: Law, law: Law) -> list[dict[str, Any]]:
    rows = []
    for factor in BEYOND:
        flops = factor * reference.most_flops
        # each draw of one law meets the one of the same number of the other
        needed = law.flops(reference.loss(flops)) / flops
        # a law that does not fall never gets there, whatever it is given
        ends = np.quantile(np.where(np.isnan(needed), np.inf, needed)[1:], INTERVAL, method="nearest")
        inside = factor <= 1 and law.least_flops <= needed[0] * flops <= law.most_flops
        rows.append(
            {"flops": flops, "beyond": factor, **_interval("share", needed[0], *ends), "is_extrapolation": not inside}
        )
    return rows


def _interval(name: str, value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    def plain(x) -> float | None:
        return float(x) if x is not None and math.isfinite(x) else None

    return {name: plain(value), "low": plain(low), "high": plain(high)}
