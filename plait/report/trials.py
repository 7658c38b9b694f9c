"""Episodes in which a model acted, on a page: how often it succeeds, beside others, and some of them to watch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.evaluate.suite import FOLDER, TRIED
from plait.prepare.raw import TRIALS
from plait.report.media import Media, clean
from plait.report.numbers import percent, plain
from plait.train.metrics import read_jsonl

ROWS = {
    "success": "the model", "success_expert": "the scripted expert", "success_baseline": "a plain network",
    "success_wrong_instruction": "the model, told another task", "success_random": "random actions",
}  # fmt: skip
"""Who is tried, by the figure of how often it succeeds."""


def trials(run: Path, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return ``rows`` of who succeeds how often, ``tasks`` (the model's, by task) and ``episodes`` to watch."""
    folder = run / FOLDER / TRIED
    media, path = Media(folder), folder / TRIALS
    episodes = [
        {"title": clean(record.get("title", "")), "said": clean(record.get("said", "")),
         "success": bool(record.get("success")), "view": media.view({"file": record.get("file", "")})}
        for record in (read_jsonl(path) if path.is_file() else [])
    ]  # fmt: skip
    ends = ("_low", "_high", "_count")
    by_task = [name for name in numbers if name.startswith("success/") and not name.endswith(ends)]
    return {
        "rows": [_row(label, name, numbers) for name, label in ROWS.items() if name in numbers],
        "tasks": [_row(clean(name.removeprefix("success/")), name, numbers) for name in sorted(by_task)],
        "episodes": episodes,
        "seconds": f"{1 / numbers['seconds_per_action']:.0f}" if numbers.get("seconds_per_action") else "",
    }


def _row(label: str, name: str, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Return what a row says: the share, its interval, of how many episodes, and both for a drawing."""
    low, high, count = (numbers.get(f"{name}_{end}") for end in ("low", "high", "count"))
    return {
        "label": label, "value": percent(numbers[name]), "share": numbers[name], "low": low, "high": high,
        "interval": f"{percent(low)} to {percent(high)}" if low is not None and high is not None else "",
        "count": plain(count) if count is not None else "",
    }  # fmt: skip
