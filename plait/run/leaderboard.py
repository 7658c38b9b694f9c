"""Runs beside one another: their scores, and by how much one is better than another on the same documents."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from plait.common.errors import ConfigError
from plait.common.files import read_json
from plait.evaluate.measures import Items, difference
from plait.evaluate.suite import FILE
from plait.report.scores import ROUTE, named, scores

Table = tuple[str, str, list[str], list[list[str]]]
"""Title, note, header and rows."""


def leaderboard(runs: Mapping[str, Mapping[str, Any]], modalities: Sequence[str]) -> Table:
    """Return the scores of runs, given the figures of each by its folder, a column for each."""
    by_run = {
        run: {(r.route, r.label): r.value for r in scores(figures, modalities, {})} for run, figures in runs.items()
    }
    labels = list(dict.fromkeys(label for found in by_run.values() for label in found))
    rows = [[route, label, *(by_run[run].get((route, label), "–") for run in runs)] for route, label in labels]
    facts = {"parameters": "parameters", "steps": "steps", "seed": "seed", "commit": "commit of the evaluation"}
    rows += [["", said, *(str(f.get(name, "–"))[:12] for f in runs.values())] for name, said in facts.items()]
    rows.append(["", "weights (checksum)", *(_checksum(run) for run in runs)])
    return "scores on held-out documents", "", [ROUTE, "score", *runs], rows


def scoreboard(figures: Mapping[str, Any], modalities: Sequence[str], aims: Mapping[str, float]) -> Table:
    """Return the scores of one run, each beside its interval, chance, the codec's ceiling, and what others score."""
    header = [ROUTE, "score", "value", "95% interval", "of", "chance", "codec", "beside"]
    rows = [
        [r.route, r.label, r.value, r.interval, r.items, r.chance, r.ceiling, r.note]
        for r in scores(figures, modalities, aims)
    ]
    return (
        "scores on held-out documents",
        "",
        header,
        [["" if row[0] == before[0] else row[0], *row[1:]] for before, row in pairwise([[""], *rows])],
    )


def losses(figures: Mapping[str, Any], modalities: Sequence[str]) -> Table:
    """Return the losses of each modality, split by split."""
    names = [name.split("/") for name in figures if name.startswith("val_loss/") and name.count("/") == 2]
    splits = list(dict.fromkeys(split for _, split, _ in names))
    found = {name: [figures.get(f"val_loss/{split}/{name}") for split in splits] for name in modalities}
    rows = [[m, *("–" if v is None else f"{v:.4g}" for v in values)] for m, values in found.items() if any(values)]
    return "losses", "", ["modality", *splits], rows


def about(run: str, figures: Mapping[str, Any]) -> str:
    """Return in a line what the scores of a run are of."""
    facts = {"step": figures.get("steps"), "seed": figures.get("seed"), "commit": str(figures.get("commit", ""))[:12],
             "weights": _checksum(run)}  # fmt: skip
    return "of " + ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))


def _checksum(run: str) -> str:
    """Return what tells the weights that were evaluated from any others."""
    weights = read_json(Path(run) / FILE, "evaluation")["key"].get("weights", {})
    return ", ".join(str(w.get("crc32", w) if isinstance(w, dict) else w) for w in weights.values())[:24] or "–"


def paired(first: str, other: str, modalities: Sequence[str]) -> Table:
    """Return by how much ``other`` scores higher than ``first``, with 95% intervals over the documents of both.

    Raises ConfigError where they were not evaluated on the same documents.
    """
    ours, theirs = (read_json(Path(run) / FILE, "evaluation") for run in (other, first))
    if ours["key"]["data"] != theirs["key"]["data"]:
        raise ConfigError(f"--paired: {other!r} was evaluated on other data than {first!r}, it must be the same data")
    rows = []
    for name, own in ours["items"].items():
        base = theirs["items"].get(name)
        if base is None or base["documents"] != own["documents"]:
            continue
        found = difference(*(Items(x["parts"], x["wholes"]) for x in (own, base)))
        clear = "" if found.low <= 0 <= found.high else "yes"
        what, kind = named(name, theirs["figures"], modalities) or (name.replace("_", " "), None)
        written = kind.written if kind else "{:.4g}".format
        figures = [written(x) for x in (found.value, found.low, found.high)]
        rows.append(
            [what, kind.label if kind else "", figures[0], f"{figures[1]} to {figures[2]}", str(found.count), clear]
        )
    if not rows:
        raise ConfigError(
            f"--paired: no score of {other!r} and {first!r} is of the same documents; evaluate both with the same "
            "counts of items (evaluate.captions and so on)"
        )
    header = [ROUTE, "score", "difference", "95% interval", "documents", "other than 0"]
    return f"{other} less {first}", "the same documents in both, resampled together", header, rows
