"""The logs of a study in a compact form that is kept with the code, so that anyone can make its results anew.

``<folder>/<group>/`` holds the runs of all studies that share a folder of runs: ``<arm>-<seed>.jsonl``, losses at the
evaluation steps in the form that `plait compare --from-logs` reads; ``study.json``, rows of arms, trials and runs; and
``analysis.json``, where trained models were looked into.
"""

import json
from pathlib import Path
from typing import Any

from plait.common.errors import DataError
from plait.common.files import read_json, write_json, write_text
from plait.compare.analysis import KINDS, Rows
from plait.compare.curves import TRAINING, VALIDATION, Curve, Key, curves_of
from plait.compare.rate_trials import write_trials
from plait.compare.records import Records
from plait.compare.study import Study
from plait.train.metrics import read_metrics

ROWS, ANALYSES = "study.json", "analysis.json"
KEYS = {"arms": ("arm",), "tuning": ("arm", "learning_rate"), "runs": ("arm", "seed"), "scores": ("arm", "seed")}
"""What tells the rows of a list apart."""


def group_folder(study: Study, folder: Path) -> Path:
    """Return where the logs of a study are kept."""
    return Path(folder) / study.group


def keep(study: Study, records: Records, analyses: Rows, folder: Path) -> Path:
    """Write the logs of the runs that are over, beside those that are kept already; returns their folder.

    Raises DataError where those that are kept already read other data, as runs are matched on the same batches alone.
    """
    group = group_folder(study, folder)
    before = _read(group / ROWS)
    if before and before.get("data", "") != records.data:
        raise DataError(
            f"study: the runs kept in {str(group)!r} read other data ({before.get('data') or 'not known'}) than these "
            f"({records.data or 'not known'}), so that neither can be matched with the other; remove that folder, or "
            "keep these elsewhere"
        )
    for (arm, seed), curves in records.curves.items():
        lines = [json.dumps(row) + "\n" for row in _log_rows(curves)]
        write_text(group / f"{arm}-{seed}.jsonl", "".join(lines))
    over = [row for row in records.runs if row["status"] in ("finished", "failed")]
    now = {"arms": records.arms, "tuning": records.tuning, "runs": over, "scores": records.scores}
    merged = {name: _merged(before.get(name, []), now[name], keys) for name, keys in KEYS.items()}
    write_json(group / ROWS, merged | {"machine": records.machine, "data": records.data})
    if any(analyses.values()):
        known = _read(group / ANALYSES)
        one_seed = analyses | {"components": _lowest_seeds(analyses["components"])}
        merged_analyses = {kind: _merged(known.get(kind, []), one_seed[kind], _keys_of(kind)) for kind in KINDS}
        write_text(group / ANALYSES, _line_a_row(merged_analyses))
    return group


def kept_records(study: Study, folder: Path) -> Records:
    """Return what is kept of a study, its arms and seeds alone; runs of which nothing is kept are waiting."""
    group = group_folder(study, folder)
    stored, config = _read(group / ROWS), study.config
    arms = {row["arm"]: row for row in stored.get("arms", [])}
    runs = {(row["arm"], row["seed"]): row for row in stored.get("runs", [])}
    planned = [(name, seed) for name, arm in config.arms.items() for seed in arm.seeds]
    waiting = {"status": "waiting", "error": ""}
    owners = {name if arm.tune else arm.learning_rate_of for name, arm in config.arms.items()}
    for name, row in arms.items():
        if name in config.arms and config.budget.steps not in (0, row["steps"]):
            raise DataError(
                f"study: {str(group)!r} keeps runs of {row['steps']:,} steps of {name!r}, but the study has "
                f"{config.budget.steps:,}; remove them, or keep these elsewhere"
            )
    finished = [run for run in planned if runs.get(run, waiting)["status"] == "finished"]
    logs = {run: group / f"{run[0]}-{run[1]}.jsonl" for run in finished}
    return Records(
        arms=[arms[name] for name in config.arms if name in arms],
        tuning=[row for row in stored.get("tuning", []) if row["arm"] in owners],
        runs=[runs.get((arm, seed), {"arm": arm, "seed": seed, **waiting}) for arm, seed in planned],
        scores=[row for row in stored.get("scores", []) if (row["arm"], row["seed"]) in planned],
        curves={run: curves_of(read_metrics(path)) for run, path in logs.items() if path.exists()},
        machine=stored.get("machine", {}),
        data=stored.get("data", ""),
    )


def take_trials(study: Study, folder: Path) -> list[str]:
    """Take the trials of learning rates that are kept of a study's arms in place of its own; returns these arms.

    Raises DataError where nothing is kept of them.
    """
    records, tuning = kept_records(study, folder), study.config.tuning
    rows = [row for row in records.tuning if tuning and row["learning_rate"] in tuning.learning_rates]
    if not rows:
        raise DataError(f"--rates: {str(folder)!r} keeps no trials of the learning rates of {study.config.name!r}")
    owners = {row["arm"] for row in rows}
    write_trials(study, [row for row in records.arms if row["arm"] in owners], rows)
    return sorted(owners)


def kept_analyses(study: Study, folder: Path) -> Rows:
    """Return the rows of analyses that are kept of a study's arms."""
    analyses = _read(group_folder(study, folder) / ANALYSES)
    return {kind: [row for row in analyses.get(kind, []) if row["arm"] in study.config.arms] for kind in KINDS}


def _log_rows(curves: dict[Key, Curve]) -> list[dict[str, Any]]:
    """Return one row an evaluation step. The mean over validation sets follows from them, and is left out."""
    by_step: dict[int, dict[str, float]] = {}
    for (split, modality), curve in curves.items():
        if split == VALIDATION:
            continue
        name = f"loss/{modality}" if split == TRAINING else f"val_loss/{split}/{modality}"
        for step, loss in zip(curve.steps, curve.losses, strict=True):
            by_step.setdefault(step, {})[name] = float(f"{loss:.6g}")
    names = list(dict.fromkeys(name for row in by_step.values() for name in row))
    # a set without a finite loss is named, so that no mean is taken without it
    return [{"step": step} | {name: by_step[step].get(name) for name in names} for step in sorted(by_step)]


def _merged(before: list[dict], now: list[dict], keys: tuple[str, ...]) -> list[dict]:
    """Return the rows of both, those of now in place of those that are about the same."""
    rows = {tuple(row.get(key) for key in keys): row for row in [*before, *now]}
    return [rows[key] for key in sorted(rows, key=lambda k: tuple(map(str, k)))]


def _keys_of(kind: str) -> tuple[str, ...]:
    return ("arm", "seed", "step", "layer", *{"components": ("modality",), "attention": ("query", "key"),
                                              "conflict": ("component", "first", "second")}.get(kind, ()))  # fmt: skip


def _lowest_seeds(rows: list[dict]) -> list[dict]:
    lowest: dict[str, int] = {}
    for row in rows:
        lowest[row["arm"]] = min(row["seed"], lowest.get(row["arm"], row["seed"]))
    return [row for row in rows if row["seed"] == lowest[row["arm"]]]


def _line_a_row(rows_by_kind: Rows) -> str:
    """Return JSON with one row a line, so that a change of one shows as one."""
    lists = []
    for kind, rows in rows_by_kind.items():
        lines = ",\n".join(json.dumps(row) for row in rows)
        lists.append(f'"{kind}": [\n{lines}\n]')
    return "{\n" + ",\n".join(lists) + "\n}\n"


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "kept logs") if path.exists() else {}
