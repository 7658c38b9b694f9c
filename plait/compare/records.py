"""What is known of a study's arms and runs: rows and loss curves, read from the folders of its runs."""

from dataclasses import dataclass, field
from typing import Any

from plait.common.errors import DataError
from plait.common.files import read_json
from plait.compare.curves import Curve, Key, read_curves, step_seconds
from plait.compare.run_scores import read_scores
from plait.compare.runner import DONE, StudyRun, Tuned
from plait.train.metrics import hardware, versions

Run = tuple[str, int]
"""Arm and seed."""


@dataclass
class Records:
    """Rows as results.json has them, and curves."""

    arms: list[dict[str, Any]] = field(default_factory=list)
    """arm, parameters, active_parameters, flops_a_step, flops_a_step_counted, steps, learning_rate, and where it is
    from."""
    tuning: list[dict[str, Any]] = field(default_factory=list)
    """One row a trial: arm, learning_rate, score, error, data (the digest of what it read), final losses."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """arm, seed, status, error; of finished ones steps, tokens, seconds, skipped_steps, step_seconds."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """One row an evaluated run: arm, seed, and what `plait evaluate` measured."""
    curves: dict[Run, dict[Key, Curve]] = field(default_factory=dict)
    """Of finished runs only."""
    machine: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    """Digest of the prepared data; empty where it is not known."""

    def arm(self, name: str) -> dict[str, Any] | None:
        """Return an arm's row; None where nothing is known of it."""
        return next((row for row in self.arms if row["arm"] == name), None)

    def step_seconds(self, arm: str, seed: int) -> float | None:
        """Return the measured time of a step of a run; None where there is none."""
        run_rows = [row for row in self.runs if (row["arm"], row["seed"]) == (arm, seed)]
        return run_rows[0].get("step_seconds") if run_rows else None


def read_records(run: StudyRun) -> Records:
    """Read every arm and run of a study's plan; nothing that was planned is left out."""
    names = list(run.plan)
    trials = {owner: run.read_trials(owner) for owner in dict.fromkeys(map(run.rate_owner, names)) if owner}
    arms = [_arm_row(run, arm, trials.get(run.rate_owner(arm))) for arm in names]
    tuning = [trial for tuned in trials.values() for trial in tuned.trials]
    return _with_runs(Records(arms, tuning, machine=hardware() | versions(), data=run.data), run)


def read_written_records(run: StudyRun) -> Records:
    """Read what a study's results.json says of its arms and trials, and every run; neither data nor a plan is needed.

    Raises DataError where results were never written.
    """
    path = run.study.results / "results.json"
    if not path.exists():
        raise DataError(f"study: there is no {str(path)!r}, which `plait compare` writes when it ends or is stopped")
    results = read_json(path, "results")
    arms = [{k: v for k, v in row.items() if k not in ("about", "against", "flops_ratio")} for row in results["arms"]]
    return _with_runs(Records(arms, results["tuning"], machine=results["machine"], data=results.get("data", "")), run)


def _with_runs(records: Records, run: StudyRun) -> Records:
    planned = [(row["arm"], seed) for row in records.arms for seed in run.study.config.arms[row["arm"]].seeds]
    for arm, seed in planned:
        row = _run_row(run, arm, seed)
        records.runs.append(row)
        if row["status"] == "finished":
            records.curves[arm, seed] = read_curves(run.folder(arm, seed))
            records.scores += read_scores(run, arm, seed)
    return records


def _arm_row(run: StudyRun, arm: str, tuned: Tuned | None) -> dict[str, Any]:
    record, plan = run.study.config.arms[arm], run.plan[arm]
    return {
        "arm": arm,
        "parameters": plan.parameters,
        "active_parameters": plan.active_parameters,
        "flops_a_step": plan.flops.formula,
        "flops_a_step_counted": plan.flops.counted,
        "steps": plan.steps,
        "learning_rate": run.learning_rate(arm),
        "learning_rate_from": "tuned" if record.tune else record.learning_rate_of or "config",
        "learning_rate_at_edge": bool(tuned and tuned.at_edge),
    }


def _run_row(run: StudyRun, arm: str, seed: int) -> dict[str, Any]:
    state, error = run.status(arm, seed)
    row = {"arm": arm, "seed": seed, "status": state, "error": error}
    if state == "finished":
        folder = run.folder(arm, seed)
        row |= read_json(folder / DONE, "run") | {"step_seconds": step_seconds(folder)}
    return row
