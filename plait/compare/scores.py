"""`plait compare --evaluate`: what the trained models of a study make of held-out documents, run by run.

Every finished run is evaluated as `plait evaluate` does: it captions, draws and speaks, and judges say how well. The
figures lie in the run's folder; losses among them are left to the loss curves.
"""

from collections.abc import Callable
from typing import Any

from plait.compare.runner import StudyRun
from plait.config import RunConfig
from plait.evaluate.suite import FILE
from plait.files import read_json
from plait.progress import Progress
from plait.train import checkpoint

Evaluate = Callable[[RunConfig, Progress], dict[str, float]]
"""Measures the newest checkpoint of a run, once, and keeps the figures in FILE of its folder."""

LOSSES = ("val_loss/", "task_loss/", "perplexity/")
"""How the names of figures begin that are losses."""


def evaluate_runs(run: StudyRun, evaluate: Evaluate) -> None:
    """Evaluate every finished run that still has a checkpoint."""
    runs = [(arm, seed) for arm in run.arms for seed in run.seeds_of(arm) if run.status(arm, seed)[0] == "finished"]
    with run.progress.stage("evaluate", total=len(runs)) as bar:
        for number, (arm, seed) in enumerate(runs, start=1):
            folder = run.folder(arm, seed)
            if checkpoint.find(folder / "checkpoints"):
                steps = run.plan[arm].steps
                evaluate(run.study.run_config(arm, seed=seed, steps=steps, out=folder), run.progress)
            bar.to(number, f"{arm}, seed {seed}")


def read_scores(run: StudyRun, arm: str, seed: int) -> list[dict[str, Any]]:
    """Return the row of a run's scores; none where it was not evaluated."""
    path = run.folder(arm, seed) / FILE
    if not path.exists():
        return []
    figures = read_json(path, "evaluation")["figures"]
    return [{"arm": arm, "seed": seed} | {k: v for k, v in figures.items() if not k.startswith(LOSSES)}]
