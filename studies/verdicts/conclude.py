"""The verdicts on the paper's claims, and on some of our own, from the logs that are kept of this repository's studies.

    python studies/verdicts/conclude.py docs        (or: make verdicts)

Reads ``claims.yaml`` and ``study_logs/`` of the folder, and writes ``results.json``, ``results.md``,
``images/studies/`` and a page of each study in ``pages/``. Nothing else goes in, so that anyone gets the same from the
same logs. `plait compare STUDY --keep docs/study_logs` keeps the logs of a study.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from claims import INCONCLUSIVE, MOST_INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, judge, read_claims
from identical import difference_of_identical_towers

from plait.common.errors import PlaitError
from plait.common.files import write_json, write_text
from plait.compare.analysis_charts import SECTION as INSIDE
from plait.compare.analysis_charts import analysis_charts
from plait.compare.curves import TRAINING
from plait.compare.kept_rows import kept_analyses, kept_records
from plait.compare.results import Found, gather
from plait.compare.study import Study, load_study
from plait.compare.study_charts import charts
from plait.compare.study_page import FOLDED, write_study_page
from plait.compare.tables import interval, markdown_table, number, tables
from plait.config.shipped import config_path, study_path
from plait.web.chart_files import draw_figures
from plait.web.charts import Chart

LOGS, IMAGES, PAGES = "study_logs", "images/studies", "pages"
SHARE = ("arm", "against", "modality", "seeds", "steps_ratio", "steps_ratio_low", "steps_ratio_high",
         "steps_ratio_is_bound")  # fmt: skip
"""What results.json keeps of an arm's match on the training loss."""
SHOWN = ("Beside the paper", "Step matching", "What the models make", "The models tried", "The models tried by group",
         "Scaling", "Arms", "Learning rates tried")  # fmt: skip
"""Tables of each study that has runs."""
OWN = {REPRODUCED: "holds", NOT_REPRODUCED: "does not hold"}
"""What verdicts are called of claims that are not the paper's."""


def main() -> None:
    """Judge the claims of a folder, and say what the rules still ask for."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python studies/verdicts/conclude.py FOLDER   (with claims.yaml and study_logs/)")
    try:
        path, still_open = conclude(sys.argv[1], lambda name: load_study(study_path(name), find_base=config_path))
    except PlaitError as error:
        raise SystemExit(f"conclude: {error}") from None
    print("\n".join([f"results: {path}", *(f"still open: {sentence}" for sentence in still_open)]))


def conclude(folder: str | Path, find_study: Callable[[str], Study]) -> tuple[Path, list[str]]:
    """Judge the claims and write results.json, results.md, figures and pages into the folder.

    Returns the latter, and what the rules still ask for. ``find_study`` loads a study by its name. Raises ConfigError
    for a file of claims that is none.
    """
    folder = Path(folder)
    claims = read_claims(folder / "claims.yaml")
    studies = {name: _kept(find_study(name), folder) for name in claims.studies}
    judged = judge(claims.claims, studies, difference_of_identical_towers)
    own = judge(claims.own, studies, difference_of_identical_towers)
    run = {name: one for name, one in studies.items() if one.curves}
    results = {"rules": claims.rules, **judged, "studies": [_study_row(one) for one in studies.values()]}
    results |= {"own": own} if claims.own else {}
    write_json(folder / "results.json", results)
    drawn = {name: _figures(one, folder) for name, one in run.items()}
    write_text(folder / "results.md", _markdown(results, run, drawn))
    return folder / "results.md", [*open_questions(judged["claims"]), *missing_texts(own["claims"])]


def open_questions(judged: list[dict[str, Any]]) -> list[str]:
    """Return, in one sentence each, what the rules ask of the verdicts on the paper's claims and is not there."""
    count = sum(row["verdict"] == INCONCLUSIVE for row in judged)
    too_many = [f"{count} claims are inconclusive, at most {MOST_INCONCLUSIVE} may be"]
    return [*missing_texts(judged), *(too_many if count > MOST_INCONCLUSIVE else [])]


def missing_texts(judged: list[dict[str, Any]]) -> list[str]:
    """Return, in one sentence each, what the rules ask of the text beside verdicts and is not there."""
    missing = []
    for row in judged:
        if row["verdict"] == INCONCLUSIVE and not row["decide"]:
            missing.append(f"claim {row['number']} is inconclusive: claims.yaml must say what would decide it")
        if row["verdict"] == NOT_REPRODUCED and not row["tried"]:
            missing.append(f"claim {row['number']} is not reproduced: claims.yaml must say what was tried")
    return missing


def _kept(study: Study, folder: Path) -> Found:
    return gather(study, kept_records(study, folder / LOGS))


def _study_row(matched: Found) -> dict[str, Any]:
    runs = matched.results["runs"]
    return {
        "study": matched.results["study"],
        "runs": len(runs),
        "finished": sum(r["status"] == "finished" for r in runs),
        "failed": sum(r["status"] == "failed" for r in runs),
        "commit": matched.results["machine"].get("commit", ""),
        "shares_of_steps": [
            {key: row[key] for key in SHARE} for row in matched.results["matches"] if row["split"] == TRAINING
        ],
        "scaling": {kind: matched.results["scaling"][kind] for kind in ("fits", "savings")},
    }


def _figures(matched: Found, folder: Path) -> list[Chart]:
    """Write a study's page, draw its figures into the folder of images, and return those that results.md shows."""
    name = matched.study.config.name
    drawn = charts(matched) + analysis_charts(matched, kept_analyses(matched.study, folder / LOGS))
    write_study_page(matched, drawn, folder / PAGES / f"{name}.html")
    shown = [c for c in drawn if c.section not in FOLDED]
    draw_figures(shown, folder / IMAGES / name)
    return shown


def _markdown(results: dict[str, Any], run: dict[str, Found], drawn: dict[str, list[Chart]]) -> str:
    lines = [
        "# The paper's claims, measured", "",
        "Ten claims of the paper (arXiv 2411.04996) that a small reproduction must show in direction, and what was "
        "measured. This page is generated by `make verdicts` from `claims.yaml` (the claims and the "
        "rules, written down before there were figures) and `study_logs/`. Do not edit it. The same command writes "
        "`pages/<study>.html`: the figures of each study to read values from, and to take away as PNG and CSV.", "",
        *markdown_table(*_claim_rows(results)),
        "## How verdicts are given", "", *(f"- {rule}" for rule in results["rules"]), "",
    ]  # fmt: skip
    lines += _texts("##", results["claims"])
    if "own" in results:
        own = results["own"]
        lines += ["## Claims of our own", "", "They are not the paper's, and are judged by the same rules.", "",
                  *markdown_table(*_claim_rows(own, OWN)), *_texts("###", own["claims"])]  # fmt: skip
    counts = [[row["study"], *(str(row[key]) for key in ("finished", "failed", "runs"))] for row in results["studies"]]
    lines += ["## Runs", "", *markdown_table(["study", "finished", "failed", "planned"], counts)]
    for name, matched in run.items():
        lines += _study_section(name, matched, drawn[name])
    return "\n".join(lines).rstrip() + "\n"


def _texts(heading: str, claims: list[dict[str, Any]]) -> list[str]:
    """Return the lines of what stands beside the verdicts."""
    lines = []
    for title, verdict, key in (
        ("What was tried", NOT_REPRODUCED, "tried"),
        ("What would decide", INCONCLUSIVE, "decide"),
        ("What to know beside them", "", "note"),
    ):
        some = [c for c in claims if (c["verdict"] == verdict if verdict else c[key])]
        if some:
            lines += [f"{heading} {title}", "", *(f"- **{c['number']}. {c['claim']}.** {c[key]}" for c in some), ""]
    return lines


def _study_section(name: str, matched: Found, drawn: list[Chart]) -> list[str]:
    """Return a study's lines of results.md: its figures, those of what models do inside folded, and its tables."""
    lines = [f"## Study {name}", "", matched.results["about"], ""]
    figures = {c.name: [f"![{c.title}]({IMAGES}/{name}/{c.name}.png)", "", c.note, ""] for c in drawn}
    inside = [c.name for c in drawn if c.section == INSIDE]
    lines += [line for key, some in figures.items() if key not in inside for line in some]
    if inside:
        lines += ["<details>", f"<summary>{INSIDE}</summary>", ""]
        lines += [*(line for key in inside for line in figures[key]), "</details>", ""]
    for title, note, header, rows in tables(matched.results):
        if title in SHOWN:
            lines += [f"### {title}", "", *([note, ""] if note else []), *markdown_table(header, rows)]
    return lines


def _claim_rows(judged: dict[str, Any], words: Mapping[str, str] = {}) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of claims: one row a claim, then one for each of its figures.

    ``words`` are what verdicts are called, where that is something else. The paper's column is left out if it is empty.
    """
    header = ["", "claim", "paper", "ours", "lowest to highest", "seeds", "claimed", "verdict"]
    rows = []
    for claim in judged["claims"]:
        verdict = words.get(claim["verdict"], claim["verdict"])
        rows.append([str(claim["number"]), f"**{claim['claim']}**", "", "", "", "", "", f"**{verdict}**"])
        for r in judged["rows"]:
            if r["number"] == claim["number"]:
                ours = f"{r['bound']} {number(r['ours'])}".strip()
                span = interval(r["low"], r["high"], r["seeds"])
                verdict = words.get(r["verdict"], r["verdict"])
                rows.append(["", r["figure"], r["paper"], ours, span, str(r["seeds"] or "–"), r["rule"], verdict])
    if not any(r["paper"] for r in judged["rows"]):
        header, *rows = [row[:2] + row[3:] for row in [header, *rows]]
    return header, rows


if __name__ == "__main__":
    main()
