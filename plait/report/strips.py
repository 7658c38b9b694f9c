"""Denoising strips and guided samples as a page shows them: how noise became a sample, and one prompt at many scales.

Both are read from records whose parts are those of samples.jsonl; a part that is missing or damaged stays in its place.
"""

import math
from typing import Any

from plait.report import numbers
from plait.report.media import Media

MOST_STEPS = 10
"""Images of a longer strip are left out evenly, so that a row fits a laptop."""


def strips(records: list[dict], media: Media) -> list[dict]:
    """Return the strips of samples/strips.jsonl, by modality: {"modality", "rows"}.

    A row holds the views ``prompt``, ``truth`` and ``output`` (at most one), ``steps`` as (noise level, view) from
    noise on, ``clip`` (whether it is sound) and ``sampling``.
    """
    return _by_modality([_strip(record, media) for record in records])


def guided(records: list[dict], media: Media) -> list[dict]:
    """Return the samples of samples/guidance.jsonl, by modality: {"modality", "rows", "scales", "clip"}.

    A row holds the views ``prompt`` and ``truth``, and ``cells``: (scale, view) for every scale of its modality, with
    None where this prompt was not drawn at it.
    """
    groups = _by_modality([_guided(record, media) for record in records])
    for group in groups:
        scales = sorted({scale for row in group["rows"] for scale in row["made"]})
        group["scales"] = [numbers.plain(scale) for scale in scales]
        group["clip"] = any(row["clip"] for row in group["rows"])
        for row in group["rows"]:
            row["cells"] = [(numbers.plain(scale), row["made"].get(scale)) for scale in scales]
    return groups


def _strip(record: dict, media: Media) -> dict:
    prompt = record.get("prompt")
    output = media.views(record.get("output"), prompt)[:1]
    raw_steps = [(_number(step.get("level")), step.get("part")) for step in _mappings(record.get("steps"))]
    if output:  # at level 0 stands the output itself
        raw_steps = [step for step in raw_steps if step[0] != 0]
    shown = min(MOST_STEPS, len(raw_steps))
    raw_steps = [raw_steps[i * len(raw_steps) // shown] for i in range(shown)]
    steps = [(_level(level), view) for level, part in raw_steps for view in media.views(part, prompt)[:1]]
    return _row(record, media, [view for _, view in steps] + output) | {"steps": steps, "output": output}


def _guided(record: dict, media: Media) -> dict:
    made = {}
    for output in _mappings(record.get("outputs")):
        scale, views = _number(output.get("guidance")), media.views(output.get("part"), record.get("prompt"))
        if scale is not None and views:
            made[scale] = views[0]
    return _row(record, media, list(made.values())) | {"made": made}


def _row(record: dict, media: Media, made: list[dict]) -> dict:
    """Return what strips and guided samples share, given the views of what was made."""
    return {
        "prompt": media.views(record.get("prompt")),
        "truth": media.views(record.get("truth"), record.get("prompt")),
        "sampling": record.get("sampling"),
        "modality": made[-1]["modality"] if made else "",
        "clip": any(view["kind"] == "clip" for view in made),
    }


def _by_modality(rows: list[dict]) -> list[dict]:
    names = dict.fromkeys(row["modality"] for row in rows if row["modality"])
    return [{"modality": name, "rows": [row for row in rows if row["modality"] == name]} for name in names]


def _mappings(values: Any) -> list[dict]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _level(level: float | None) -> str:
    return "" if level is None else f"{level:.2g}"
