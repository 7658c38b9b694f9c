"""Charts as PNG, by matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import ResourceError
from plait.common.files import atomic_file
from plait.web.charts import NEUTRAL, Chart, Panel, Series

COLOURS = ("#2a5ca8", "#c04f17", "#0f7767", "#8b3f8f", "#8a6900", "#b0305c", "#4a6b1e", "#4d5f70", "#1b8fb3", "#7a5236")
INK, SOFT, RULE = "#23211c", "#68635a", "#e5e0d5"
PANEL, SMALL_PANEL = (4.4, 3.3), (2.6, 2.5)
"""Size of one panel, in inches, and of one among many."""
FEW, MOST_ACROSS = 3, 5
"""Panels that are not many, and panels in a row."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK, "axes.grid": True,
    "grid.color": RULE, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8, "figure.dpi": 150,
    "savefig.facecolor": "white", "axes.axisbelow": True, "text.parse_math": False,  # names are no formulas
}  # fmt: skip


def draw_figures(charts: list[Chart], folder: Path) -> list[Path]:
    """Write every chart as PNG into ``folder``. Raises ResourceError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ResourceError(
            "compare: the package 'matplotlib' is not installed, run `pip install plait[media]`"
        ) from None
    with matplotlib.rc_context(STYLE):
        return [_draw(chart, folder / f"{chart.name}.png") for chart in charts]


def _draw(chart: Chart, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(chart.panels) // MOST_ACROSS)
    across = -(-len(chart.panels) // down)  # rows of as many panels, where that can be
    width, height = PANEL if len(chart.panels) <= FEW else SMALL_PANEL
    figure = Figure(figsize=(width * across, height * down + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, panel in zip(axes, chart.panels, strict=False):
        _panel(axis, panel)
    for axis in axes[len(chart.panels) :]:
        axis.set_axis_off()
    figure.suptitle(chart.title, x=0.01, ha="left")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3 * across))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _panel(axis, panel: Panel) -> None:
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log:
        axis.set(xscale="log", yscale="log")
        for format_of in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            format_of(lambda value, position: f"{value:g}")
    bars = [s for s in panel.series if s.kind == "bars"]
    width = 0.8 / max(len(bars), 1)
    for series in panel.series:
        colour = SOFT if series.colour == NEUTRAL else COLOURS[series.colour % len(COLOURS)]
        if series.kind == "bars":
            _bars(axis, series, colour, (bars.index(series) - (len(bars) - 1) / 2) * width, width)
        elif series.kind == "points":
            _points(axis, series, colour)
        else:
            style = (0, (4, 3)) if series.dash else "-"
            axis.plot(series.x, series.y, color=colour, linestyle=style, linewidth=1.4, label=_label(series))
            if series.low:
                axis.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    if panel.categories:
        axis.set_xticks(range(len(panel.categories)), panel.categories)
        axis.grid(visible=False, axis="x")
    elif not panel.log and all(float(x).is_integer() for s in panel.series for x in s.x):
        axis.locator_params(axis="x", integer=True)
    if panel.x_range:
        axis.set_xlim(*panel.x_range)
    if panel.y_range:
        axis.set_ylim(*panel.y_range)
    _say_ends(axis, panel)


def _say_ends(axis, panel: Panel) -> None:
    """Write what stands at the ends of lines, none over another and none outside."""
    said = sorted((s for s in panel.series if s.end_label), key=lambda s: s.y[-1])
    bottom, top = axis.get_ylim()
    gap = 0.06 * (top - bottom)
    places: list[float] = []
    for series in said:
        places.append(max(series.y[-1], places[-1] + gap if places else bottom))
    edge = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], edge)
        edge = places[i] - gap
    for series, y in zip(said, places, strict=True):
        colour = COLOURS[series.colour % len(COLOURS)]
        axis.text(1.03 * series.x[-1], y, series.end_label, color=colour, va="center", fontsize=8, clip_on=False)


def _label(series: Series) -> str:
    """Return a series' name; matplotlib leaves names that begin with _ out of the legend."""
    return f" {series.name}" if series.name.startswith("_") else series.name


def _bars(axis, series: Series, colour: str, shift: float, width: float) -> None:
    x, y = np.array(series.x) + shift, np.array(series.y)
    hollow = series.is_bound or [False] * len(x)
    fills = ["none" if h else colour for h in hollow]
    axis.bar(x, y, 0.9 * width, color=fills, edgecolor=colour, linewidth=1.2, label=_label(series))
    if series.low:
        ends = np.abs(np.array([series.low, series.high]) - y)
        axis.errorbar(x, y, ends, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)


def _points(axis, series: Series, colour: str) -> None:
    x, y = np.array(series.x), np.array(series.y)
    hollow = np.array(series.is_bound or [False] * len(x), bool)
    axis.plot(x[~hollow], y[~hollow], "o", color=colour, markersize=3, alpha=0.6, label=_label(series))
    axis.plot(x[hollow], y[hollow], "^", color=colour, markersize=4, fillstyle="none")  # it lies above
