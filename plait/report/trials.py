"""Trials of a model on a page: how often something happens, by who acted, and some episodes to watch.

What the tables are, the trials say themselves (`plait.prepare.raw.TrialTable`, in a file of the run's folder).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.common.errors import DataError
from plait.evaluate.suite import FOLDER, TRIED
from plait.prepare.raw import TABLES, TRIALS, TrialRow, TrialTable
from plait.report.media import Media, clean
from plait.report.numbers import SPACE, percent, plain
from plait.report.scores import tenths
from plait.train.metrics import read_jsonl

ENDS = ("_low", "_high", "_count")
"""How the figures end that belong to a share."""


def trials(run: Path, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return ``tables``, each with ``rows`` and, by task, ``parts``; ``episodes`` to watch, and whether they are
    ``broad``: much wider than high."""
    folder = run / FOLDER / TRIED
    media, path = Media(folder), folder / TRIALS
    episodes: list[dict[str, Any]] = [
        {"title": clean(record.get("title", "")), "said": clean(record.get("said", "")),
         "success": bool(record.get("success")), "view": media.view({"file": record.get("file", "")})}
        for record in (read_jsonl(path) if path.is_file() else [])
    ]  # fmt: skip
    tables = [_shown(table, numbers) for table in _tables(folder / TABLES)]
    return {
        "tables": [table for table in tables if table["rows"]],
        "episodes": episodes,
        "broad": any(e["view"].get("width", 0) > 2 * e["view"].get("height", 0) for e in episodes),
        "seconds": f"{1 / numbers['seconds_per_action']:.0f}" if numbers.get("seconds_per_action") else "",
    }


def _tables(path: Path) -> list[TrialTable]:
    if not path.is_file():
        return []
    try:
        values = json.loads(path.read_text("utf-8"))
        return [TrialTable(**value | {"rows": tuple(TrialRow(**row) for row in value["rows"])}) for value in values]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"report: {str(path)!r} is corrupt, run `plait evaluate` again") from None


def _shown(table: TrialTable, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return a table with its rows, those of its tasks, and its words."""
    heads = {name: clean(getattr(table, name)) for name in ("note", "who", "share", "count", "second")}
    begins = f"{table.parts}/"
    parts = sorted(name for name in numbers if name.startswith(begins) and not name.endswith(ENDS))
    return heads | {
        "rows": [_row(row, table.unit, numbers) for row in table.rows if row.figure in numbers],
        "parts": [_row(TrialRow(name.removeprefix(begins), name), "", numbers) for name in parts if table.parts],
    }


def _row(row: TrialRow, unit: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return what a row says: the share, its interval, of how many episodes, and both for a drawing; and the second
    figure with its interval."""
    low, high, count = (numbers.get(row.figure + end) for end in ENDS)
    second, least, most = (numbers.get(row.second + end) for end in ("", *ENDS[:2]))
    return {
        "who": clean(row.who), "value": percent(numbers[row.figure]), "share": numbers[row.figure],
        "low": low, "high": high,
        "interval": f"{percent(low)} to {percent(high)}" if low is not None and high is not None else "",
        "count": plain(count) if count is not None else "",
        "second": f"{tenths(second)}{SPACE}{clean(unit)}" if second is not None else "",
        "second_interval": f"{tenths(least)} to {tenths(most)}" if least is not None and most is not None else "",
    }  # fmt: skip
