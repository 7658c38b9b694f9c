"""Charts as data and as PNG, and pages that hold all they show and run nothing but their own script."""

import base64
import hashlib
import math
import re

import pytest

from plait.web.chart_files import draw_figures
from plait.web.charts import Chart, Panel, Series
from plait.web.html import columns, slim, write_page

HOSTILE = "</script><script>alert(1)</script>"


def test_every_chart_is_drawn_as_png(tmp_path):
    """All kinds of series, with and without intervals, one panel and more than fit a row."""
    lines = [
        Series("a", [1, 10], [2.0, 1.0], colour=0, low=[1.9, 0.9], high=[2.1, 1.1], end_label="0.5"),
        Series("even", [1, 10], [1.0, 1.0], dash=1),
    ]
    bars = [Series("b", [0, 1], [0.5, 1.2], "bars", 1, [0.4, 1.1], [0.6, 1.3], [False, True])]
    points = [Series("c", [1.5, 2.5], [1.0, 2.0], "points", 12, is_bound=[True, False])]
    panels = [Panel("log", "x", "y", lines, log=True), Panel("bars", "", "y", bars, categories=["text", "image"]),
              *(Panel("points", "x", "y", points, [0, 3], [0, 3]) for _ in range(8))]  # fmt: skip
    (path,) = draw_figures([Chart("all", "s", "t", "n", panels)], tmp_path)
    image = pytest.importorskip("PIL.Image").open(path)
    assert image.width > 2 * image.height and path.name == "all.png"


def test_a_page_runs_its_own_script_alone(tmp_path):
    """The policy names the script by its hash, and data of charts cannot close their element."""
    template = tmp_path / "page.html"
    template.write_text(
        '{% extends "base.html" %}{% from "charts.html" import chart, table %}'
        "{% block page %}{{ chart(drawn) }}{{ table('', head, rows) }}{% endblock %}"
    )
    drawn = Chart("c", "s", HOSTILE, HOSTILE, [Panel(HOSTILE, "x", "y", [Series(HOSTILE, [1], [math.nan])])])
    page = write_page(tmp_path / "out.html", template, name=HOSTILE, drawn=drawn, head=[HOSTILE], rows=[["1"]])
    text = page.read_text("utf-8")
    assert HOSTILE not in text and '"y": [null]' in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_charts_are_slimmed_and_columns_of_numbers_known():
    series = slim(Series("a", [1, 2.00000001], [math.nan, math.inf], along={"tokens": [1.0, math.nan]}))
    assert series["x"] == [1, 2.0] and series["y"] == [None, None] and series["along"] == {"tokens": [1.0, None]}
    assert "low" not in series and series["dash"] == 0
    assert columns([["1,000", "a", "≥ 0.5", "–"], ["2e-3", "1", "-1", "7"]]) == [True, False, True, True]
