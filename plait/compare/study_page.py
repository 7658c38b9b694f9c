"""One self-contained HTML page of a study: its tables, and figures that one can read values from and take away."""

import dataclasses
import json
import re
from html import escape
from pathlib import Path
from typing import Any

from plait.common.files import write_text
from plait.compare.charts import Chart
from plait.compare.results import Matched
from plait.compare.tables import Table, tables

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SECTIONS = ("Steps for the same loss", "Beside the paper", "Losses", "Step matching",
            "Step matching on each validation set", "What the models make", "Scaling", "Inside the models", "Arms",
            "Learning rates tried", "Runs")  # fmt: skip
"""In their order; a section has figures, a table of its name, or both."""
FOLDED = ("Step matching on each validation set",)
"""Sections that are opened by a click."""
LONG = 28
"""Cells with more characters may be wrapped."""
NUMBER = re.compile(r"(≥ )?[-−]?[\d,]*\.?\d+(e[-+]?\d+)?|–")


def write_page(matched: Matched, charts: list[Chart], path: Path) -> Path:
    """Write the page and return its path."""
    results = matched.results
    by_title = {table[0]: table for table in tables(results)}
    contents = {}
    for title in SECTIONS:
        content = "".join(_figure(c) for c in charts if c.section == title)
        content += _table(by_title[title]) if title in by_title else ""
        contents |= {title: content} if content else {}
    name = escape(results["study"].replace("_", " "))
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name} · plait</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{_template('study.css')}</style></head><body>"
        f'<header><h1>{name}</h1><p class="lede">{escape(results["about"])}</p>'
        f'<p class="facts">{escape(matched.facts)}</p>{_navigation(contents)}</header><main>'
        f"{''.join(_section(title, content) for title, content in contents.items())}</main>"
        f"<script>{_template('study.js')}</script></body></html>\n"
    )
    write_text(path, html)
    return path


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _navigation(contents: dict[str, str]) -> str:
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in contents if title not in FOLDED)
    return f"<nav>{links}</nav>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _section(title: str, content: str) -> str:
    if title in FOLDED:
        return f"<details><summary>{escape(title)}</summary>{content}</details>"
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{content}</section>'


def _figure(chart: Chart) -> str:
    """Return a figure with the data that the page's script draws."""
    data = json.dumps(_slim(dataclasses.asdict(chart)), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<figure class="chart" id="{escape(chart.name)}"><div class="top"><figcaption><h3>{escape(chart.title)}</h3>'
        f'<p class="note">{escape(chart.note)}</p></figcaption><div class="tools">'
        f'<button type="button" class="png" aria-label="{escape(chart.title)} as PNG">PNG</button>'
        f'<button type="button" class="csv" aria-label="{escape(chart.title)} as CSV">CSV</button></div></div>'
        f'<div class="legend"></div><div class="panels"></div><script type="application/json">{data}</script></figure>'
    )


def _slim(value: Any) -> Any:
    """Return plain data without what is not set, numbers as precise as one can see."""
    if isinstance(value, dict):
        return {k: _slim(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_slim(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _table(table: Table) -> str:
    _, note, header, rows = table
    numeric = [all(NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(
        f'<th class="number">{escape(h)}</th>' if n else f"<th>{escape(h)}</th>"
        for h, n in zip(header, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row, numeric))}</tr>" for row in rows)
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'{note}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, is_number: bool) -> str:
    kind = "number" if is_number else "long" if len(text) > LONG else ""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"
