"""Figures of what trained models do inside, from the rows of `analysis.py`."""

from typing import Any

from plait.compare.analysis import Rows
from plait.compare.results import Found
from plait.compare.study_charts import colour_of
from plait.web.charts import Chart, Panel, Series

SECTION = "Inside the models"


def analysis_charts(matched: Found, rows: Rows) -> list[Chart]:
    """Return the figures of activations, attention and gradients, as far as there are rows."""
    drawn = [_separation(matched, rows["layers"]), _attention(matched, rows["attention"])]
    drawn += [*_conflicts(matched, rows["conflict"]), *_components(matched, rows)]
    return [chart for chart in drawn if chart.panels]


def _lines(matched: Found, rows: list[dict[str, Any]], x: str, y: str) -> list[Series]:
    """Return a line an arm: the mean over seeds, with their range."""
    series = []
    for arm in dict.fromkeys(r["arm"] for r in rows):
        arm_rows = [r for r in rows if r["arm"] == arm]
        values = {at: [r[y] for r in arm_rows if r[x] == at] for at in sorted({r[x] for r in arm_rows})}
        means = [sum(v) / len(v) for v in values.values()]
        several = len({r["seed"] for r in arm_rows}) > 1
        low, high = ([f(v) for v in values.values()] if several else None for f in (min, max))
        series.append(Series(arm, list(values), means, "line", colour_of(matched, arm), low, high))
    return series


def _separation(matched: Found, rows: list[dict[str, Any]]) -> Chart:
    panel = Panel(
        "", "after block (0: embeddings)", "variance between modalities", _lines(matched, rows, "layer", "separation")
    )
    note = (
        "The share of the variance of activations that lies between the modalities' means: 0 where modalities lie "
        "in one place, 1 where each is its own point."
    )
    return Chart("separation", SECTION, "How far modalities lie apart", note, [panel] if rows else [])


def _components(matched: Found, rows: Rows) -> list[Chart]:
    """One figure an arm (the paper's figure 2b): a panel a layer, a colour a modality; of the lowest seed."""
    names, drawn = list(matched.units), []
    for arm in dict.fromkeys(r["arm"] for r in rows["components"]):
        arm_rows = [r for r in rows["components"] if r["arm"] == arm]
        seed = min(r["seed"] for r in arm_rows)
        panels = []
        for layer in sorted({r["layer"] for r in arm_rows}):
            places = {r["modality"]: r for r in arm_rows if (r["seed"], r["layer"]) == (seed, layer)}
            about = next(r for r in rows["layers"] if (r["arm"], r["seed"], r["layer"]) == (arm, seed, layer))
            series = [Series(m, places[m]["x"], places[m]["y"], "points", names.index(m)) for m in names if m in places]
            title = "embeddings" if layer == 0 else f"after block {layer}"
            panels.append(
                Panel(title, f"first component ({about['first']:.0%})", f"second ({about['second']:.0%})", series)
            )
        note = (
            f"The first two principal components of activations on held-out documents, seed {seed}; in brackets "
            "the share of the variance."
        )
        drawn.append(Chart(f"components_{arm}", SECTION, f"Where tokens lie: {arm}", note, panels))
    return drawn


def _attention(matched: Found, rows: list[dict[str, Any]]) -> Chart:
    panels = []
    for query, key in dict.fromkeys((r["query"], r["key"]) for r in rows):
        pair_rows = [r for r in rows if (r["query"], r["key"]) == (query, key)]
        if query == key or not any(r["even"] for r in pair_rows):  # no token sees such a key: they share no document
            continue
        even = {r["layer"]: r["even"] for r in pair_rows}
        series = [Series("if all keys got the same", [n + 1 for n in even], list(even.values()), dash=1)]
        shown = [r | {"block": r["layer"] + 1} for r in pair_rows]
        series += _lines(matched, shown, "block", "mass")
        panels.append(Panel(f"{query} looks at {key}", "block", "share of attention", series))
    note = "The share of attention that tokens of one modality pay to those of another, mean over heads and tokens."
    return Chart("attention", SECTION, "Attention across modalities", note, panels)


def _conflicts(matched: Found, rows: list[dict[str, Any]]) -> list[Chart]:
    pairs = sorted(dict.fromkeys((r["first"], r["second"]) for r in rows), key=lambda pair: pair[0] == pair[1])
    last = {
        key: max(r["step"] for r in rows if (r["arm"], r["seed"]) == key)
        for key in {(r["arm"], r["seed"]) for r in rows}
    }
    by_layer, by_part, by_step = [], [], []
    for first, second in pairs:
        pair_rows = [r | {"block": r["layer"] + 1} for r in rows if (r["first"], r["second"]) == (first, second)]
        ends = [r for r in pair_rows if r["step"] == last[r["arm"], r["seed"]]]
        title = f"{first} and {second}" if first != second else f"{first} and itself"
        whole = [r for r in ends if r["component"] == "all"]
        by_layer.append(_cosine_panel(title, "block", whole, _lines(matched, whole, "block", "cosine")))
        against = [r for r in ends if r["arm"] == matched.study.config.against and r["component"] != "all"]
        parts = [{**r, "arm": r["component"]} for r in against]
        by_part += [_cosine_panel(title, "block", parts, _by_component(parts))] if parts else []
        if first != second and len({r["step"] for r in pair_rows}) > 1:
            steps = _mean_over_layers([r for r in pair_rows if r["component"] == "all"])
            by_step.append(_cosine_panel(title, "training step", steps, _lines(matched, steps, "step", "cosine")))
    note = (
        "The cosine of the gradients of two modalities' losses in the parameters of a block: below 0 what helps "
        "the one harms the other. Where towers are apart, few parameters serve both. A modality and itself are its "
        "gradients on two halves of the documents: what noise leaves of an agreement."
    )
    against = matched.study.config.against
    return [
        Chart("conflict", SECTION, "Do the modalities' gradients agree?", note, by_layer),
        Chart("conflict_components", SECTION, f"Gradients by component: {against}", note, by_part),
        Chart("conflict_steps", SECTION, "Gradients while training", note, by_step),
    ]


def _mean_over_layers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cosines: dict[tuple, list[float]] = {}
    for r in rows:
        cosines.setdefault((r["arm"], r["seed"], r["step"]), []).append(r["cosine"])
    return [{"arm": a, "seed": s, "step": t, "cosine": sum(v) / len(v)} for (a, s, t), v in cosines.items()]


def _by_component(rows: list[dict[str, Any]]) -> list[Series]:
    series = []
    for colour, part in enumerate(dict.fromkeys(r["component"] for r in rows)):
        part_rows = [r for r in rows if r["component"] == part]
        blocks = sorted({r["block"] for r in part_rows})
        values = [[r["cosine"] for r in part_rows if r["block"] == b] for b in blocks]
        series.append(Series(part, blocks, [sum(v) / len(v) for v in values], "line", colour))
    return series


def _cosine_panel(title: str, x_label: str, rows: list[dict[str, Any]], lines: list[Series]) -> Panel:
    ends = [min((x for s in lines for x in s.x), default=0), max((x for s in lines for x in s.x), default=1)]
    return Panel(title, x_label, "cosine", [Series("no conflict, no help", ends, [0.0, 0.0], dash=1), *lines])
