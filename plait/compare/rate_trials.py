"""Trials of learning rates that were run before, taken from kept logs in place of runs of a study's own.

``<out>/trials.json`` holds them: `take_trials` (plait/compare/kept_rows.py) writes it, and every later command on that
folder reads it.
"""

from typing import Any

from plait.common.errors import ConfigError
from plait.common.files import read_json, write_json
from plait.compare.planned_runs import ArmPlan
from plait.compare.study import Study

FILE = "trials.json"

Trials = dict[tuple[str, float], dict[str, Any]]
"""Rows as those of `results.json` about trials, by arm and learning rate."""


def write_trials(study: Study, arms: list[dict[str, Any]], tuning: list[dict[str, Any]]) -> None:
    """Write rows of arms and of their trials, beside those that studies of the same folder have taken."""
    before = _read(study)
    by_arm = {row["arm"]: row for row in [*before["arms"], *arms]}
    by_rate = {(row["arm"], row["learning_rate"]): row for row in [*before["tuning"], *tuning]}
    write_json(study.out / FILE, {"arms": list(by_arm.values()), "tuning": list(by_rate.values())})


def taken_trials(study: Study) -> Trials:
    """Return the trials that were taken for the runs of this folder; none where nothing was."""
    rows = _read(study)["tuning"] if study.config.tuning else []
    return {(row["arm"], row["learning_rate"]): row for row in rows}


def check_trials(study: Study, plan: dict[str, ArmPlan]) -> None:
    """Raise a ConfigError where trials were taken of an arm of another size, batch or length than in this study."""
    for row in _read(study)["arms"]:
        arm_plan = plan.get(row["arm"])
        if not arm_plan:
            continue
        ratio = arm_plan.flops.formula / row["flops_a_step"]
        same = (arm_plan.parameters, arm_plan.steps) == (row["parameters"], row["steps"])
        if not same or abs(ratio - 1) > study.config.tolerance:  # the mean length of documents is another one each time
            raise ConfigError(
                f"arms.{arm_plan.arm}: it has {arm_plan.parameters:,} parameters and {arm_plan.steps:,} steps of "
                f"{arm_plan.flops.formula:.4g} FLOPs, but its trials of learning rates were taken from one with "
                f"{row['parameters']:,}, {row['steps']:,} and {row['flops_a_step']:.4g}; remove "
                f"{str(study.out / FILE)!r} to try the rates again"
            )


def _read(study: Study) -> dict[str, list[dict[str, Any]]]:
    path = study.out / FILE
    return read_json(path, "trials") if path.exists() else {"arms": [], "tuning": []}
