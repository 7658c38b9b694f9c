"""`plait compare --from-logs`: step matching of runs that any trainer logged, as JSON lines (docs/compare.md)."""

from pathlib import Path

from plait.compare.curves import Curve, Key, curves_of
from plait.compare.step_matching import match
from plait.compare.tables import Table, bounded
from plait.errors import DataError
from plait.train.metrics import read_jsonl


def compare_logs(paths: list[str], *, warmup: int = 0) -> Table:
    """Match every log with the first one, on all curves that both have. Raises DataError for logs that do not do."""
    if len(paths) < 2:
        raise DataError(f"--from-logs: {len(paths)} logs were given, it must be at least two, the reference first")
    reference, *others = [(Path(path), read_log(path)) for path in paths]
    rows = []
    for path, curves in others:
        common = [key for key in reference[1] if key in curves]
        if not common:
            raise DataError(
                f"--from-logs: {str(path)!r} has no curve of {str(reference[0])!r}, which has "
                f"{', '.join(sorted(map('/'.join, reference[1])))}"
            )
        rows += [_row(path, key, reference[1][key], curves[key], warmup) for key in common]
    header = ["log", "set", "modality", "steps", "at the end", "reverse", "levels", "censored", "early"]
    return f"Against {reference[0]}", "", header, rows


def read_log(path: str | Path) -> dict[Key, Curve]:
    """Read the curves of a log: rows with ``step``, and ``val_loss/<set>/<modality>`` or ``loss/<modality>``."""
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int | float):
            raise DataError(f"{str(path)!r}, row {number}: it has no number 'step'")
    steps = [row["step"] for row in rows]
    if sorted(steps) != steps:
        raise DataError(f"{str(path)!r}: its steps do not increase")
    curves = {key: curve for key, curve in curves_of(rows).items() if curve.losses}
    if not curves:
        raise DataError(f"{str(path)!r}: it has neither 'val_loss/<set>/<modality>' nor 'loss/<modality>'")
    for (split, modality), curve in curves.items():
        if len(set(curve.steps)) < len(curve.steps):
            raise DataError(f"{str(path)!r}: it has two losses of {split}/{modality} at one step")
    return curves


def _row(path: Path, key: Key, reference: Curve, other: Curve, warmup: int) -> list[str]:
    there = match(reference.steps, reference.losses, other.steps, other.losses, warmup=warmup)
    back = match(other.steps, other.losses, reference.steps, reference.losses, warmup=warmup)
    return [str(path), key[0].replace("_", " "), key[1], bounded(there.ratio, there.is_bound),
            bounded(there.end_ratio, there.end_is_bound), bounded(back.ratio, back.is_bound),
            str(there.points), str(there.censored), str(there.early)]  # fmt: skip
