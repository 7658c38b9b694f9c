"""Tables of what models that act reach, from their runs' summaries (`benchmarks/figures.py`)."""

from collections.abc import Mapping
from typing import Any

ROBOTS = (
    ("the model", "success"),
    ("the scripted expert, which sees where objects are", "success_expert"),
    ("a plain network, trained as long on the same documents", "success_baseline"),
    ("the model, told another task", "success_wrong_instruction"),
    ("random actions", "success_random"),
    ("the model, mean of easy, medium, hard and very hard tasks", "success_by_difficulty"),
    ("the model, easy tasks", "success_easy"),
    ("the model, medium tasks", "success_medium"),
    ("the model, hard tasks", "success_hard"),
    ("the model, very hard tasks", "success_very_hard"),
)
"""Who acts, and the figure of how often that succeeds."""
DRIVERS = (
    ("the model, told to drive as fast as is safe", ""),
    ("the model, told to keep the lane", "_in_lane"),
    ("the expert that it learned from, fast", "_expert"),
    ("the expert that it learned from, in its lane", "_lane_keeper"),
    ("highway-env's own driver (IDM)", "_idm"),
    ("one that draws lots", "_random"),
    ("one that keeps lane and speed", "_idle"),
)
"""Who drives, and how the names of its figures end."""
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
    for who, name in ROBOTS:
        if name in summary:
            lines.append(f"| {who} | {summary[name]:.0%} | {interval(summary, name)} | {count(summary, name)} |")
    ends = ("_low", "_high", "_count")
    tasks = sorted(name for name in summary if name.startswith("success/") and not name.endswith(ends))
    by_task = ", ".join(f"{name.partition('/')[2].removesuffix('-v3')} {summary[name]:.0%}" for name in tasks)
    speed = f"{1 / summary['seconds_per_action']:.0f} actions a second of one environment."
    return "\n".join([*lines, "", f"By task: {by_task}. {speed}"])


def drivers(summary: Mapping[str, Any]) -> str:
    """Return who crashes how often and drives how fast, and below it what is measured of made scenes."""
    lines = ["| held-out scenes | crashes | 95% interval | drives | m/s |", "|---|---|---|---|---|"]
    for who, end in DRIVERS:
        name = f"drive_crash_rate{end}"
        if name in summary:
            speed = f"{summary[f'drive_speed{end}']:.1f}"
            lines.append(
                f"| {who} | {summary[name]:.0%} | {interval(summary, name)} | {count(summary, name)} | {speed} |"
            )
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
