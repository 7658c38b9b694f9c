"""`plait compare --evaluate`: what the trained models of a study make of held-out documents, run by run.

Every finished run is evaluated as `plait evaluate` does: it captions, draws and speaks, and judges say how well; a
model that acts is tried in the environments that its data come from. The figures lie in the run's folder; losses among
them are left to the loss curves. Several processes may evaluate the runs of a study at once, as they may train them.
"""

from collections.abc import Callable
from typing import Any

from plait.common.errors import unknown
from plait.common.files import from_json, read_json
from plait.common.progress import Progress
from plait.compare.runner import StudyRun
from plait.config.run import RunConfig
from plait.config.settings import MEASURED, identity
from plait.evaluate.suite import FILE
from plait.train import checkpoint

Evaluate = Callable[[RunConfig, Progress], Any]
"""Measures the newest checkpoint of a run, once, and keeps the figures in FILE of its folder."""

LOSSES = ("val_loss/", "task_loss/", "perplexity/")
"""How the names of figures begin that are losses."""


def evaluate_runs(run: StudyRun, evaluate: Evaluate) -> None:
    """Evaluate every finished run that still has a checkpoint; says which have none, and which scores nobody has."""
    study = run.study.config

    def evaluate_run(arm: str, seed: int) -> None:
        if checkpoint.find(run.folder(arm, seed) / "checkpoints"):
            evaluate(_config(run, arm, seed), run.progress)
            run.progress.print(f"{arm}, seed {seed}: evaluated")
        else:
            run.progress.print(f"{arm}, seed {seed}: it has no checkpoint any more, so it is left out")

    run.share(run.finished(), evaluate_run, "evaluates")
    asked = [(f"score of {entry.claim!r}", entry.score, [entry.arm]) for entry in study.paper if entry.score]
    for what, name, arms in [*asked, *(("shares", name, [*study.arms]) for name in study.shares)]:
        rows = [row for arm in arms for seed in study.arms[arm].seeds for row in read_scores(run, arm, seed)]
        if rows and not any(name in row for row in rows):
            run.progress.print(unknown(what, name, rows[0].keys() - {"arm", "seed"}))


def read_scores(run: StudyRun, arm: str, seed: int) -> list[dict[str, Any]]:
    """Return the row of a run's scores; none where it was not evaluated, or with other settings than the study's."""
    folder = run.folder(arm, seed)
    if folder is None or not (folder / FILE).exists():
        return []
    evaluation = read_json(folder / FILE, "evaluation")
    if evaluation["key"].get("measured") != identity(_config(run, arm, seed), (MEASURED,)):
        return []
    return [
        {"arm": arm, "seed": seed}
        | {k: v for k, v in from_json(evaluation["figures"]).items() if not k.startswith(LOSSES)}
    ]


def _config(run: StudyRun, arm: str, seed: int) -> RunConfig:
    return run.study.run_config(arm, seed=seed, steps=1, out=run.folder(arm, seed))
