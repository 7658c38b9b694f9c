"""Self-contained HTML pages: a template, one style sheet and one script, with nothing loaded from anywhere."""

import base64
import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from plait.common.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
CHARTS = ("scales.js", "panel.js", "charts.js")
"""The script that draws charts."""
LONG = 28
"""Cells with more characters may be wrapped."""
NUMBER = re.compile(r"(≥ )?[-−]?[\d,]*\.?\d+(e[-+]?\d+)?|–")


def write_page(
    path: Path, template: Path, *, styles: tuple[str, ...] = (), scripts: tuple[str, ...] = (),
    sources: tuple[str, ...] = (), **shown: Any,
) -> Path:  # fmt: skip
    """Write the page that a template makes of ``shown``, and return its path.

    The template extends ``base.html``, and may import ``charts.html`` and whatever stands beside it. ``styles`` and
    ``scripts`` are files beside either, taken after style.css and those that draw charts; ``sources`` is more
    JavaScript, such as `Codec.page_scripts` returns.
    """
    loader = jinja2.FileSystemLoader([template.parent, TEMPLATES])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    environment.globals |= {"slim": slim, "columns": columns, "long": LONG}

    def joined(names: tuple[str, ...]) -> str:
        return "\n".join(loader.get_source(environment, name)[0] for name in names)

    script = "\n".join((joined((*CHARTS, *scripts)), *sources))
    assert "</script" not in script.lower(), "a script cannot hold the end of its own element"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template.name).render(
        **shown,
        style=markupsafe.Markup(joined(("style.css", *styles))),
        script=markupsafe.Markup(script),
        script_hash=f"sha256-{digest}",
    )
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))  # what users wrote may hold lone surrogates
    return path


def slim(value: Any) -> Any:
    """Return a chart as plain data without what is not set, numbers as precise as one can see, null for NaN."""
    if dataclasses.is_dataclass(value):
        return slim({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {k: slim(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [slim(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def columns(rows: list[list[str]]) -> list[bool]:
    """Return for each column of a table whether it holds numbers alone."""
    return [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows, strict=True)]
