"""One self-contained HTML page of a study: its tables and figures."""

import base64
from html import escape
from pathlib import Path

from plait.compare.figures import draw_figures
from plait.compare.results import Found
from plait.compare.tables import tables
from plait.files import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #23211c; --soft: #68635a; --rule: #e5e0d5; --paper: #fbfaf6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ece8de; --soft: #a59f92; --rule: #34312b; --paper: #171613; }
}
body { margin: 0 auto; max-width: 1176px; padding: 48px 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font: 400 44px/1.1 ui-serif, Georgia, serif; margin: 0 0 8px; }
h2 { font: 400 26px/1.2 ui-serif, Georgia, serif; margin: 56px 0 6px; }
p { color: var(--soft); max-width: 84ch; margin: 0 0 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
td.long { white-space: normal; min-width: 220px; }
figure { margin: 18px 0 0; }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
img { max-width: 100%; background: white; border: 1px solid var(--rule); }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONG = 28
"""Cells with more characters may be wrapped."""


def write_page(found: Found) -> Path:
    """Draw the figures into the study's results and write ``study.html`` there; returns its path."""
    folder = found.study.results
    drawn = draw_figures(found, folder) if found.curves else {}
    name, parts = escape(found.results["study"]), []
    for file, title in drawn.items():
        data = base64.b64encode((folder / file).read_bytes()).decode()
        parts.append(f'<figure><figcaption>{escape(title)}</figcaption>'
                     f'<img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>')  # fmt: skip
    figures = f"<h2>Figures</h2>{''.join(parts)}" if parts else ""
    shown = {title: _table(title, note, header, rows) for title, note, header, rows in tables(found.results)}
    first = [shown.pop(title) for title in ("Beside the paper", "Step matching") if title in shown]
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name} · plait</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
        f"<h1>{name}</h1><p>{escape(found.results['about'])}</p>"
        f"{''.join(first)}{figures}{''.join(shown.values())}</body></html>\n"
    )
    path = folder / "study.html"
    write_text(path, html)
    return path


def _table(title: str, note: str, header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    note = f"<p>{escape(note)}</p>" if note else ""
    return (f'<h2>{escape(title)}</h2>{note}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")  # fmt: skip


def _cell(text: str) -> str:
    return f'<td class="long">{escape(text)}</td>' if len(text) > LONG else f"<td>{escape(text)}</td>"
