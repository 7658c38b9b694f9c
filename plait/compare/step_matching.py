"""Step matching: which share of another run's steps a run needs for the same loss. NumPy alone.

The paper (arXiv 2411.04996) prints this share but no formula. Here:

1. Both curves are replaced by their running minima.
2. The reference names a level at every evaluation step t after the warm-up that sets a new minimum; L(t) is that level.
   (A step that sets none names nothing new: with it, a noisy run would seem faster than itself.)
3. u(t) is the first step, linearly interpolated between evaluations, at which the other run reaches L(t). A level that
   it never reaches is censored: all that is known is that u(t) is beyond its last step.
4. s = sum(t u) / sum(t^2), the slope through the origin. Censored levels count with the other run's last step, so that
   s is then a lower bound, and the reverse match says from the other side how far apart the two are.
5. A level that the other run has passed before its first evaluation is left out, as nothing is known of its u.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Match:
    """What one run needs of another one's steps. Ratios are None where no level could be matched."""

    ratio: float | None
    """s: the slope of u over t."""
    is_bound: bool
    """Whether some level was censored, so that ``ratio`` is at least what is said."""
    end_ratio: float | None
    """u(T) / T at the last level T of the reference."""
    end_is_bound: bool
    """Whether that last level was censored."""
    points: int
    """Levels that count, censored ones included."""
    censored: int
    """Levels that were never reached."""
    early: int
    """Levels that were passed before the first evaluation, and left out."""
    steps: list[float] = field(default_factory=list)
    """t of every level [points]."""
    needed: list[float] = field(default_factory=list)
    """u(t) of every level [points], the other run's last step where censored."""
    reached: list[bool] = field(default_factory=list)
    """Whether the level was reached [points]."""


def match(
    steps: Sequence[float],
    losses: Sequence[float],
    other_steps: Sequence[float],
    other_losses: Sequence[float],
    *,
    warmup: float = 0,
) -> Match:
    """Match a run (``other``) with the reference (``steps``, ``losses``), whose first ``warmup`` steps name no level.

    Steps must increase; the two runs may be evaluated at different ones. Losses that are not finite are left out.
    Raises ValueError where the lengths differ, steps do not increase, or a run has no finite loss.
    """
    t, level = _levels(*_checked(steps, losses), warmup)
    u_steps, u_losses = _checked(other_steps, other_losses)
    lowest = np.minimum.accumulate(u_losses)
    known = level <= lowest[0]
    early = int((~known).sum())
    t, level = t[known], level[known]
    reached = level >= lowest[-1]
    needed = np.where(reached, _first_reached(u_steps, lowest, level), u_steps[-1])
    if not len(t):
        return Match(None, False, None, False, 0, 0, early)
    return Match(
        ratio=float((t * needed).sum() / (t * t).sum()),
        is_bound=not reached.all(),
        end_ratio=float(needed[-1] / t[-1]),
        end_is_bound=not reached[-1],
        points=len(t),
        censored=int((~reached).sum()),
        early=early,
        steps=t.tolist(),
        needed=needed.tolist(),
        reached=reached.tolist(),
    )


def _checked(steps: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    at, values = np.asarray(steps, np.float64), np.array(losses, np.float64)
    if at.shape != values.shape or at.ndim != 1:
        raise ValueError(f"a curve needs one loss a step, not {values.shape} for {at.shape}")
    if (np.diff(at) <= 0).any():
        raise ValueError("the steps of a curve must increase")
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("a curve needs at least one finite loss")
    return at[finite], values[finite]


def _levels(steps: np.ndarray, losses: np.ndarray, warmup: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that set a new minimum after the warm-up, and the minima; step 0 can name no share."""
    lowest = np.minimum.accumulate(losses)
    is_new = np.ones(len(steps), bool)
    is_new[1:] = lowest[1:] < lowest[:-1]
    chosen = is_new & (steps > warmup) & (steps > 0)
    return steps[chosen], lowest[chosen]


def _first_reached(steps: np.ndarray, lowest: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where a falling curve, linear between its points, first comes down to each level.

    Levels at or below its start and not below its end; others get a step without a meaning.
    """
    after = np.minimum(np.searchsorted(-lowest, -level, side="left"), len(steps) - 1)  # the first point at the level
    before = np.maximum(after - 1, 0)
    fall = lowest[before] - lowest[after]
    share = np.divide(lowest[before] - level, fall, out=np.zeros_like(level), where=fall > 0)
    return steps[before] + share * (steps[after] - steps[before])


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, lowest, highest. ``is_bound`` where some seed gives a lower bound only."""

    mean: float
    low: float
    high: float
    seeds: int
    is_bound: bool = False

    @classmethod
    def of(cls, values: Sequence[float | None], bounds: Sequence[bool] = ()) -> "Spread | None":
        """Return the spread of the values that are there; None where none is."""
        present = [v for v in values if v is not None]
        if not present:
            return None
        return cls(float(np.mean(present)), float(min(present)), float(max(present)), len(present), any(bounds))

    def times(self, factor: float | None) -> "Spread | None":
        """Return the spread of all values times a positive number; None where that is not known."""
        if factor is None:
            return None
        return Spread(self.mean * factor, self.low * factor, self.high * factor, self.seeds, self.is_bound)
