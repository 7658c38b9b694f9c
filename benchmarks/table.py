"""Write the tables of docs/performance.md from the results files.

    python benchmarks/table.py            rewrite them
    python benchmarks/table.py --check    exit with 1 where they are not those of the results files

A table stands between `<!-- results: <hardware> -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import BUSY, RESULTS, ROOT, Row

PAGE = ROOT / "docs" / "performance.md"
STEP = ("step_ratio/mot", "step_ratio/dense-again", "optimizer_ratio/mot", "optimizer_floor/mot",
        "full_step_ratio/mot", "full_step_floor/mot", "mfu/mot", "mfu/dense")  # fmt: skip
"""Kinds of rows that the first table shows, a line for each shape."""
RECIPE = ("recipe_ratio/", "recipe_floor/")
"""Rows of recipes.py, a line for each recipe."""
GOALS = {
    "cpu": [
        (r"step_ratio/mot/d\d+-t4096-.*/float32/compiled", "<=", 1.00),
        (r"step_ratio/mot/d\d+-t1024-3towers-.*/float32/compiled", "<=", 1.04),
        (r"step_ratio/mot/d\d+-t2048-.*/bfloat16/compiled", "<=", 1.02),
        (r"recipe_ratio/whole/.*", "<=", 1.10),
        (r"step_ratio/boolean-masks-whole/d\d+-t4096-.*", ">=", 3.0),
        (r"attention_ratio/transfusion/t2048-4documents/float32", "<=", 0.20),
        (r"head_memory/v65536-.*", "<=", 0.20),
        (r"towers_ratio/(2|4|8|16)/.*", "<=", 1.05),
        (r"decode/speedup/d(256|512)-.*/rows32", ">=", 6.0),
        (r"checkpoint/stall/.*", "<=", 0.15),
        (r"loader/times_the_need/.*", ">=", 20.0),
        (r"data/open/.*", "<=", 1.0),
    ],
    "gpu": [
        (r"step_ratio/mot/d(1024|2048|4096)-t32768-.*/bfloat16/compiled", "<=", 1.02),
        (r"step_ratio/mot/d(1024|2048|4096)-t4096-.*/bfloat16/compiled", "<=", 1.06),
        (r"recipe_ratio/whole/d\d+-t32768-.*", "<=", 1.05),
        (r"step_ratio/boolean-masks/.*", ">=", 1.3),
        (r"mfu/mot/d2048-t8192-.*", ">=", 0.45),
        (r"towers_ratio/(2|4|8|16)/.*", "<=", 1.05),
        (r"head_memory/v65536-.*", "<=", 0.20),
    ],
}
"""Rows that have a goal: pattern of the name, relation, bound."""


def tables(results: dict, hardware: str) -> str:
    """Return the Markdown of one results file."""
    rows = {row["name"]: row for row in results["rows"]}
    facts = ", ".join(f"{k} {v}" for k, v in results["hardware"].items())
    versions = sorted({f"torch {r['versions']['torch']}" for r in rows.values()})
    commits = sorted({r["commit"] for r in rows.values()})
    dates = sorted({r["date"] for r in rows.values()})
    lines = [f"{facts}; {', '.join(versions)}; commit {', '.join(commits)}; {dates[0]} to {dates[-1]}.", ""]
    cases = sorted({name.split("/", 2)[2] for name in rows if name.startswith(STEP)}, key=natural)
    if cases:
        lines += ["| shape / precision / mode | MoT / dense | dense again | AdamW (floor) | whole step (floor) "
                  "| share of the peak, MoT (dense) |", "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [step_line(rows, case, hardware) for case in cases]
        lines.append("")
    recipes = sorted({name.split("/")[2] for name in rows if name.startswith(RECIPE[0])}, key=natural)
    if recipes:
        lines += ["| recipe | forward + backward | whole step, AdamW (floor) | whole step, Muon (floor) "
                  "| dense again |", "|---|---|---|---|---|"]  # fmt: skip
        lines += [recipe_line(rows, recipe, hardware) for recipe in recipes]
        lines.append("")
    others = sorted((n for n in rows if not n.startswith(STEP + RECIPE)), key=natural)
    if others:
        lines += ["| figure | value | unit | against | goal |", "|---|---|---|---|---|"]
        for name in others:
            row = rows[name]
            lines.append(f"| `{name}` | {shown(row)} | {row['unit']} | {row['against']} | {goal(row, hardware)} |")
    if any(row["load"] >= BUSY for row in rows.values()):
        lines += ["", "\\* the machine's load was 1.5 or more; some parts of scale.py keep two cores busy themselves."]
    return "\n".join(lines)


def step_line(rows: dict[str, Row], case: str, hardware: str) -> str:
    """Return a line of the first table."""
    mot, again, optimizer, optimizer_floor, full, full_floor, share, dense_share = (
        rows.get(f"{kind}/{case}") for kind in STEP
    )
    wanted = goal(mot, hardware)
    cells = [f"`{case}`", shown(mot) + (f" (goal {wanted})" if wanted else ""), shown(again)]
    for row, floor in ((optimizer, optimizer_floor), (full, full_floor)):
        cells.append(f"{shown(row)} ({floor['value']:.3f})" if row else "")
    cells.append(f"{share['value']:.0%} ({dense_share['value']:.0%})")
    return f"| {' | '.join(cells)} |"


def recipe_line(rows: dict[str, Row], recipe: str, hardware: str) -> str:
    """Return a line of the table of recipes; what was not measured yet is left empty."""
    gradients = rows.get(f"recipe_ratio/forward-backward/{recipe}")
    cells = [f"`{recipe}`", shown(gradients) if gradients else ""]
    for optimizer in ("adamw", "muon"):
        whole, floor = (rows.get(f"{kind}/{recipe}/{optimizer}") for kind in ("recipe_ratio/whole", "recipe_floor"))
        if whole and floor:
            wanted = goal(whole, hardware)
            cells.append(f"{shown(whole)} ({floor['value']:.3f})" + (f" (goal {wanted})" if wanted else ""))
        else:
            cells.append("")
    again = [rows.get(f"recipe_ratio/dense-again/{recipe}{end}") for end in ("", "/adamw", "/muon")]
    cells.append(", ".join(shown(row) for row in again if row))
    return f"| {' | '.join(cells)} |"


def shown(row: Row) -> str:
    """Return a value with its spread, marked where the machine was busy."""
    value = row["value"]
    digits = 3 if value < 10 else 1 if value < 1000 else 0
    spread = f" ± {row['spread']:,.{digits}f}" if row["spread"] else ""
    mark = " \\*" if row["load"] >= BUSY else ""
    return f"{value:,.{digits}f}{spread}{mark}"


def goal(row: Row, hardware: str) -> str:
    """Return what a row should be and whether it is, or nothing."""
    for pattern, relation, bound in GOALS["cpu" if hardware.startswith("cpu") else "gpu"]:
        if re.fullmatch(pattern, row["name"]):
            met = row["value"] <= bound if relation == "<=" else row["value"] >= bound
            return f"{'≤' if relation == '<=' else '≥'} {bound:g}: {'met' if met else '**missed**'}"
    return ""


def natural(name: str) -> list:
    """Return a key that sorts numbers within names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def rewritten(page: str, folder: Path) -> str:
    """Return the page with every table made anew; a table without a results file says so."""

    def table(match: re.Match) -> str:
        path = folder / f"{match[1]}.json"
        text = tables(json.loads(path.read_text()), match[1]) if path.exists() else "Still to be taken."
        return f"<!-- results: {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- results: (\S+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    wanted = rewritten(page, RESULTS)
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        print("docs/performance.md is not what the results files say: run `python benchmarks/table.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
