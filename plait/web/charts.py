"""Charts as data: panels of series.

One description serves the page's script (templates/charts.js), the CSV that the page offers, and the PNG files
(chart_files.py), so that they cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

NEUTRAL = -1
"""The colour of what belongs to nothing that has a colour."""
NUM_COLOURS = 10
"""Colours of templates/style.css; a higher number begins again."""


@dataclass
class Series:
    """What has one name in the legend. Lists have one entry a point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    """NaN is a gap in a line."""
    kind: Literal["line", "points", "bars"] = "line"
    colour: int = NEUTRAL
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Of an interval or a range over seeds: a band around a line, whiskers elsewhere."""
    is_bound: Sequence[bool] | None = None
    """Points that are only known to lie above; drawn hollow."""
    dash: int = 0
    """0: an unbroken line; 1, 2, ...: dashes that can be told apart."""
    faint: bool = False
    end_label: str = ""
    """Written where a line ends."""
    along: dict[str, Sequence[float]] = field(default_factory=dict)
    """Other x of the same points, by the name of their axis (`Chart.axes`)."""


@dataclass
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_range: list[float] | None = None
    y_range: list[float] | None = None
    log: bool = False
    """Whether both axes are logarithmic."""
    categories: list[str] = field(default_factory=list)
    """Names of x = 0, 1, ... on an axis that is none of numbers."""
    note: str = ""
    """What the curves cannot show."""


@dataclass
class Chart:
    """One figure."""

    name: str
    """File name without an ending."""
    section: str
    title: str
    note: str
    panels: list[Panel]
    axes: list[str] = field(default_factory=list)
    """Axes among which the page's controls choose: the first is `Series.x`, the others are in `Series.along`."""
    scales: bool = False
    """Whether the page's controls choose between a linear and a logarithmic y axis."""
