"""Curves as data for templates/script.js, which draws them, and the plait at the head of the page."""

import math
from typing import Any

MOST_POINTS = 600
"""Longer series are averaged down to this many points."""
AXES = ("step", "tokens", "seconds")
SPEED = {
    "tokens_per_second": ("Tokens per second", "", 1),
    "memory_gb": ("Memory", "GB", 1),
    "loader_share": ("Time spent waiting for data", "%", 100),
}
"""Column to title, unit, and the factor from the column to the unit."""
OPTIMIZER = {"learning_rate": ("Learning rate", "", 1), "grad_norm": ("Gradient norm", "", 1)}


def chart_groups(rows: list[dict[str, Any]], modalities: list[str]) -> dict[str, list[dict]]:
    """Return the panels of the groups loss, speed, optimizer and other, from the rows of metrics.jsonl.

    A panel holds ``title``, ``unit``, ``modality`` ("" for none), ``note`` (what its curves cannot show: values that
    are not finite) and ``series``; a series holds ``name``, ``kind``
    (train, validation, plain), ``dash`` (its number among those of its kind), ``y`` and one list for each of AXES.
    """
    columns = list(dict.fromkeys(name for row in rows for name, v in row.items() if isinstance(v, int | float)))
    columns = [name for name in columns if name not in AXES]
    panels = {
        "loss": [_loss_panel(rows, columns, name) for name in modalities],
        "speed": [_panel(rows, c, *SPEED[c]) for c in SPEED if c in columns],
        "optimizer": [_panel(rows, c, *OPTIMIZER[c]) for c in OPTIMIZER if c in columns],
    }
    shown = {c for c in columns if c.startswith(("loss/", "val_loss/")) or c in SPEED or c in OPTIMIZER}
    panels["other"] = [_panel(rows, c, c, "", 1) for c in columns if c not in shown]
    return {group: [p for p in found if p["series"]] for group, found in panels.items()}


def modalities_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the modalities that have a loss, in order of appearance."""
    names = (name for row in rows for name in row)
    return list(dict.fromkeys(n.split("/")[-1] for n in names if n.startswith(("loss/", "val_loss/"))))


def _loss_panel(rows: list[dict], columns: list[str], modality: str) -> dict:
    names = {f"loss/{modality}": "training"} if f"loss/{modality}" in columns else {}
    validation = [c for c in columns if c.startswith("val_loss/") and c.split("/")[-1] == modality]
    names |= {c: " ".join(c.split("/")[1:-1]).replace("_", " ") or "validation" for c in validation}
    series = [_series(rows, column, name, "validation", validation.index(column)) if column in validation
              else _series(rows, column, name, "train") for column, name in names.items()]  # fmt: skip
    notes = [note for column, name in names.items() if (note := _not_finite(rows, column, name))]
    return {"title": modality, "unit": "", "modality": modality, "note": "; ".join(notes), "series": series}


def _panel(rows: list[dict], column: str, title: str, unit: str, factor: float) -> dict:
    series = [_series(rows, column, "", "plain")]
    for one in series:
        one["y"] = [y if y is None else y * factor for y in one["y"]]
    note = _not_finite(rows, column, "")
    return {"title": title, "unit": unit, "modality": "", "note": note, "series": [s for s in series if s["y"]]}


def _not_finite(rows: list[dict], column: str, name: str) -> str:
    """Return a sentence on the values of a column that are NaN or infinite, "" where none is."""
    logged = [row for row in rows if isinstance(row.get(column), int | float)]
    bad = [row for row in logged if not math.isfinite(row[column])]
    if not bad:
        return ""
    what = f"{name} is" if name else "it is"
    return f"{what} {bad[0][column]} at step {bad[0].get('step')}, not finite in {len(bad)} of {len(logged)} rows"


def _series(rows: list[dict], column: str, name: str, kind: str, dash: int = 0) -> dict:
    """Return one curve; a value that is not there or not finite is a gap (None) only where the row names it."""
    rows = [row for row in rows if column in row and isinstance(row.get("step"), int | float)]
    size = -(-len(rows) // MOST_POINTS) or 1
    buckets = [rows[i : i + size] for i in range(0, len(rows), size)]
    axes = {axis: [_mean(bucket, axis) for bucket in buckets] for axis in AXES}
    return {"name": name, "kind": kind, "dash": dash, "y": [_mean(bucket, column) for bucket in buckets], **axes}


def _mean(bucket: list[dict], column: str) -> float | None:
    values = [row[column] for row in bucket if isinstance(row.get(column), int | float) and math.isfinite(row[column])]
    return float(f"{sum(values) / len(values):.6g}") if values else None


def braid(num_strands: int, period: int = 132, height: int = 34) -> list[tuple[int, str, str]]:
    """Return one period of a plait as (strand, path of its gap, path of itself), the lowest first.

    The gap is drawn wider and in the colour of the page, so that a strand passes over those before it. A strand's own
    path reaches into its neighbours, so that no seam shows.
    """
    pieces = []
    steps = 28

    def path(times: list[float], phase: float) -> str:
        points = (
            f"{period * t / (2 * math.pi):.1f} {height / 2 + (height / 2 - 5) * math.sin(t + phase):.1f}" for t in times
        )
        return "M" + "L".join(points)

    for strand in range(num_strands):
        phase = 2 * math.pi * strand / num_strands
        for i in range(steps):
            start, stop = (2 * math.pi * t / steps for t in (i, i + 1))
            middle = (start + stop) / 2 + phase
            # at every crossing the depths have opposite signs; the cosine decides those of two opposite strands
            depth = math.sin(2 * middle) + 0.4 * math.cos(middle)
            reach = (stop - start) / 2
            gap = path([start, middle - phase, stop], phase)
            pieces.append((depth, strand, gap, path([start - reach, start, middle - phase, stop, stop + reach], phase)))
    return [piece[1:] for piece in sorted(pieces)]
