"""`plait compare --from-logs`: step matching of runs that any trainer logged, as JSON lines (docs/compare.md)."""

import itertools
import os
import reprlib
import statistics
from pathlib import Path
from typing import Any

from plait.common.errors import DataError, printable
from plait.compare.curves import LOSS, TRAINING, VAL_LOSS, VALIDATION, Curve, Key, curves_of, is_finite, training_steps
from plait.compare.records import Records
from plait.compare.results import NOTHING, Matched, match_curves, match_row, write_results
from plait.compare.study_charts import charts
from plait.compare.study_page import write_study_page
from plait.config.bounds import Bounds, as_number
from plait.train.metrics import read_metrics
from plait.web.chart_files import draw_figures

LARGEST = 1e15
"""Steps and losses beyond it are mistakes, and no figure could show them."""


def match_logs(paths: list[str], *, warmup: int = 0) -> Matched:
    """Match every log with the first one, on all curves that both have.

    Training losses are means over as many steps in all logs, as a mean over fewer has more noise, and so lower minima.
    Raises DataError for logs that do not do.
    """
    if len(paths) < 2:
        raise DataError(f"--from-logs: {len(paths)} logs were given, it must be at least two, the reference first")
    warmup = as_number(warmup, int, "--warmup", Bounds(at_least=0))
    logs = [read_log(path) for path in paths]
    every = max(map(_spacing, logs))
    names = _short_names(paths)
    curves = {name: curves_of(rows, every) for name, rows in zip(names, logs, strict=True)}
    first, *others = names
    pairs = []
    for name, path in zip(others, paths[1:], strict=True):
        common = [key for key in curves[first] if _is_common(key, curves[first], curves[name])]
        if not common:
            raise DataError(
                f"--from-logs: {path!r} has no curve of {paths[0]!r}, it has {_names(curves[name])}, not "
                f"{_names(curves[first])}"
            )
        pairs += [
            match_curves(name, first, key, {0: (curves[name][key], curves[first][key])}, warmup) for key in common
        ]
    if not any(match.points for pair in pairs for match in pair.matches.values()):
        raise DataError(f"--from-logs: no loss after the warm-up of {warmup} steps can be matched, log more points")
    modalities = dict.fromkeys(modality for log_curves in curves.values() for _, modality in log_curves)
    results = NOTHING | {
        "study": "logs",
        "about": f"Which share of the steps of {first} does another run need for the same loss?",
        "warmup_steps": warmup,
        "logs": names,
        "matches": [match_row(pair, Records()) for pair in pairs],
    }
    runs = {(name, 0): log_curves for name, log_curves in curves.items()}
    facts = f"{len(paths)} logs · the first {warmup:,} steps are ignored"
    return Matched(names, dict.fromkeys(modalities, ""), runs, pairs, results, facts)


def write_match(matched: Matched, folder: Path) -> Path:
    """Write results.json, results.md, the figures and logs.html into a folder, and return the page."""
    write_results(matched, folder)
    drawn = charts(matched)
    draw_figures(drawn, folder)
    return write_study_page(matched, drawn, folder / "logs.html")


def _short_names(paths: list[str]) -> list[str]:
    """Return what tells the logs apart: their paths from the folder that they share, numbered where one comes twice."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    names: list[str] = []
    for number, path in enumerate(paths, start=1):
        name = printable(os.path.relpath(path, shared).removesuffix(".jsonl"))
        while name in names:
            name = f"{name} ({number})"
        names.append(name)
    return names


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a log: ``step``, and ``val_loss/<set>/<modality>`` or ``loss/<modality>``."""
    rows = [{printable(name): value for name, value in row.items()} for row in read_metrics(path)]
    before, seen = 0, set()
    for number, row in enumerate(rows, start=1):
        where, step = f"{str(path)!r}, row {number}", row.get("step")
        if not is_finite(step) or not 0 <= step <= LARGEST:
            known = f", but {reprlib.repr(step)}" if step else ""
            raise DataError(f"{where}: it has no number 'step' from 0 to {LARGEST:.0e}{known}")
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
    if is_finite(value) and abs(value) > LARGEST:
        raise DataError(f"{where}: {name!r} is {reprlib.repr(value)}, it must be at most {LARGEST:.0e}")


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
