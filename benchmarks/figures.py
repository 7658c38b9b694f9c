"""Write the figures of README.md, the pages in docs, and the heads of configs and studies from results files.

    python benchmarks/figures.py            rewrite them
    python benchmarks/figures.py --check    exit with 1 where they are not those of the results files
    python benchmarks/figures.py --take runs/quickstart mixed    keep a run's summary.json as results file
    python benchmarks/figures.py --take-runs runs/benchmark      keep those of the settings in a folder of
                                                                 benchmarks/quickstart.py runs

A block stands between `<!-- figures: <name> -->` and `<!-- end -->`, and names the command and commit of its figures.
A figure within a sentence stands between `<!--f:<name>-->` and `<!--/f-->`; command and commit are in its results file.
Results files: docs/quickstart/<setting>.json (copies of summary.json), docs/quickstart/runs.json (several seeds),
docs/results.json, docs/study_logs/*/study.json, docs/figures/plans.json (`python benchmarks/plans.py`),
benchmarks/results/*.json.
"""

import argparse
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from harness import RESULTS, ROOT
from plans import PLANS
from plans import generating as generating_table
from plans import table as plan_table
from quickstart_table import kept
from quickstart_table import table as quickstart_table
from speed_table import FIGURE, digest, figure, ratios
from table import shown
from trials_table import drivers, robots
from worlds_table import worlds as worlds_table

LOG, VERDICTS = ROOT / "docs" / "experiments.md", ROOT / "docs" / "results.md"
"""A log, whose figures stay as they were measured; and a page that `make verdicts` writes."""
PAGES = (ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {LOG, VERDICTS}))
STUDY_LOGS = ROOT / "docs" / "study_logs"
HEADS = tuple(sorted(path for folder in ("configs", "studies") for path in (ROOT / folder).glob("*.yaml")))
QUICKSTARTS = ROOT / "docs" / "quickstart"
QUICKSTART_RUNS = QUICKSTARTS / "runs.json"
STUDIES = ROOT / "docs" / "results.json"
SPEED = RESULTS / "cpu-2.json"
HEADLINES = {"chameleon": "Chameleon", "chameleon_speech": "Chameleon + speech", "transfusion": "Transfusion"}
"""Studies of the table, with the name that each has there."""


SMALL_WORLD_SCORE = (
    ("", "On backgrounds on which training never showed the object:"),
    ("image_object_accuracy", "{:.0%} of the images made from captions show the right object"),
    ("image_object_chance", "(400-way choice of a reference classifier: chance {:.2%},"),
    ("image_object_codec", "the codec's round trip of real images {:.0%}),"),
    ("image_ground_accuracy", "{:.0%} the right background;"),
    ("speech_recognised", "a recogniser understands {:.0%} of the speech"),
    ("speech_codec_recognised_originals", "(originals {:.0%});"),
    ("caption_object_accuracy", "captions name the right object in {:.0%} of images"),
    ("caption_speech_object_accuracy", "and {:.0%} of recordings"),
    ("caption_object_chance", "(chance {:.1%})"),
)
"""How well a quickstart's model does: figures of its summary and what is said of each; "" is said always."""
WORLDS_SCORE = (
    ("", "On combinations and things that training never showed:"),
    ("scene3d_object_accuracy", "{:.0%} of the scenes made from captions show the right thing"),
    ("scene3d_object_chance", "(among 100 shapes: chance {:.0%},"),
    ("scene3d_object_codec", "the codec's round trip {:.0%}),"),
    ("scene3d_colour_accuracy", "{:.0%} in the right colour,"),
    ("scene3d_stands", "{:.0%} stand;"),
    ("caption_scene3d_object_accuracy", "captions name the right thing in {:.0%};"),
    ("motion_event_accuracy", "{:.0%} of the motions are the event asked for"),
    ("motion_event_chance", "(chance {:.0%}),"),
    ("motion_error", "{:.3f} sides of the cube off"),
    ("motion_error_still", "(nothing moves: {:.3f})"),
)
ROBOT_SCORE = (
    ("success", "From starts that training never shows it succeeds in {:.0%} of the episodes"),
    ("success_expert", "(the scripted expert {:.0%},"),
    ("success_baseline", "a plain network {:.0%},"),
    ("success_random", "random actions {:.0%}),"),
    ("success_wrong_instruction", "and in {:.0%} where it is told another task"),
)
DRIVING_SCORE = (
    ("drive_crash_rate", "It crashes in {:.0%} of hard scenes that training never shows"),
    ("drive_crash_rate_idm", "(highway-env's own driver {:.0%},"),
    ("drive_crash_rate_idle", "one that keeps on {:.0%});"),
    ("traffic_event_accuracy", "in {:.0%} of the scenes made from captions all of it happens,"),
    ("caption_traffic_event_accuracy", "and captions of scenes are right in all they say in {:.0%}"),
)
ALL_CONCEPTS_SCORE = (
    ("caption_object_accuracy", "captions name the right one of 1,532 objects in {:.1%}"),
    ("caption_object_chance", "(chance {:.2%})"),
)
SCORES = {"quickstart": ("mixed", SMALL_WORLD_SCORE), "transfusion": ("transfusion", SMALL_WORLD_SCORE),
          "chameleon-speech": ("chameleon_speech", SMALL_WORLD_SCORE),
          "smollm2-images": ("smollm2_images", SMALL_WORLD_SCORE),
          "worlds": ("worlds", WORLDS_SCORE), "robot": ("robot", ROBOT_SCORE),
          "robot-all": ("robot_all", ROBOT_SCORE), "driving": ("driving", DRIVING_SCORE),
          "all-concepts": ("all_concepts", ALL_CONCEPTS_SCORE)}  # fmt: skip
"""Name of a run's two figures within sentences, its results file, and what is said of it."""
SCORES = {name: entry for name, entry in SCORES.items() if (QUICKSTARTS / f"{entry[0]}.json").is_file()}


def quickstart(summary: Mapping[str, Any]) -> str:
    """Return what the quickstart took and reached."""
    return f"{cost(summary)}. {score(summary, SMALL_WORLD_SCORE)}. {source('plait quickstart', summary)}"


def reached(command: str, table: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    """Return what writes what a run took, and a table of what it reached."""
    return lambda summary: f"{cost(summary)}. {source(command, summary)}\n\n{table(summary)}"


def score(summary: Mapping[str, Any], said: Sequence[tuple[str, str]]) -> str:
    """Return in words how well a model does."""
    return " ".join(filter(None, (phrase(summary, name, form) if name else form for name, form in said)))


def phrase(summary: Mapping[str, Any], name: str, form: str) -> str:
    """Return a figure in words, nothing where it was not measured."""
    value = summary.get(name)
    return form.format(value) if isinstance(value, int | float) else ""


def cost(summary: Mapping[str, Any]) -> str:
    """Return time and memory of a run."""
    memory = phrase(summary, "peak_memory_gb", " and {:.1f} GB of memory (PSS of all processes)")
    return f"One run took {summary['seconds_total'] / 60:.0f} min{memory} on two CPU cores"


def cost_at(summary: Mapping[str, Any]) -> str:
    """Return time and memory of a run, with its commit."""
    return f"{cost(summary)} (commit {short(summary['commit'])})"


def source(command: str, summary: Mapping[str, Any]) -> str:
    """Return where figures come from."""
    return f"(`{command}`, commit {short(summary['commit'])}.)"


def short(commit: str) -> str:
    """Return a commit as it is written: seven digits, and whether sources had been changed since."""
    return commit[:7] + ("+changes" if commit.endswith("+changes") else "")


def studies(results: Mapping[str, Any]) -> str:
    """Return the table of the headline studies: MoT's share of dense's steps for the same training loss."""
    rows = {row["study"]: row for row in results["studies"]}
    lines = ["| | text | images | speech | command |", "|---|---|---|---|---|"]
    for study, title in HEADLINES.items():
        shares = {row["modality"]: row for row in rows[study]["shares_of_steps"] if row["arm"] == "mot"}
        cells = [share(shares[name]) if name in shares else "" for name in ("text", "image", "speech")]
        lines.append(f"| {title} | {' | '.join(cells)} | `plait compare {study}` |")
    commits = ", ".join(sorted({short(rows[study]["commit"]) for study in HEADLINES}))
    return "\n".join([*lines, "", f"(`make verdicts` from docs/study_logs; runs of commit {commits}.)"])


def share(row: Mapping[str, Any]) -> str:
    """Return a share of steps with its lowest and highest seed."""
    bound = "≥ " if row["steps_ratio_is_bound"] else ""
    mean, low, high = (row[f"steps_ratio{edge}"] for edge in ("", "_low", "_high"))
    return f"{bound}{mean:.2f} ({low:.2f} to {high:.2f})"


CHECKPOINT = (
    ("size, with the optimizer's state", "checkpoint/size/d256-l4-t4096"),
    ("time lost while it is written, as a share of the time until it is whole", "checkpoint/stall/d256-l4-t4096"),
    ("time until it is whole", "checkpoint/whole_after/d256-l4-t4096"),
    ("training stands still for", "checkpoint/stands_still/d256-l4-t4096"),
    ("reading it, with all checksums", "checkpoint/resume/d256-l4-t4096"),
)
WEAK = (
    ("tokens a second of two ranks, over twice one rank's", "weak/2ranks/d256-l4-t4096"),
    ("the same of two runs apart", "weak/2apart/d256-l4-t4096"),
)


def rows_of(titles: Sequence[tuple[str, str]], part: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what makes a table of some rows of a part of benchmarks/scale.py."""

    def table(results: Mapping[str, Any]) -> str:
        rows = {row["name"]: row for row in results["rows"]}
        lines = [f"| {title} | {shown(rows[name])} {rows[name]['unit']} |" for title, name in titles]
        commits = ", ".join(sorted({short(rows[name]["commit"]) for _, name in titles}))
        facts = f"(`python benchmarks/scale.py --part {part}`, two cores, model 256 wide, commit {commits}; \\* busy.)"
        return "\n".join(["| | |", "|---|---|", *lines, "", facts])

    return table


BLOCKS: dict[str, tuple[Path, Callable[[Mapping[str, Any]], str]]] = {
    "quickstart": (QUICKSTARTS / "mixed.json", quickstart),
    "quickstart-runs": (QUICKSTART_RUNS, quickstart_table),
    "worlds": (QUICKSTARTS / "worlds.json", reached("plait quickstart --setting worlds", worlds_table)),
    "robot": (QUICKSTARTS / "robot.json", reached("plait quickstart --setting robot", robots)),
    "robot-all": (QUICKSTARTS / "robot_all.json", reached("plait quickstart --config robot_all", robots)),
    "driving": (QUICKSTARTS / "driving.json", reached("plait quickstart --config driving", drivers)),
    "studies": (STUDIES, studies),
    "speed": (SPEED, ratios),
    "checkpoint": (SPEED, rows_of(CHECKPOINT, "checkpoint")),
    "weak": (SPEED, rows_of(WEAK, "weak")),
    "plans": (PLANS, plan_table),
    "generating": (PLANS, generating_table),
}
"""Name of a block: its results file, and what makes the text of it."""
BLOCKS = {name: block for name, block in BLOCKS.items() if block[0].is_file()}  # those whose runs are done


def row(name: str, form: str) -> tuple[Path, Callable[[Mapping[str, Any]], str]]:
    """Return the results file of benchmarks, and what writes a row of it: its value, and where asked its commit."""

    def text(results: Mapping[str, Any]) -> str:
        result = next(r for r in results["rows"] if r["name"] == name)
        return form.format(result["value"], commit=short(result["commit"]))

    return SPEED, text


def run_minutes(study: str) -> tuple[Path, Callable[[Mapping[str, Any]], str]]:
    """Return the kept rows of a study, and what writes how long the runs of its arms took."""
    settings = yaml.safe_load((ROOT / "studies" / f"{study}.yaml").read_text(encoding="utf-8"))

    def text(study_log: Mapping[str, Any]) -> str:
        runs = [r for r in study_log["runs"] if r["arm"] in settings["arms"] and r["status"] == "finished"]
        low, high = (f"{edge(r['seconds'] for r in runs) / 60:.0f}" for edge in (min, max))
        judged = {r["study"]: r["commit"] for r in json.loads(STUDIES.read_text(encoding="utf-8"))["studies"]}
        commit = short(judged.get(study, study_log["machine"]["commit"]))
        return f"a run took {low if low == high else f'{low} to {high}'} min of one core (commit {commit})"

    return STUDY_LOGS / Path(settings["out"]).name / "study.json", text


KEPT_STUDIES = [path.stem for path in HEADS if path.parent.name == "studies" and run_minutes(path.stem)[0].is_file()]
"""Those whose runs are done."""
_LARGEST = "step_ratio/mot/d2048-t1024-3towers-34-33-33/bfloat16"
INLINE: dict[str, tuple[Path, Callable[[Mapping[str, Any]], str]]] = {
    "eager-2048": row(f"{_LARGEST}/eager", "{:.2f}"),
    "compiled-2048": row(f"{_LARGEST}/compiled", "{:.2f}"),
    **{f"towers-{n}": row(f"towers_ratio/{n}/d256-t4096/float32/compiled", "{:.2f}") for n in (4, 8, 16)},
    "open-data": row("data/open/10000384", "{:.2f} s (commit {commit})"),
    **{f"{name}-cost": (QUICKSTARTS / f"{file}.json", cost_at) for name, (file, _) in SCORES.items()},
    **{
        f"{name}-score": (QUICKSTARTS / f"{file}.json", functools.partial(score, said=said))
        for name, (file, said) in SCORES.items()
    },
    **{f"minutes-{study}": run_minutes(study) for study in KEPT_STUDIES},
}
"""Name of a figure within a sentence: its results file, and what makes the text of it."""


def rewritten(page: str) -> str:
    """Return a page with every block and figure made anew; raises KeyError for one of another name."""

    def block(match: re.Match[str]) -> str:
        path, text = BLOCKS[match[1]]
        return f"<!-- figures: {match[1]} -->\n{text(json.loads(path.read_text(encoding='utf-8')))}\n<!-- end -->"

    def inline(match: re.Match[str]) -> str:
        path, text = INLINE[match[1]]
        return f"<!--f:{match[1]}-->{text(json.loads(path.read_text(encoding='utf-8')))}<!--/f-->"

    page = re.sub(r"<!-- figures: (\S+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)
    return re.sub(r"<!--f:(\S+?)-->.*?<!--/f-->", inline, page)


_UNIT = r"(?:[kMGT]i?B|ms|µs|s|min|minutes?|h|hours?|seconds?|%|×|times|dB|tokens/s|tokens a second|of a step|steps)"
_FIGURE = re.compile(rf"(?<![\w.])\.?\d[\d,.]*(?: ?(?:to|-|–|±) ?\.?\d[\d,.]*)? ?{_UNIT}(?!\w)(?! ?[\d(])")


def unmarked(page: str, is_comment: bool = False) -> list[tuple[int, str]]:
    """Return numbers with a unit that no results file writes, with their lines; code is left out.

    Args:
        page: a page, or a YAML file of which comments are looked at.
        is_comment: whether the lines of interest begin with "#".
    """
    generated = (r"<!-- (?:figures|results): .*?<!-- end -->", r"<!--f:.*?<!--/f-->", r"```.*?```", r"`[^`\n]*`")
    for pattern in generated:
        page = re.sub(pattern, lambda match: "\n" * match[0].count("\n"), page, flags=re.DOTALL)
    lines = [(n, line) for n, line in enumerate(page.splitlines(), 1) if not is_comment or line.startswith("#")]
    return [(n, match[0]) for n, line in lines for match in _FIGURE.finditer(line)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the pages, or take a run's figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", nargs=2, metavar=("RUN", "SETTING"))
    parser.add_argument("--take-runs", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.take:
        run, setting = options.take
        shutil.copyfile(Path(run) / "summary.json", QUICKSTARTS / f"{setting}.json")
    if options.take_runs:
        before = json.loads(QUICKSTART_RUNS.read_text(encoding="utf-8")) if QUICKSTART_RUNS.exists() else {}
        runs = before | kept(options.take_runs)
        QUICKSTART_RUNS.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    texts = {page: page.read_text(encoding="utf-8") for page in (*PAGES, *HEADS)}
    stale = [page for page, text in texts.items() if text != rewritten(text)]
    for page in stale:
        if options.check:
            print(f"{page.name} is not what the results files say: run `make figures`")
        else:
            page.write_text(rewritten(texts[page]), encoding="utf-8")
    results = json.loads(SPEED.read_text(encoding="utf-8"))
    undrawn = not FIGURE.exists() or digest(results) not in FIGURE.read_text(encoding="utf-8")
    if undrawn and options.check:
        print(f"{FIGURE.name} does not show the results: run `make figures`")
    elif undrawn:
        figure(results)
    return int(options.check and bool(stale or undrawn))


if __name__ == "__main__":
    sys.exit(main())
