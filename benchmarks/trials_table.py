"""Tables of what models that act reach, from their runs' summaries (`benchmarks/figures.py`)."""

from collections.abc import Mapping
from typing import Any

from plait.driving import trials as driving
from plait.report.trials import ENDS
from plait.robots import trials as robot

SCENES = (
    ("all that the caption says happens, and nothing else", "event_accuracy", "{:.0%}"),
    ("as much traffic", "density_accuracy", "{:.0%}"),
    ("in the lane", "lane_accuracy", "{:.0%}"),
    ("what is ahead", "ahead_accuracy", "{:.0%}"),
    ("who cuts in", "cut_ins_accuracy", "{:.0%}"),
    ("who overtakes", "overtaken_accuracy", "{:.0%}"),
    ("no vehicles overlap", "no_overlap", "{:.0%}"),
    ("highway-env's own driver crashes", "idm_crash_rate", "{:.0%}"),
    ("its speed, m/s", "idm_speed", "{:.1f}"),
    ("one that keeps lane and speed crashes", "idle_crash_rate", "{:.0%}"),
    ("its speed, m/s", "idle_speed", "{:.1f}"),
)
"""What is measured of made scenes."""


def robots(summary: Mapping[str, Any]) -> str:
    """Return who succeeds how often, and the model's tasks in one line below."""
    lines = ["| starts that training never shows | succeeds | 95% interval | episodes |", "|---|---|---|---|"]
    for row in robot.TABLES[0].rows:
        if (name := row.figure) in summary:
            lines.append(f"| {row.who} | {summary[name]:.0%} | {interval(summary, name)} | {count(summary, name)} |")
    tasks = sorted(name for name in summary if name.startswith("success/") and not name.endswith(ENDS))
    by_task = ", ".join(f"{name.partition('/')[2].removesuffix('-v3')} {summary[name]:.0%}" for name in tasks)
    speed = f"{1 / summary['seconds_per_action']:.0f} actions a second of one environment."
    return "\n".join([*lines, "", f"By task: {by_task}. {speed}"])


def drivers(summary: Mapping[str, Any]) -> str:
    """Return who crashes how often and drives how fast, and below it what is measured of made scenes."""
    lines = ["| held-out scenes | crashes | 95% interval | drives | m/s |", "|---|---|---|---|---|"]
    for row in driving.TABLES[0].rows:
        if (name := row.figure) in summary:
            shares = f"{summary[name]:.0%} | {interval(summary, name)} | {count(summary, name)}"
            lines.append(f"| {row.who} | {shares} | {summary[row.second]:.1f} |")
    lines += ["", "| scenes made of held-out captions | model | codec's round trip | real | nearest in training |",
              "|---|---|---|---|---|"]  # fmt: skip
    for said, name, form in SCENES:
        figure = f"traffic_{name}"
        if figure in summary:
            stem = figure.removesuffix("_accuracy")
            others = (f"{stem}_codec", f"{stem}_originals" if stem != figure else f"{stem}_real", f"{stem}_nearest")
            cells = [form.format(summary[n]) if n in summary else "" for n in (figure, *others)]
            lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(summary: Mapping[str, Any], name: str) -> str:
    """Return a share's interval, nothing where it has none."""
    low, high = (summary.get(f"{name}_{edge}") for edge in ("low", "high"))
    return f"{low:.0%} to {high:.0%}" if low is not None and high is not None else ""


def count(summary: Mapping[str, Any], name: str) -> str:
    """Return of how many episodes a share is."""
    number = summary.get(f"{name}_count")
    return f"{number:.0f}" if number is not None else ""
