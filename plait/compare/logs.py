"""`plait compare --from-logs`: step matching of runs that any trainer logged, as JSON lines (docs/compare.md)."""

import itertools
import reprlib
import statistics
from pathlib import Path
from typing import Any

from plait.compare.curves import LOSS, TRAINING, VAL_LOSS, VALIDATION, Curve, Key, curves_of, is_finite, training_steps
from plait.compare.step_matching import match
from plait.compare.tables import Table, bounded
from plait.errors import DataError, require
from plait.train.metrics import read_jsonl


def compare_logs(paths: list[str], *, warmup: int = 0) -> Table:
    """Match every log with the first one, on all curves that both have.

    Training losses are means over as many steps in all logs, as a mean over fewer has more noise, and so lower minima.
    Raises DataError for logs that do not do.
    """
    if len(paths) < 2:
        raise DataError(f"--from-logs: {len(paths)} logs were given, it must be at least two, the reference first")
    require(warmup >= 0, "--warmup", warmup, "at least 0")
    logs = [(path, read_log(path)) for path in paths]
    every = max(_spacing(rows) for _, rows in logs)
    reference, *others = [(path, curves_of(rows, every)) for path, rows in logs]
    rows = []
    for path, curves in others:
        common = [key for key in reference[1] if _is_common(key, reference[1], curves)]
        if not common:
            raise DataError(
                f"--from-logs: {path!r} has no curve of {reference[0]!r}, it has {_names(curves)}, not "
                f"{_names(reference[1])}"
            )
        rows += [_row(path, key, reference[1][key], curves[key], warmup) for key in common]
    if all(row[LEVELS] == "0" for row in rows):
        raise DataError(f"--from-logs: no loss after the warm-up of {warmup} steps can be matched, log more points")
    header = ["log", "set", "modality", "steps", "at the end", "reverse", "levels", "censored", "early"]
    return f"Against {reference[0]}", "", header, rows


LEVELS = 6
"""The column of the levels that count."""


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a log: ``step``, and ``val_loss/<set>/<modality>`` or ``loss/<modality>``."""
    rows = read_jsonl(path)
    before, seen = 0, set()
    for number, row in enumerate(rows, start=1):
        where, step = f"{str(path)!r}, row {number}", row.get("step")
        if not is_finite(step) or step < 0:
            raise DataError(f"{where}: it has no number 'step' of at least 0" + (f", but {step!r}" if step else ""))
        if step < before:
            raise DataError(f"{where}: step {step} comes after {before}, but steps may not fall")
        before = step
        for name, value in row.items():
            _check_loss(where, name, value)
            if name.startswith(VAL_LOSS) and (step, name) in seen:
                raise DataError(f"{where}: it is the second {name!r} of step {step}")
            seen.add((step, name))
    if not any(is_finite(value) for row in rows for name, value in row.items() if name.startswith((LOSS, VAL_LOSS))):
        raise DataError(f"{str(path)!r}: it has neither 'val_loss/<set>/<modality>' nor 'loss/<modality>'")
    return rows


def _check_loss(where: str, name: str, value: Any) -> None:
    """Raise a DataError for a loss that has another name, or is no number."""
    if not name.startswith((LOSS, VAL_LOSS)):
        return
    slashes = 2 if name.startswith(VAL_LOSS) else 1
    if name.count("/") < slashes or "" in name.split("/") or (slashes == 1 and name.count("/") > 1):
        form = "val_loss/<set>/<modality>" if slashes == 2 else "loss/<modality>"
        raise DataError(f"{where}: {name!r} is not of the form {form!r}")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DataError(f"{where}: {name!r} is {reprlib.repr(value)}, it must be a number, or null for none")


def _spacing(rows: list[dict[str, Any]]) -> float:
    """Return the steps between the points of a log's own training curve."""
    steps = training_steps(rows)
    return statistics.median(b - a for a, b in itertools.pairwise(steps)) if len(steps) > 1 else 0


def _is_common(key: Key, reference: dict[Key, Curve], other: dict[Key, Curve]) -> bool:
    """Return whether both have losses of a curve; a mean of validation sets is one where both have the same sets."""
    if not all(key in curves and curves[key].losses for curves in (reference, other)):
        return False
    sets = [{split for split, modality in curves if modality == key[1]} - {TRAINING} for curves in (reference, other)]
    return key[0] != VALIDATION or sets[0] == sets[1]


def _names(curves: dict[Key, Curve]) -> str:
    return ", ".join(sorted("/".join(key) for key, curve in curves.items() if curve.losses)) or "nothing"


def _row(path: str, key: Key, reference: Curve, other: Curve, warmup: int) -> list[str]:
    there = match(reference.steps, reference.losses, other.steps, other.losses, warmup=warmup)
    back = match(other.steps, other.losses, reference.steps, reference.losses, warmup=warmup)
    return [path, key[0].replace("_", " "), key[1], bounded(there.ratio, there.is_bound),
            bounded(there.end_ratio, there.end_is_bound), bounded(back.ratio, back.is_bound),
            str(there.points), str(there.censored), str(there.early)]  # fmt: skip
