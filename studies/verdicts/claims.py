"""The paper's claims and some of our own, each with the rule by which figures decide it, written down before there are
figures.

A row measures one number: a figure of a study, or the geometric mean of several, over another one where the claim is a
comparison. Seeds are matched one by one, and every seed must lie on the claimed side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.common.errors import ConfigError, require, unknown
from plait.compare.results import Found
from plait.compare.shares import differences
from plait.compare.study import SPLITS
from plait.config.file import from_dict, read_yaml

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN = "reproduced", "not reproduced", "inconclusive", "not run yet"
VALUES = ("steps_ratio", "end_ratio", "time_of_a_step", "flops_of_a_step", "identical_towers",
          "share_difference")  # fmt: skip
LEAST_SEEDS = 2
MOST_INCONCLUSIVE = 3


@dataclass
class Figure:
    """One number that is measured."""

    study: str = ""
    """Name of a shipped study."""
    arm: str = ""
    modality: str = ""
    split: str = "training"
    share: str = ""
    """A share of tries that the study has (`StudyConfig.shares`)."""
    value: str = "steps_ratio"
    """steps_ratio and end_ratio as in results.json, for each seed; time_of_a_step and flops_of_a_step: of the arm over
    the one that it is matched with; share_difference: the arm's share of tries less that of the one that it is matched
    with, for each seed; identical_towers: the largest difference in float64 between a dense model and a mixture of
    copies of it."""

    def __post_init__(self):
        if self.value not in VALUES:
            raise ConfigError(unknown("claims: value", self.value, VALUES))
        needed = () if self.value == "identical_towers" else ("study", "arm")
        needed = (*needed, "modality") if self.value.endswith("_ratio") else needed
        needed = (*needed, "share") if self.value == "share_difference" else needed
        for name in needed:
            require(bool(getattr(self, name)), f"claims: {name}", getattr(self, name), f"named for {self.value}")


@dataclass
class Row:
    """One number and the side on which it must lie."""

    figure: str
    """What is measured, in words."""
    of: list[Figure]
    """Its figure, or several whose geometric mean is taken."""
    over: list[Figure] = field(default_factory=list)
    """What it is divided by."""
    above: float | None = None
    below: float | None = None
    """The claimed side: above, below, or between the two."""
    paper: str = ""
    """The paper's own number."""

    def __post_init__(self):
        require(bool(self.of), "claims: of", [], "at least one figure")
        require(self.above is not None or self.below is not None, f"claims: {self.figure!r}", "no bound",
                "above, below or both")  # fmt: skip
        figures = [*self.of, *self.over]
        require(len(figures) == 1 or all(f.value != "share_difference" for f in figures), f"claims: {self.figure!r}",
                "a difference of shares among others", "that difference alone")  # fmt: skip

    @property
    def rule(self) -> str:
        """The bound in words."""
        if self.above is None or self.below is None:
            return f"above {self.above:g}" if self.below is None else f"below {self.below:g}"
        return f"{self.above:g} to {self.below:g}"


@dataclass
class Claim:
    """One claim: reproduced if all of its rows are."""

    number: int
    claim: str
    rows: list[Row]
    decide: str = ""
    """What would decide it, where the figures do not."""
    tried: str = ""
    """What was tried to find out why it is not reproduced."""
    note: str = ""
    """What else a reader must know, whatever the verdict."""

    def __post_init__(self):
        require(bool(self.rows), f"claims: rows of claim {self.number}", [], "at least one figure")


@dataclass
class Claims:
    """A file of claims."""

    rules: list[str]
    """How verdicts are given, in words."""
    studies: list[str]
    """Shipped studies whose runs are shown, those of all figures among them."""
    claims: list[Claim]
    own: list[Claim] = field(default_factory=list)
    """Claims that are not the paper's, judged by the same rules."""

    def __post_init__(self):
        for claim in (*self.claims, *self.own):
            for figure in (f for row in claim.rows for f in (*row.of, *row.over) if f.study):
                if figure.study not in self.studies:
                    raise ConfigError(unknown(f"claims: study of claim {claim.number}", figure.study, self.studies))


def read_claims(path: Path) -> Claims:
    """Read a file of claims (raises ConfigError)."""
    return from_dict(Claims, read_yaml(path, "claims"), "claims")


@dataclass(frozen=True)
class Value:
    """A measured number; ``bound`` is 1 where the truth may be higher, -1 where it may be lower, None for both."""

    number: float
    bound: int | None = 0

    def lies(self, row: Row) -> bool | None:
        """Say whether it lies on the row's side; None where that cannot be said."""
        sides = [self._below(row.below), self._above(row.above)]
        return False if False in sides else None if None in sides else True

    def _below(self, edge: float | None) -> bool | None:
        if edge is None:
            return True
        is_below = self.number < edge
        certain = (0, -1) if is_below else (0, 1)
        return is_below if self.bound in certain else None

    def _above(self, edge: float | None) -> bool | None:
        if edge is None:
            return True
        is_above = self.number > edge
        certain = (0, 1) if is_above else (0, -1)
        return is_above if self.bound in certain else None


ALL_SEEDS = -1
"""The seed of a number that is the same for all."""


def judge(
    claims: list[Claim], studies: dict[str, Found], identical: Callable[[], float]
) -> dict[str, list[dict[str, Any]]]:
    """Return ``rows`` (claim, figure, paper, ours, low, high, seeds, verdict) and ``claims`` with their verdicts."""
    rows, verdicts = [], []
    for claim in claims:
        claim_rows = [_judge_row(row, studies, identical) for row in claim.rows]
        rows += [{"number": claim.number, "claim": claim.claim, **row} for row in claim_rows]
        row_verdicts = {row["verdict"] for row in claim_rows}
        # one failure decides; nothing else does before all has been run
        order = (NOT_REPRODUCED, NOT_RUN, INCONCLUSIVE, REPRODUCED)
        verdict = next(v for v in order if v in row_verdicts)
        verdicts.append({"number": claim.number, "claim": claim.claim, "verdict": verdict, "decide": claim.decide,
                         "tried": claim.tried, "note": claim.note})  # fmt: skip
    return {"rows": rows, "claims": verdicts}


def _judge_row(row: Row, studies: dict[str, Found], identical: Callable[[], float]) -> dict[str, Any]:
    values = _combined(row, studies, identical)
    numbers = [v.number for v in values.values()]
    seeds = len(values) if ALL_SEEDS not in values else 0
    bounds = {v.bound for v in values.values()}
    return {
        "figure": row.figure,
        "paper": row.paper,
        "ours": sum(numbers) / len(numbers) if numbers else None,
        "low": min(numbers, default=None),
        "high": max(numbers, default=None),
        "bound": "" if bounds <= {0} else "≥" if bounds <= {0, 1} else "≤" if bounds <= {0, -1} else "~",
        "seeds": seeds,
        "rule": row.rule,
        "verdict": _verdict(row, values) if _all_run(row, studies) else NOT_RUN,
    }


def _verdict(row: Row, values: dict[int, Value]) -> str:
    if not values:
        return NOT_RUN
    lies = {value.lies(row) for value in values.values()}
    if lies == {False}:
        verdict = NOT_REPRODUCED
    else:
        verdict = REPRODUCED if lies == {True} else INCONCLUSIVE
    return verdict if ALL_SEEDS in values or len(values) >= LEAST_SEEDS else INCONCLUSIVE


def _all_run(row: Row, studies: dict[str, Found]) -> bool:
    """Return whether all runs that a row is about are finished, those that its arms are matched with among them, and
    tried where it asks for a share of tries."""
    for figure in (f for f in (*row.of, *row.over) if f.study and f.value != "flops_of_a_step"):
        matched = studies[figure.study]
        arm = matched.study.config.arms[figure.arm]
        runs = [(name, seed) for name in (figure.arm, arm.against) for seed in arm.seeds]
        if any(run not in matched.curves for run in runs):
            return False
        tried = [(row["arm"], row["seed"]) for row in matched.records.scores if figure.share in row]
        if figure.share and not set(runs) <= set(tried):
            return False
    return True


def _combined(row: Row, studies: dict[str, Found], identical: Callable[[], float]) -> dict[int, Value]:
    """Return the row's number for each seed that all of its figures have."""
    above, below = ([_measured(f, studies, identical) for f in figures] for figures in (row.of, row.over))
    seeds = set.intersection(*(set(values) for values in (*above, *below)))
    combined = {}
    for seed in sorted(seeds):
        top, bottom = ([values[seed] for values in side] for side in (above, below))
        number = _geometric_mean([v.number for v in top])
        number /= _geometric_mean([v.number for v in bottom]) if bottom else 1.0
        bounds = {v.bound for v in top} | {None if v.bound is None else -v.bound for v in bottom}
        bounds -= {0}
        combined[seed] = Value(number, 0 if not bounds else bounds.pop() if len(bounds) == 1 else None)
    return combined


def _geometric_mean(numbers: list[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if len(numbers) > 1 else numbers[0]


def _measured(figure: Figure, studies: dict[str, Found], identical: Callable[[], float]) -> dict[int, Value]:
    if figure.value == "identical_towers":
        return {ALL_SEEDS: Value(identical())}
    matched = studies[figure.study]
    config, scores = matched.study.config, matched.records.scores
    if figure.arm not in config.arms:
        raise ConfigError(unknown(f"claims: arm of {figure.study!r}", figure.arm, config.arms))
    against, seeds = config.arms[figure.arm].against, config.arms[figure.arm].seeds
    if figure.value == "flops_of_a_step":
        row = next((r for r in matched.results["arms"] if r["arm"] == figure.arm), None)
        return {ALL_SEEDS: Value(row["flops_ratio"])} if row and row["flops_ratio"] else {}
    if figure.value == "time_of_a_step":
        times = {s: [matched.records.step_seconds(arm, s) for arm in (figure.arm, against)] for s in seeds}
        return {s: Value(arm_seconds / other) for s, (arm_seconds, other) in times.items() if arm_seconds and other}
    if figure.value == "share_difference":
        if figure.share not in config.shares:
            raise ConfigError(unknown(f"claims: share of {figure.study!r}", figure.share, config.shares))
        return {s: Value(number) for s, number in differences(figure.share, figure.arm, against, scores).items()}
    name = (figure.arm, figure.split, figure.modality)
    pair = next((p for p in matched.pairs if (p.arm, p.split, p.modality) == name), None)
    if pair is None:
        _check_names(figure, matched)
        return {}
    is_end = figure.value == "end_ratio"
    numbers = {s: (m.end_ratio, m.end_is_bound) if is_end else (m.ratio, m.is_bound) for s, m in pair.matches.items()}
    return {s: Value(number, int(bound)) for s, (number, bound) in numbers.items() if number is not None}


def _check_names(figure: Figure, matched: Found) -> None:
    """Raise a ConfigError where a figure was not measured because its modality or set has another name."""
    known = matched.study.base_config().model.modalities
    if figure.modality not in known:
        raise ConfigError(unknown(f"claims: modality of {figure.study!r}", figure.modality, known))
    splits = {*SPLITS, *(p.split for p in matched.pairs)}
    if matched.pairs and figure.split not in splits:
        raise ConfigError(unknown(f"claims: split of {figure.study!r}", figure.split, splits))
