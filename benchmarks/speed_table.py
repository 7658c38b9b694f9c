"""The five ratios of docs/performance.md, and its figure: steps of a mixture over a dense model's, by shape."""

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, Row
from table import natural

FIGURE = ROOT / "docs" / "images" / "steps.svg"
STEP = re.compile(r"step_ratio/mot/(d\d+-t\d+-\d+towers-[\d-]+)/(float32|bfloat16)/(compiled|eager)")
RECIPE = re.compile(r"recipe_ratio/whole/(.+)/(adamw|muon)")
PLAYBOOK, BAGEL = "step_ratio/original-playbook/", "step_ratio/original-bagel/"
DECODED, COPY = "decode/speedup/", "decode/share_of_copy/"


def ratios(results: Mapping[str, Any]) -> str:
    """Return the table of the five ratios; rows that were not taken leave their line out."""
    rows = {row["name"]: row for row in results["rows"]}
    steps, recipes = ([row["value"] for name, row in rows.items() if kind.fullmatch(name)] for kind in (STEP, RECIPE))
    pairs = [
        ("1. a step (forward and backward) over a dense one", [over(steps, "shapes, precisions and modes")],
         "at most 1.04 with two towers, 1.07 with three"),
        ("2. the whole step of a shipped recipe over a dense one", [over(recipes, "recipes, optimizers")],
         "at most 1.10"),
        ("3. other code's step over plait's: Meta's tutorial; BAGEL's layers",
         [among(rows, PLAYBOOK), among(rows, BAGEL)], "tutorial at least 3"),
        ("4. decoding: tokens a second of 32 rows over one's; bytes a second over a copy's",
         [among(rows, DECODED, "/rows32"), among(rows, COPY)], "at least 6; a half for one row, d = 512"),
        ("5. a head of 65,536 ids over all logits at once: memory; time",
         [among(rows, "head_memory/v65536"), among(rows, "head_time/v65536")], "at most 0.2; at most 1.1"),
    ]  # fmt: skip
    lines = [(title, "; ".join(values), goal) for title, values, goal in pairs if all(values)]
    table = ["| | measured | goal |", "|---|---|---|", *("| " + " | ".join(line) + " |" for line in lines)]
    commits = ", ".join(sorted({row["commit"][:7] for row in results["rows"]}))
    torch = ", ".join(sorted({row["versions"]["torch"] for row in results["rows"]}))
    return "\n".join([*table, "", f"(`make benchmark`, two cores, one thread, torch {torch}, commits {commits}.)"])


def over(values: Sequence[float], of: str) -> str:
    """Return the median of some ratios with their range, in words."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f} over {len(values)} {of})"


def among(rows: Mapping[str, Row], start: str, end: str = "") -> str:
    """Return the one value, or the lowest and the highest, of the rows of such names."""
    values = sorted(row["value"] for name, row in rows.items() if name.startswith(start) and name.endswith(end))
    return " to ".join(dict.fromkeys(f"{value:.2f}" for value in values[:1] + values[-1:]))


def figure(results: Mapping[str, Any], path: Path = FIGURE) -> None:
    """Draw the steps of a results file as SVG: a line for each shape, a mark for each precision and mode."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    marks = {("float32", "compiled"): ("o", "#2563eb"), ("float32", "eager"): ("o", "none"),
             ("bfloat16", "compiled"): ("s", "#ea580c"), ("bfloat16", "eager"): ("s", "none")}  # fmt: skip
    values = {
        STEP.fullmatch(row["name"]).groups(): row["value"] for row in results["rows"] if STEP.fullmatch(row["name"])
    }
    again = [row["value"] for row in results["rows"] if row["name"].startswith("step_ratio/dense-again/")]
    shapes = sorted({shape for shape, *_ in values}, key=natural, reverse=True)
    with pyplot.rc_context(
        {"svg.hashsalt": "plait", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}
    ):
        drawn, axes = pyplot.subplots(figsize=(7.6, 0.31 * len(shapes) + 1.3), layout="constrained")
        axes.axvspan(min(again), max(again), color="#e9eef4", label="dense again: noise")
        axes.axvline(1, color="#64748b", linewidth=0.8)
        for (precision, mode), (mark, fill) in marks.items():
            points = [
                (value, shapes.index(shape)) for (shape, *how), value in values.items() if how == [precision, mode]
            ]
            colour = marks[precision, "compiled"][1]
            axes.scatter(*zip(*points, strict=True), marker=mark, s=28, facecolor=fill, edgecolor=colour,
                         label=f"{precision}, {mode}", zorder=3)  # fmt: skip
        axes.set_yticks(range(len(shapes)), [said(shape) for shape in shapes])
        axes.set_xlabel("MoT step / dense step (forward and backward)")
        axes.spines[["top", "right"]].set_visible(False)
        drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
        drawn.savefig(path, metadata={"Date": None, "Creator": None, "Description": digest(results)})
        pyplot.close(drawn)


def said(shape: str) -> str:
    """Return a shape in words: d256-t4096-2towers-50-50."""
    width, tokens, towers, mix = re.fullmatch(r"d(\d+)-t(\d+)-(\d+)towers-([\d-]+)", shape).groups()
    return f"d = {int(width):,}, {int(tokens):,} tokens, {towers} towers {mix.replace('-', ':')}"


def digest(results: Mapping[str, Any]) -> str:
    """Return what tells whether a figure shows these results."""
    shown = sorted((row["name"], row["value"]) for row in results["rows"] if row["name"].startswith("step_ratio/"))
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
