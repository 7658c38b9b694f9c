"""Numbers as a person reads them: the headline with goals and chance, codec figures, and the table of losses."""

import math
import re
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
    "judge_top1": ("Drawings still recognised, relative to the originals", "percent"),
    "judge_top1_originals": ("Originals recognised", "percent"),
    "judge_top1_trials": ("Drawings judged", "plain"),
}
SPACE = "\N{NO-BREAK SPACE}"
CHOICE_NAMES = 400
"""Names that the forced choice of evaluate picks from."""


def duration(seconds: float) -> str:
    """Return ``9 min 42 s`` and the like."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: float) -> str:
    """Return ``4.1 M`` and the like."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


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


def headline(summary: dict[str, Any], modalities: list[str], denoised: list[str]) -> list[dict]:
    """Return groups ({"title", "figures"}) of the key figures that are there.

    ``denoised`` names the modalities whose loss is a squared error, and that so have no perplexity.
    """
    numbers = {k: v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    groups = [
        {"title": "Pictures made from text", "figures": [f for m in modalities for f in _made(numbers, m)]},
        {"title": "Understanding", "figures": _captions(numbers)},
        {
            "title": "Held out" if denoised else "Perplexity, held out",
            "figures": _held_out(numbers, modalities, denoised),
        },
        {"title": "Codecs", "figures": _codecs(numbers)},
        {"title": "The run", "figures": _run(numbers)},
    ]
    return [g for g in groups if g["figures"]]


def _figure(label: str, value: str, *notes: str, goal: str = "", met: bool | None = None, modality: str = "") -> dict:
    return {"label": label, "value": value, "notes": notes, "goal": goal, "met": met, "modality": modality}


def _times(ratio: float) -> str:
    return f"{ratio:.0f}{SPACE}×" if ratio >= 10 else f"{ratio:.1f}{SPACE}×"


_SCORES = {
    "object": "Right object",
    "colour": "Right colour",
    "relation": "Right relation",
    "exact": "Whole caption right",
}
"""What a caption can say rightly, in the order of the page."""


def _captions(numbers: dict) -> list[dict]:
    """Return the scores of captions: of pictures (caption_object_accuracy), then of others (caption_speech_...)."""
    found = [
        re.fullmatch(r"caption_(?:(\w+)_)?(choice|object|colour|relation|exact)_accuracy", name) for name in numbers
    ]
    figures = []
    for match in sorted(filter(None, found), key=lambda m: (m[1] or "", ["choice", *_SCORES].index(m[2]))):
        value, prefix = numbers[match[0]], match[0].removesuffix("_accuracy")
        chance, heard = numbers.get(f"{prefix}_chance"), f"given {match[1]}" if match[1] else "open caption"
        if match[2] == "choice":
            figures.append(
                _choice(value, chance or 1 / CHOICE_NAMES, numbers.get(f"{prefix}_shuffled"), match[1] or "")
            )
            continue
        notes = [f"chance {percent(chance)}, this is {_times(value / chance)}"] if chance else []
        has_goal = chance and match[2] == "object" and not match[1]
        goal = {"goal": "≥ 10 × chance", "met": value >= 10 * chance} if has_goal else {}
        figures.append(_figure(f"{_SCORES[match[2]]}, {heard}", percent(value), *notes, **goal))
    return figures


def _choice(value: float, chance: float, shuffled: float | None, given: str) -> dict:
    label = f"Object picked among {round(1 / chance)}" + (f", given {given}" if given else "")
    notes = [f"chance {percent(chance)}, this is {_times(value / chance)}"]
    if shuffled is None:
        return _figure(label, percent(value), *notes)
    notes.append(f"with the {given or 'pictures'} shuffled {percent(shuffled)}")
    if given:
        return _figure(label, percent(value), *notes)
    return _figure(label, percent(value), *notes, goal="≥ 5 × shuffled", met=value > 0 and value >= 5 * shuffled)


def _made(numbers: dict, modality: str) -> list[dict]:
    """Return how often pictures made from text are named rightly, and how far they are from real ones."""
    if modality.startswith("caption"):  # caption_object_accuracy is what captions say, not a picture's score
        return []
    figures = []
    judged = {k: numbers.get(f"{modality}_object_{k}") for k in ("accuracy", "chance", "low", "high", "trials")}
    references = {"of real scenes": "originals", "of their codec round trips": "codec"}
    if judged["accuracy"] is not None:
        value, chance, low, high = (judged[k] for k in ("accuracy", "chance", "low", "high"))
        notes = [f"95% interval {percent(low)} to {percent(high)}"] if None not in (low, high) else []
        notes += [f"chance {percent(chance)}, this is {_times(value / chance)}"] if chance else []
        notes += [f"{words} {percent(numbers[key])}" for words, figure in references.items()
                  if (key := f"{modality}_object_{figure}") in numbers]  # fmt: skip
        notes += [f"{count(judged['trials'])} pictures judged"] if judged["trials"] else []
        goal = {"goal": "≥ 10 × chance", "met": value >= 10 * chance} if chance else {}
        figures.append(_figure("Right object, named by the judge", percent(value), *notes, **goal, modality=modality))
    return figures + _frechet(numbers, modality)


def _frechet(numbers: dict, modality: str) -> list[dict]:
    """Return the Fréchet distance of generated pictures to real scenes, with the same distance of others beside it."""
    value, blurred = numbers.get(f"{modality}_frechet"), numbers.get(f"{modality}_frechet_blurred")
    if value is None:
        return []
    references = {"other real scenes": "real", "their codec round trips": "codec", "blurred scenes": "blurred"}
    notes = [f"{words} {plain(numbers[key])}" for words, figure in references.items()
             if (key := f"{modality}_frechet_{figure}") in numbers]  # fmt: skip
    number = numbers.get(f"{modality}_frechet_count")
    notes += [f"{number:,.0f} pictures each"] if number else []
    goal = {"goal": "below blurred scenes", "met": value < blurred} if blurred is not None else {}
    return [_figure("Fréchet distance to real scenes", plain(value), *notes, **goal, modality=modality)]


def _held_out(numbers: dict, modalities: list[str], denoised: list[str]) -> list[dict]:
    figures = []
    for name in modalities:
        perplexity, loss = numbers.get(f"perplexity/{name}"), numbers.get(f"val_loss/{name}")
        if name in denoised:
            if loss is not None:
                figures.append(_figure(f"{name}, mean squared error", f"{loss:.3f}", modality=name))
        elif perplexity is not None:
            notes = [f"loss {loss:.3f}"] if loss is not None else []
            label = f"{name}, perplexity" if denoised else name
            figures.append(_figure(label, plain(round(perplexity, 2)), *notes, modality=name))
        elif loss is not None:
            figures.append(_figure(name, f"{loss:.3f}", "validation loss", modality=name))
    return figures


def _codecs(numbers: dict) -> list[dict]:
    figures = []
    for name, value in numbers.items():
        modality, separator, figure = name.partition("_codec_")
        if not separator:
            continue
        if figure == "psnr":
            thumbnail = numbers.get(f"{modality}_codec_psnr_thumbnail")
            notes = [f"thumbnail {decibel(thumbnail)}"] if thumbnail is not None else []
            if f"{modality}_codec_latent_std" in numbers:
                goal = {"goal": "≥ 22 dB", "met": value >= 22}
            else:
                goal = {"goal": "≥ 21.5 dB" + (", 3 dB over the thumbnail" if thumbnail is not None else ""),
                        "met": value >= 21.5 and (thumbnail is None or value >= thumbnail + 3)}  # fmt: skip
            figures.append(_figure(f"{modality} round trip", decibel(value), *notes, **goal, modality=modality))
        elif figure == "recognised":
            figures.append(
                _figure(f"{modality} still recognised", percent(value), "relative to the originals", goal="≥ 95%",
                        met=value >= 0.95, modality=modality)
            )  # fmt: skip
    return figures


def _run(numbers: dict) -> list[dict]:
    figures = []
    if "seconds_total" in numbers:
        figures.append(_figure("Time, from data to page", duration(numbers["seconds_total"])))
    if "tokens_per_second" in numbers:
        figures.append(_figure("Training tokens per second", plain(round(numbers["tokens_per_second"]))))
    if "peak_memory_gb" in numbers:
        figures.append(_figure("Peak memory", f"{numbers['peak_memory_gb']:.1f}{SPACE}GB"))
    if "packing_efficiency" in numbers:
        share = numbers["packing_efficiency"]
        figures.append(_figure("Positions filled by packing", percent(share), goal="≥ 97%", met=share >= 0.97))
    return figures


def codec_figures(summary: dict[str, Any], data_report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return modality to (label, value) of its codec, from ``<modality>_codec_<figure>`` and the data's report."""
    found: dict[str, dict[str, float]] = {}
    quality = data_report.get("quality")
    for name, value in flatten(quality if isinstance(quality, dict) else {}).items():
        modality, _, figure = name.partition("/") if "/" in name else name.partition("_codec_")
        found.setdefault(modality, {})[figure] = value
    for name, value in summary.items():
        modality, separator, figure = name.partition("_codec_")
        if separator:
            found.setdefault(modality, {})[figure] = value
    return {
        m: [_codec_figure(f, v) for f, v in sorted(figures.items(), key=_codec_order)] for m, figures in found.items()
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
