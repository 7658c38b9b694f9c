"""One self-contained HTML page of a study: its tables, and charts that one can read values from and take away."""

from pathlib import Path

from plait.compare.results import Matched
from plait.compare.tables import tables
from plait.web.charts import Chart
from plait.web.html import write_page

TEMPLATE = Path(__file__).parent / "templates" / "study.html"
SECTIONS = ("Steps for the same loss", "Beside the paper", "Losses", "Step matching",
            "Step matching on each validation set", "What the models make", "The models tried",
            "The models tried by group", "Scaling", "Inside the models", "Arms",
            "Learning rates tried", "Runs")  # fmt: skip
"""In their order; a section has charts, a table of its name, or both."""
FOLDED = ("Step matching on each validation set",)
"""Sections that are opened by a click."""


def write_study_page(matched: Matched, charts: list[Chart], path: Path) -> Path:
    """Write the page and return its path."""
    by_title = {title: table for title, *table in tables(matched.results)}
    sections = [
        {"title": title, "anchor": title.lower().replace(" ", "-"), "is_folded": title in FOLDED,
         "charts": [c for c in charts if c.section == title], "table": by_title.get(title)}
        for title in SECTIONS
    ]  # fmt: skip
    return write_page(
        path,
        TEMPLATE,
        name=matched.results["study"].replace("_", " "),
        about=matched.results["about"],
        facts=matched.facts,
        sections=[s for s in sections if s["charts"] or s["table"]],
    )
