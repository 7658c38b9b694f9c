"""The charts of a run, from the rows of metrics.jsonl, and the plait at the head of the page."""

import math
from collections.abc import Sequence
from typing import Any

from plait.web.charts import NEUTRAL, Chart, Panel, Series

MOST_POINTS = 600
"""Longer series are averaged down to this many points."""
AXES = ["step", "tokens", "seconds"]
SPEED = {
    "tokens_per_second": ("Tokens per second", "", 1),
    "memory_gb": ("Memory", "GB", 1),
    "loader_share": ("Time spent waiting for data", "%", 100),
}
"""Column to title, unit, and the factor from the column to the unit."""
MADE = "made/"
"""What stands before the names of figures that evaluations during training log."""
SCORES = {
    "caption_cider": "Captions of images: CIDEr-D",
    "caption_object_accuracy": "Captions of images: the right thing",
    "caption_speech_wer": "Transcripts: word error rate",
    "image_kid": "Images: KID x 1,000",
    "image_precision": "Images: precision",
    "image_recall": "Images: recall",
    "image_object_accuracy": "Images: the right thing",
    "speech_recognised": "Speech: told by a recogniser",
}
"""Figures of evaluations during training that have a curve (train.evaluate_every), by the names of `plait evaluate`."""
OPTIMIZER = {"learning_rate": ("Learning rate", "", 1), "grad_norm": ("Gradient norm", "", 1)}


def run_charts(rows: list[dict[str, Any]], modalities: list[str], units: str = "") -> dict[str, Chart]:
    """Return the charts loss, speed, optimizer and other, those that have curves, from the rows of metrics.jsonl.

    ``modalities`` give the colours, ``units`` says what losses are measured in. What is not finite is a gap, and said.
    """
    columns = list(dict.fromkeys(name for row in rows for name, v in row.items() if isinstance(v, int | float)))
    columns = [name for name in columns if name not in AXES]
    made = {f"{MADE}{name}": title for name, title in SCORES.items()}
    shown = {c for c in columns if c.startswith(("loss/", "val_loss/", MADE)) or c in SPEED or c in OPTIMIZER}
    note = "; ".join(filter(None, ["Faint while training, strong on held-out data", units]))
    panels = {
        "loss": [_loss_panel(rows, columns, name, colour) for colour, name in enumerate(modalities)],
        "scores": [_panel(rows, c, made[c], "", 1) for c in made if c in columns],
        "speed": [_panel(rows, c, *SPEED[c]) for c in SPEED if c in columns],
        "optimizer": [_panel(rows, c, *OPTIMIZER[c]) for c in OPTIMIZER if c in columns],
        "other": [_panel(rows, c, c, "", 1) for c in columns if c not in shown],
    }
    titles = {"loss": "Loss of each modality", "scores": "What it makes of held-out documents", "speed": "Speed",
              "optimizer": "Optimizer", "other": "Other curves"}  # fmt: skip
    charts = {}
    for name, group_panels in panels.items():
        drawn = [panel for panel in group_panels if panel.series]
        about, is_loss = (note, True) if name == "loss" else ("", False)
        if drawn:
            charts[name] = Chart(f"{name}_curves", titles[name], titles[name], about, drawn, AXES, is_loss)
    return charts


def modalities_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the modalities that have a loss, in order of appearance."""
    names = (name for row in rows for name in row)
    return list(dict.fromkeys(n.split("/")[-1] for n in names if n.startswith(("loss/", "val_loss/"))))


def _loss_panel(rows: list[dict], columns: list[str], modality: str, colour: int) -> Panel:
    training, series, notes = f"loss/{modality}", [], []
    validation = [c for c in columns if c.startswith("val_loss/") and c.split("/")[-1] == modality]
    names = {training: "training"} if training in columns else {}
    names |= {c: " ".join(c.split("/")[1:-1]).replace("_", " ") or "validation" for c in validation}
    for column, name in names.items():
        is_training = column == training
        dash = 0 if is_training else validation.index(column)
        series.append(_series(rows, column, name, 1, colour, dash=dash, faint=is_training))
        notes += [_not_finite(rows, column, name)]
    return Panel(modality, "step", "", series, note="; ".join(filter(None, notes)))


def _panel(rows: list[dict], column: str, title: str, unit: str, factor: float) -> Panel:
    series = _series(rows, column, "", factor, NEUTRAL)
    values = [y for y in series.y if math.isfinite(y)]
    low, high = min(values, default=0), max(values, default=0)
    from_zero = [0.0, 1.06 * high] if low >= 0 < high else None
    return Panel(
        title, "step", unit, [series] if series.y else [], y_range=from_zero, note=_not_finite(rows, column, "")
    )


def _not_finite(rows: list[dict], column: str, name: str) -> str:
    """Return a sentence on the values of a column that are NaN or infinite, "" where none is."""
    logged = [row for row in rows if isinstance(row.get(column), int | float)]
    bad = [row for row in logged if not math.isfinite(row[column])]
    if not bad:
        return ""
    what = f"{name} is" if name else "it is"
    return f"{what} {bad[0][column]} at step {bad[0].get('step')}, not finite in {len(bad)} of {len(logged)} rows"


def _series(
    rows: list[dict], column: str, name: str, factor: float, colour: int, *, dash: int = 0, faint: bool = False
) -> Series:
    """Return one curve; a value that is not there or not finite is a gap (NaN) only where the row names it."""
    rows = [row for row in rows if column in row and isinstance(row.get("step"), int | float)]
    size = -(-len(rows) // MOST_POINTS) or 1
    buckets = [rows[i : i + size] for i in range(0, len(rows), size)]
    x, *others = ([_mean(bucket, axis) for bucket in buckets] for axis in AXES)
    y = [factor * _mean(bucket, column) for bucket in buckets]
    along: dict[str, Sequence[float]] = dict(zip(AXES[1:], others, strict=True))
    return Series(name, x, y, "line", colour, dash=dash, faint=faint, along=along)


def _mean(bucket: list[dict], column: str) -> float:
    values = [row[column] for row in bucket if isinstance(row.get(column), int | float) and math.isfinite(row[column])]
    return float(f"{sum(values) / len(values):.6g}") if values else math.nan


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
