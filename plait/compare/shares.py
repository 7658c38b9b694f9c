"""Shares of tries, such as how often a model that acts succeeds: all seeds together, and one arm against another.

A study names them (`StudyConfig.shares`): figures of `plait evaluate` with ``<name>_count``, the number of tries,
beside. Every run does the same tries, so those of all seeds are counted together, with Wilson's interval. An arm is
compared with the one that it is matched with in pairs, over the same tries of the same seed: those of each group apart,
such as a robot's tasks, where the figure has groups (``<name>/<group>``). The interval of the difference resamples the
pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.common.randomness import generator
from plait.compare.step_matching import Spread
from plait.evaluate.measures import wilson

DRAWS = 2000
"""Resamples of the pairs."""
INTERVAL = (0.025, 0.975)

Scores = Sequence[Mapping[str, Any]]
"""One row an evaluated run, as results.json has them: arm, seed, and figures."""


@dataclass(frozen=True)
class Tries:
    """How many of some tries are hits."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        return self.hits / self.count


def tries(row: Mapping[str, Any], name: str) -> Tries | None:
    """Return what a run's row says of a share; None where it was not measured, or nothing was tried."""
    share, count = row.get(name), row.get(count_of(name))
    return Tries(round(share * count), int(count)) if share is not None and count else None


def count_of(name: str) -> str:
    """Return the name of the figure that says how many tries a share is of."""
    return f"{name}_count"


def figure_of(name: str, group: str) -> str:
    """Return the name of the figure of a share in a group of tries; in all of them where the group is ""."""
    return f"{name}/{group}" if group else name


def groups(rows: Scores, name: str) -> list[str]:
    """Return the groups of tries that some row has, in order."""
    prefix = f"{name}/"
    names = dict.fromkeys(key for row in rows for key in row if key.startswith(prefix) and count_of(key) in row)
    return [key.removeprefix(prefix) for key in names]


def share_rows(names: Iterable[str], arms: Iterable[str], scores: Scores) -> list[dict[str, Any]]:
    """Return one row for each share, group ("": all) and arm: mean over seeds, and all tries together."""
    rows = []
    for name in names:
        for group in ["", *groups(scores, name)]:
            for arm in arms:
                by_seed = [t for row in scores if row["arm"] == arm and (t := tries(row, figure_of(name, group)))]
                spread = Spread.of([t.share for t in by_seed])
                if spread:
                    hits, count = sum(t.hits for t in by_seed), sum(t.count for t in by_seed)
                    low, high = wilson(hits / count, count)
                    rows.append({"share": name, "group": group, "arm": arm, "mean": spread.mean, "low": spread.low,
                                 "high": spread.high, "seeds": spread.seeds, "hits": hits, "tries": count,
                                 "interval_low": low, "interval_high": high})  # fmt: skip
    return rows


def difference_rows(names: Iterable[str], against: Mapping[str, str], scores: Scores) -> list[dict[str, Any]]:
    """Return one row for each share and arm that is matched with another one: how much larger its share is.

    ``against`` says with which one each arm is matched.
    """
    rows = []
    for name in names:
        for arm, other in against.items():
            by_seed = differences(name, arm, other, scores)
            spread = Spread.of([*by_seed.values()])
            if spread:
                paired = _pairs(name, arm, other, scores)
                low, high = _interval(paired)
                rows.append({"share": name, "arm": arm, "against": other, "mean": spread.mean, "low": spread.low,
                             "high": spread.high, "seeds": spread.seeds, "interval_low": low, "interval_high": high,
                             "pairs": len(paired), "better": sum(a.hits > b.hits for a, b in paired),
                             "worse": sum(a.hits < b.hits for a, b in paired)})  # fmt: skip
    return rows


def differences(name: str, arm: str, other: str, scores: Scores) -> dict[int, float]:
    """Return by seed how much larger an arm's share is than another one's, of the seeds in which both did as much."""
    found = {}
    for seed, a, b in _both(arm, other, scores):
        of_a, of_b = tries(a, name), tries(b, name)
        if of_a and of_b and of_a.count == of_b.count:
            found[seed] = of_a.share - of_b.share
    return found


def _both(arm: str, other: str, scores: Scores) -> list[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    """Return the rows of the seeds of which both arms were evaluated; nothing for an arm and itself."""
    of_arm, of_other = ({row["seed"]: row for row in scores if row["arm"] == name} for name in (arm, other))
    return [(seed, of_arm[seed], of_other[seed]) for seed in sorted(of_arm.keys() & of_other.keys()) if arm != other]


def _pairs(name: str, arm: str, other: str, scores: Scores) -> list[tuple[Tries, Tries]]:
    """Return the tries of both arms for each seed and group."""
    paired = []
    for _, a, b in _both(arm, other, scores):
        figures = [figure_of(name, group) for group in groups([a, b], name) or [""]]
        both = [(tries(a, figure), tries(b, figure)) for figure in figures]
        paired += [(x, y) for x, y in both if x and y and x.count == y.count]
    return paired


def _interval(paired: Sequence[tuple[Tries, Tries]]) -> tuple[float | None, float | None]:
    """Return the middle 95% of the difference over resamples of the pairs; None for fewer than two."""
    if len(paired) < 2:
        return None, None
    more = np.array([a.hits - b.hits for a, b in paired])
    counts = np.array([a.count for a, _ in paired])
    chosen = generator(0, "bootstrap of shares").integers(0, len(paired), (DRAWS, len(paired)))
    low, high = np.quantile(more[chosen].sum(1) / counts[chosen].sum(1), INTERVAL)
    return float(low), float(high)
