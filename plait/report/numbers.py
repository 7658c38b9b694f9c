"""Numbers as a person reads them: what a run took, codec figures, and the table of losses."""

import math
from typing import Any

CODEC_LABELS = {
    "psnr": ("Round trip, PSNR", "decibel"),
    "psnr_thumbnail": ("A thumbnail with as many numbers, PSNR", "decibel"),
    "latent_mean": ("Latents on held-out data, mean", "plain"),
    "latent_std": ("Latents on held-out data, standard deviation", "plain"),
    "recognised": ("Clips still recognised, relative to the originals", "percent"),
    "recognised_originals": ("Originals recognised", "percent"),
    "recognised_trials": ("Clips judged", "plain"),
    "mel_l1": ("Mel spectrogram, L1", "plain"),
    "codes_used": ("Codes in use", "plain"),
}
SPACE = "\N{NO-BREAK SPACE}"


def duration(seconds: float) -> str:
    """Return ``9 min 42 s`` and the like."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def percent(share: float) -> str:
    """Return a share as per cent, with enough digits for small ones."""
    value = 100 * share
    return f"{value:.2f}%" if 0 < abs(value) < 1 else f"{value:.1f}%"


def plain(number: Any) -> str:
    """Return a number with four significant digits, whole numbers in full, nan and inf as such, and a dash for none."""
    if not isinstance(number, int | float):
        return "–"
    if not math.isfinite(number):
        return str(number)
    if float(number).is_integer() and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:.4g}"


def decibel(number: float) -> str:
    """Return a level in dB."""
    return f"{number:.1f}{SPACE}dB"


FORMATS = {"percent": percent, "plain": plain, "decibel": decibel}


def run_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a run took, as (label, value)."""
    numbers = {k: v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    forms = {
        "seconds_total": ("Time, from data to page", duration),
        "peak_memory_gb": ("Peak memory", lambda v: f"{v:.1f}{SPACE}GB"),
        "tokens_per_second": ("Training tokens per second", lambda v: plain(round(v))),
        "packing_efficiency": ("Positions filled by packing", percent),
    }
    return [(label, form(numbers[name])) for name, (label, form) in forms.items() if name in numbers]


def codec_figures(summary: dict[str, Any], data_report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return modality to (label, value) of its codec, from ``<modality>_codec_<figure>`` and the data's report."""
    by_modality: dict[str, dict[str, float]] = {}
    quality = data_report.get("quality")
    for name, value in flatten(quality if isinstance(quality, dict) else {}).items():
        modality, _, figure = name.partition("/") if "/" in name else name.partition("_codec_")
        by_modality.setdefault(modality, {})[figure] = value
    for name, value in summary.items():
        modality, separator, figure = name.partition("_codec_")
        if separator:
            by_modality.setdefault(modality, {})[figure] = value
    return {
        m: [_codec_figure(f, v) for f, v in sorted(figures.items(), key=_codec_order)]
        for m, figures in by_modality.items()
    }


def _codec_order(item: tuple[str, Any]) -> tuple[int, str]:
    known = list(CODEC_LABELS)
    return known.index(item[0]) if item[0] in known else len(known), item[0]


def _codec_figure(figure: str, value: Any) -> tuple[str, str]:
    label, kind = CODEC_LABELS.get(figure, (figure.replace("_", " ").replace("/", ", "), "plain"))
    return label, FORMATS[kind](value) if isinstance(value, int | float) else str(value)


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with names joined by "/"; a list becomes its length."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = len(value) if isinstance(value, list) else value
    return flat


def loss_table(summary: dict[str, Any], denoised: list[str]) -> dict | None:
    """Return the losses by task and modality (rows) and split (columns), or None where there are none.

    Rows hold ``task`` ("" for all tasks), ``modality`` and ``cells``: one (loss or None, share of the largest) each.
    Losses in nats and the squared errors of ``denoised`` modalities have a largest of their own.
    """
    losses: dict[tuple[str, str], dict[str, float]] = {}
    splits: dict[str, None] = {}
    for name, value in summary.items():
        kind, *between = name.split("/")
        if not isinstance(value, int | float) or kind not in ("val_loss", "task_loss") or len(between) < 2:
            continue
        modality = between.pop()
        split, task = between[0], "/".join(between[1:])
        splits[split] = None
        losses.setdefault((task, modality), {})[split] = value
    if not losses:
        return None
    tops: dict[bool, float] = {}
    for (_, modality), row in losses.items():
        finite = [v for v in row.values() if math.isfinite(v)]
        tops[modality in denoised] = max(tops.get(modality in denoised, 0.0), *finite, 0.0)
    rows = [
        {"task": task, "modality": modality,
         "cells": [(row.get(s), max(0.0, row[s] / (tops[modality in denoised] or 1.0))
                    if math.isfinite(row.get(s, math.nan)) else 0) for s in splits]}
        for (task, modality), row in sorted(losses.items(), key=lambda item: (item[0][0] != "", item[0]))
    ]  # fmt: skip
    return {"splits": [s.replace("_", " ") for s in splits], "rows": rows}
