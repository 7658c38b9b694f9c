"""The table of the quickstarts over several seeds: mean and range of every figure, beside its goal."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Kept = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""For each setting and seed, what is kept of the run's summary.json."""

SETTINGS = ("mixed", "transfusion", "chameleon-speech")

PERCENT, RATIO, WHOLE, TENTHS = "{:.1%}", "{:.2f}", "{:,.0f}", "{:.1f}"

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("image to text: right object", "caption_object_accuracy", PERCENT, "90% or more"),
    ("whole caption, one thing", "caption_exact_accuracy", PERCENT, "85% or more"),
    ("relation of two things", "caption_relation_accuracy", PERCENT, "60% or more"),
    (
        "text to image: right object, 400-way choice",
        "image_object_accuracy",
        PERCENT,
        "50% or more; chameleon-speech 15%",
    ),
    ("the codec's round trip", "image_object_codec", PERCENT, ""),
    ("the nearest training image", "image_object_nearest", PERCENT, ""),
    (
        "right object, over the codec's round trip",
        "image_object_accuracy / image_object_codec",
        PERCENT,
        "60% or more; chameleon-speech none",
    ),
    ("right background", "image_ground_accuracy", PERCENT, "95% or more"),
    ("Fréchet distance", "image_frechet", WHOLE, ""),
    ("blurred images' Fréchet distance", "image_frechet_blurred", WHOLE, ""),
    ("Fréchet distance over blurred images'", "image_frechet / image_frechet_blurred", RATIO, "0.9 or less"),
    ("text to speech: understood", "speech_recognised", PERCENT, ""),
    ("originals understood", "speech_codec_recognised_originals", PERCENT, ""),
    ("understood, over the originals", "speech_recognised / speech_codec_recognised_originals", PERCENT, "80% or more"),
    ("speech to text: right object", "caption_speech_object_accuracy", PERCENT, "90% or more"),
    ("whole caption, one thing", "caption_speech_exact_accuracy", PERCENT, "75% or more"),
    ("relation of two things", "caption_speech_relation_accuracy", PERCENT, ""),
    ("minutes in all", "seconds_total", TENTHS, "15 or less; the paper's settings 20"),
    ("share of evaluation", "seconds_evaluate / seconds_total", PERCENT, "10% or less"),
    ("memory, GB (PSS of all processes)", "peak_memory_gb", TENTHS, "6 or less"),
    ("steps of training", "steps", WHOLE, ""),
)
"""What a row says, a figure of summary.json or a ratio of two, how it is written, and the goal of its mean."""

FIGURES = sorted({name for _, formula, _, _ in ROWS for name in formula.split(" / ")})


def kept(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what the table needs of the runs below a folder, named <setting>-<seed>."""
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for setting in SETTINGS:
        for path in sorted(folder.glob(f"{setting}-*/summary.json")):
            summary = json.loads(path.read_text(encoding="utf-8"))
            seed = path.parent.name.removeprefix(f"{setting}-")
            figures.setdefault(setting, {})[seed] = {k: summary[k] for k in (*FIGURES, "commit") if k in summary}
    return figures


def table(runs: Kept) -> str:
    """Return the table, with a column for each setting, as Markdown."""
    heads = [f"{setting}, seeds {', '.join(runs[setting])}" for setting in runs]
    lines = [f"| mean (lowest to highest) | {' | '.join(heads)} | goal of the mean |", "|---" * (len(heads) + 2) + "|"]
    for title, formula, form, goal in ROWS:
        cells = [cell(list(runs[setting].values()), formula, form) for setting in runs]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} | {goal} |")
    commits = sorted({run["commit"][:7] for seeds in runs.values() for run in seeds.values()})
    return "\n".join(
        [*lines, "", f"(`python benchmarks/quickstart.py runs`, two cores, commits {', '.join(commits)}.)"]
    )


def cell(runs: Sequence[Mapping[str, Any]], formula: str, form: str) -> str:
    """Return mean and range of a figure, "" where a run lacks it."""
    values = [value(run, formula) for run in runs]
    known = [v / 60 if formula == "seconds_total" else v for v in values if v is not None]
    if len(known) < len(runs) or not known:
        return ""
    mean, low, high = (form.format(f(known)) for f in (statistics.mean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def value(run: Mapping[str, Any], formula: str) -> float | None:
    """Return a figure of a run, or the ratio of two."""
    figures = [run.get(name) for name in formula.split(" / ")]
    if None in figures:
        return None
    return figures[0] / figures[1] if len(figures) == 2 else figures[0]
