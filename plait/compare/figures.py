"""The pictures of a study: loss curves, and step matching with its slope. PNG, by matplotlib."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plait.compare.curves import TRAINING, VALIDATION, Curve
from plait.compare.results import Found, Pair
from plait.compare.tables import bounded
from plait.errors import ResourceError
from plait.files import atomic_file

COLOURS = ("#2a5ca8", "#c04f17", "#0f7767", "#8b3f8f", "#8a6900", "#b0305c", "#4a6b1e", "#4d5f70", "#1b8fb3", "#7a5236")
INK, SOFT, RULE = "#23211c", "#68635a", "#e5e0d5"
PANEL = (4.4, 3.3)
"""Size of one panel, in inches."""


def draw_figures(found: Found, folder: Path) -> dict[str, str]:
    """Write every figure into ``folder`` and return title by file name. Raises ResourceError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ResourceError(
            "compare: the package 'matplotlib' is not installed, run `pip install plait[media]`"
        ) from None
    drawn = {}
    with matplotlib.rc_context(_style()):
        for split in (VALIDATION, TRAINING):
            if any(key[0] == split for curves in found.curves.values() for key in curves):
                drawn[_losses(found, split, folder / f"losses_{split}.png")] = f"Loss, {_words(split)}"
        for split in dict.fromkeys([VALIDATION, TRAINING, *(p.split for p in found.pairs)]):
            pairs = [p for p in found.pairs if p.split == split and any(m.steps for m in p.matches.values())]
            if pairs:
                drawn[_matching(found, pairs, folder / f"steps_{split}.png")] = f"Step matching, {_words(split)}"
    return drawn


def _style() -> dict:
    return {
        "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
        "axes.spines.right": False, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK, "axes.grid": True,
        "grid.color": RULE, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8, "figure.dpi": 150,
        "savefig.facecolor": "white", "axes.axisbelow": True,
    }  # fmt: skip


def _words(split: str) -> str:
    return {VALIDATION: "mean over the validation sets", TRAINING: "training"}.get(split, split.replace("_", " "))


@contextlib.contextmanager
def _panels(count: int, path: Path) -> Iterator[list]:
    """Yield axes in a row, with room for a legend below, and write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * count, PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    yield list(axes)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3 * count))
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _colour(found: Found, arm: str) -> str:
    names = [a["arm"] for a in found.results["arms"]]
    return COLOURS[names.index(arm) % len(COLOURS)]


def _losses(found: Found, split: str, path: Path) -> str:
    """Draw loss over steps: a panel a modality, a colour an arm, a thin line a seed and a thick one their mean."""
    modalities = list(dict.fromkeys(m for curves in found.curves.values() for s, m in curves if s == split))
    arms = list(dict.fromkeys(arm for arm, _ in found.curves))
    records = found.study.base_config().model.modalities
    units = {m: "squared error" if records[m].objective == "diffusion" else "nats a token" for m in modalities}
    with _panels(len(modalities), path) as axes:
        for axis, modality in zip(axes, modalities, strict=True):
            shown = []
            for arm in arms:
                mine = [c[split, modality] for (a, _), c in found.curves.items() if a == arm and (split, modality) in c]
                colour = _colour(found, arm)
                for curve in mine if len(mine) > 1 else []:
                    axis.plot(curve.steps, curve.losses, color=colour, alpha=0.35, linewidth=0.8)
                mean = _mean_curve(mine)
                axis.plot(mean.steps, mean.losses, color=colour, linewidth=1.5, label=arm)
                shown += mean.losses
            axis.set_title(modality)
            axis.set_xlabel("training step")
            axis.set_ylabel(f"{'training' if split == TRAINING else 'validation'} loss ({units[modality]})")
            _zoom(axis, shown)
    return path.name


def _zoom(axis, losses: list[float]) -> None:
    """Let the first, highest losses leave the panel, so that the arms can be told apart."""
    finite = np.array(losses)
    if len(finite) > 3:
        low, high = finite.min(), np.quantile(finite, 0.95)
        margin = 0.05 * (high - low) or 0.05
        axis.set_ylim(low - margin, high + margin)


def _mean_curve(curves: list[Curve]) -> Curve:
    """Return the mean at the steps that all curves have."""
    common = set.intersection(*(set(c.steps) for c in curves)) if curves else set()
    values = [dict(zip(c.steps, c.losses, strict=True)) for c in curves]
    mean = Curve()
    for step in sorted(common):
        mean.add(step, float(np.mean([v[step] for v in values])))
    return mean


def _matching(found: Found, pairs: list[Pair], path: Path) -> str:
    """Draw the steps that an arm needs over those of the other one: a panel a modality, a line for each slope."""
    modalities = list(dict.fromkeys(p.modality for p in pairs))
    slopes = {(m["arm"], m["split"], m["modality"]): m for m in found.results["matches"]}
    with _panels(len(modalities), path) as axes:
        for axis, modality in zip(axes, modalities, strict=True):
            mine = [p for p in pairs if p.modality == modality]
            end = max(t for p in mine for m in p.matches.values() for t in m.steps)
            axis.plot([0, end], [0, end], color=SOFT, linestyle=(0, (4, 3)), linewidth=1, label="as many steps")
            said = []
            for pair in mine:
                row, colour = slopes[pair.arm, pair.split, modality], _colour(found, pair.arm)
                for m in pair.matches.values():
                    _points(axis, m, colour)
                slope = row["steps_ratio"]
                axis.plot([0, end], [0, slope * end], color=colour, linewidth=1.5, label=pair.arm)
                said.append((slope * end, bounded(slope, row["steps_ratio_is_bound"]), colour))
            axis.set_title(modality)
            against = list(dict.fromkeys(p.against for p in mine))
            axis.set_xlabel(f"step of {against[0]}" if len(against) == 1 else "step of the arm matched with")
            axis.set_ylabel("step at the same loss")
            axis.set_xlim(0, 1.03 * end)
            highest = [u for p in mine for m in p.matches.values() for u in m.needed]
            axis.set_ylim(0, 1.03 * max([end, *highest, *(y for y, _, _ in said)]))
            _say(axis, said, 1.05 * end)
    return path.name


def _say(axis, said: list[tuple[float, str, str]], x: float) -> None:
    """Write each slope's number beside its end, from below up, none over another."""
    gap, floor = 0.055 * axis.get_ylim()[1], 0.0
    for y, text, colour in sorted(said):
        floor = max(y, floor)
        axis.text(x, floor, text, color=colour, va="center", fontsize=8, clip_on=False)
        floor += gap


def _points(axis, match, colour: str) -> None:
    reached = np.array(match.reached, bool)
    t, u = np.array(match.steps), np.array(match.needed)
    axis.plot(t[reached], u[reached], "o", color=colour, markersize=3, alpha=0.6)
    axis.plot(t[~reached], u[~reached], "^", color=colour, markersize=4, fillstyle="none")  # it lies above
