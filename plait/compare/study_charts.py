"""The charts of a study: steps for the same loss, losses, step matching, scores, tries and scaling."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from plait.compare.curves import TRAINING, VALIDATION, Curve
from plait.compare.results import Matched
from plait.compare.step_matching import Spread
from plait.compare.tables import bounded, figure_words
from plait.web.charts import Chart, Panel, Series

DISTANCE = "_frechet"
SCORES = ("object_accuracy", "colour_accuracy", "choice_accuracy", "_recognised", DISTANCE)
"""How the names of figures of `plait evaluate` end that are drawn."""
MOST_POINTS = 2000
"""Points of a series that are drawn."""


def charts(matched: Matched) -> list[Chart]:
    """Return the figures of losses, step matching and scaling, as far as there are figures for them."""
    drawn = [_bars(matched)]
    drawn += [_losses(matched, split) for split in (VALIDATION, TRAINING)]
    drawn += [
        _matching(matched, split) for split in dict.fromkeys([VALIDATION, TRAINING, *(p.split for p in matched.pairs)])
    ]
    drawn += [_scores(matched), _tried(matched), _scaling(matched)]
    return [chart for chart in drawn if chart.panels]


def colour_of(matched: Matched, arm: str) -> int:
    """Return the colour of an arm, the same one in all figures."""
    return matched.arms.index(arm)


def words(split: str) -> str:
    """Return what a set of losses is called."""
    return {VALIDATION: "mean over the validation sets", TRAINING: "training"}.get(split, split.replace("_", " "))


def _in_order(matched: Matched, names: Iterable[str]) -> list[str]:
    names = set(names)
    return [m for m in matched.units if m in names]


def _bars(matched: Matched) -> Chart:
    panels = []
    for split in (VALIDATION, TRAINING):
        rows = [m for m in matched.results["matches"] if m["split"] == split and m["steps_ratio"] is not None]
        modalities = _in_order(matched, (m["modality"] for m in rows))
        if not rows:
            continue
        series = [Series("as many steps", [-0.5, len(modalities) - 0.5], [1.0, 1.0], dash=1)]
        for arm in dict.fromkeys(m["arm"] for m in rows):
            arm_rows = [m for m in rows if m["arm"] == arm]
            series.append(Series(
                arm, [modalities.index(m["modality"]) for m in arm_rows], [m["steps_ratio"] for m in arm_rows], "bars",
                colour_of(matched, arm), [m["steps_ratio_low"] for m in arm_rows],
                [m["steps_ratio_high"] for m in arm_rows], [m["steps_ratio_is_bound"] for m in arm_rows]))  # fmt: skip
        label = f"share of {_against(matched, rows)} steps"
        panels.append(Panel(words(split), "", label, series, [-0.5, len(modalities) - 0.5], categories=modalities))
    note = "Lower is better. Whiskers: lowest and highest seed. Hollow: a lower bound, as some losses were not reached."
    return Chart("steps", "Steps for the same loss", "Steps for the same loss, by modality", note, panels)


def _against(matched: Matched, rows: list[dict[str, Any]]) -> str:
    names = {m["against"] for m in rows}
    return f"{names.pop()}'s" if len(names) == 1 else "the other arm's"


def _losses(matched: Matched, split: str) -> Chart:
    """Loss over steps: a panel a modality, a line an arm, with the range over seeds as a band."""
    modalities = _in_order(matched, (m for curves in matched.curves.values() for s, m in curves if s == split))
    panels = []
    for modality in modalities:
        unit = f" ({matched.units[modality]})" if matched.units[modality] else ""
        kind = "training" if split == TRAINING else "validation"
        series = []
        for arm in dict.fromkeys(arm for arm, _ in matched.curves):
            arm_curves = [
                c[split, modality] for (a, _), c in matched.curves.items() if a == arm and (split, modality) in c
            ]
            series += _over_seeds(arm, arm_curves, colour_of(matched, arm))
        shown = [y for s in series for y in s.y]
        panels.append(Panel(modality, "training step", f"{kind} loss{unit}", series, y_range=_zoom(shown)))
    note = "Band: lowest and highest seed. The first, highest losses lie outside, so that the arms can be told apart."
    return Chart(f"losses_{split}", "Losses", f"Loss, {words(split)}", note, [p for p in panels if p.series])


def _over_seeds(name: str, curves: list[Curve], colour: int) -> list[Series]:
    """Return the mean of curves at the steps that all have, with their range; nothing where there is none."""
    common = sorted(set.intersection(*(set(c.steps) for c in curves))) if curves else []
    if not common:
        return []
    common = thinned(common)
    by_step = [dict(zip(c.steps, c.losses, strict=True)) for c in curves]
    values = np.array([[losses[step] for step in common] for losses in by_step])
    low, high = (values.min(0).tolist(), values.max(0).tolist()) if len(curves) > 1 else (None, None)
    return [Series(name, common, values.mean(0).tolist(), "line", colour, low, high)]


def thinned(points: list) -> list:
    """Return as many points as can be seen, evenly taken, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _zoom(losses: list[float]) -> list[float] | None:
    if len(losses) < 4:
        return None
    low, high = min(losses), float(np.quantile(losses, 0.95))
    margin = 0.05 * (high - low) or 0.05
    return [low - margin, high + margin]


def _matching(matched: Matched, split: str) -> Chart:
    """The steps that an arm needs over those of the other one, and each slope."""
    pairs = [p for p in matched.pairs if p.split == split and any(m.steps for m in p.matches.values())]
    slopes = {(m["arm"], m["modality"]): m for m in matched.results["matches"] if m["split"] == split}
    panels = []
    for modality in _in_order(matched, (p.modality for p in pairs)):
        modality_pairs = [p for p in pairs if p.modality == modality]
        end = max(t for p in modality_pairs for m in p.matches.values() for t in m.steps)
        series = [Series("as many steps", [0, end], [0, end], dash=1)]
        for pair in modality_pairs:
            matches, colour = list(pair.matches.values()), colour_of(matched, pair.arm)
            row = slopes[pair.arm, modality]
            slope = row["steps_ratio"]
            points = thinned([p for m in matches for p in zip(m.steps, m.needed, m.reached, strict=True)])
            t, u = [t for t, _, _ in points], [u for _, u, _ in points]
            hollow = [not reached for _, _, reached in points]
            series.append(Series(pair.arm, t, u, "points", colour, is_bound=hollow))
            label = bounded(slope, row["steps_ratio_is_bound"])
            series.append(Series(pair.arm, [0, end], [0, slope * end], "line", colour, end_label=label))
        against = list(dict.fromkeys(p.against for p in modality_pairs))
        label = f"step of {against[0]}" if len(against) == 1 else "step of the arm matched with"
        top = max([end, *(y for s in series for y in s.y)])
        panels.append(Panel(modality, label, "step at the same loss", series, [0, 1.02 * end], [0, 1.03 * top]))
    note = "A point is a loss: when the one arm reaches it, and when the other does. Hollow: not reached."
    section = "Step matching" if split in (VALIDATION, TRAINING) else "Step matching on each validation set"
    sets = list(dict.fromkeys(p.split for p in matched.pairs if p.split not in (VALIDATION, TRAINING)))
    name = f"set_{sets.index(split) + 1}" if split in sets else split  # the sets of other trainers have any name
    return Chart(f"matching_{name}", section, f"Step matching, {words(split)}", note, panels)


def _scores(matched: Matched) -> Chart:
    """What judges say of what the models make: a panel a figure, a bar an arm, and what chance or real images get."""
    rows = matched.results["scores"]
    arms, panels = list(dict.fromkeys(row["arm"] for row in rows)), []
    for figure in (name for name in dict.fromkeys(name for row in rows for name in row) if name.endswith(SCORES)):
        is_distance = figure.endswith(DISTANCE)
        other = f"{figure}_real" if is_distance else f"{figure.rpartition('_')[0]}_chance"
        line = Spread.of([row.get(other) for row in rows])
        name = "real images" if is_distance else "chance"
        series = [Series(name, [-0.5, 0.5], [line.mean] * 2, dash=1)] if line else []
        for arm in arms:
            spread = Spread.of([row.get(figure) for row in rows if row["arm"] == arm])
            if spread:
                ends = [spread.low], [spread.high]
                series.append(Series(arm, [0], [spread.mean], "bars", colour_of(matched, arm), *ends))
        label = "Fréchet distance" if is_distance else "share"
        panels.append(Panel(figure_words(figure), "", label, series, [-0.5, 0.5], categories=[""]))
    note = (
        "Means over seeds. Whiskers: lowest and highest seed. Of shares more is better, of distances less, and "
        "only those of as many images can be compared."
    )
    return Chart("scores", "What the models make", "What judges say of what the models make", note, panels)


def _tried(matched: Matched) -> Chart:
    """Shares of tries: a panel for each, a bar an arm."""
    rows = [row for row in matched.results["shares"] if not row["group"]]
    panels = []
    for share in dict.fromkeys(row["share"] for row in rows):
        series = [
            Series(r["arm"], [0], [r["hits"] / r["tries"]], "bars", colour_of(matched, r["arm"]),
                   [r["interval_low"]], [r["interval_high"]])
            for r in rows if r["share"] == share
        ]  # fmt: skip
        panels.append(Panel(figure_words(share), "", "share", series, [-0.5, 0.5], [0, 1], categories=[""]))
    note = "All tries of all seeds together. Whiskers: Wilson's 95% interval."
    return Chart("tried", "The models tried", "Shares of tries", note, panels)


def _scaling(matched: Matched) -> Chart:
    """Final loss over the operations of a run, with each family's law and where it is extrapolated."""
    rows, panels = matched.results["scaling"], []
    split = VALIDATION if any(r["split"] == VALIDATION for r in rows["points"]) else TRAINING
    for modality in _in_order(matched, (r["modality"] for r in rows["points"])):
        series = []
        for colour, family in enumerate(dict.fromkeys(r["family"] for r in rows["points"])):
            points, lines = (
                [r for r in rows[kind] if (r["family"], r["split"], r["modality"]) == (family, split, modality)]
                for kind in ("points", "lines")
            )
            if points:
                series.append(
                    Series(family, [r["flops"] for r in points], [r["loss"] for r in points], "points", colour)
                )
            edge = sum(not r["is_extrapolation"] for r in lines)
            for name, some in (
                (f"{family}, law", lines[:edge]),
                (f"{family}, extrapolated", lines[max(edge - 1, 0) :]),
            ):
                if lines:
                    flops, losses, low, high = ([r[k] for r in some] for k in ("flops", "loss", "low", "high"))
                    dash = int(name.endswith("extrapolated"))
                    series.append(Series(name, flops, losses, "line", colour, low, high, dash=dash))
        panels.append(Panel(modality, "FLOPs of the run", "final loss", series, log=True))
    note = "A straight line in logarithms, with its 95% interval; dashed beyond the largest run."
    return Chart("scaling", "Scaling", f"Final loss against operations, {words(split)}", note, panels)
