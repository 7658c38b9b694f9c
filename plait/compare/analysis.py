"""`plait compare --analyse`: what the trained models of a study do inside, run by run, kept beside each run.

``analysis.json`` in a run's folder holds rows of four kinds, each with arm, seed and step: ``components`` (places of
tokens), ``layers`` (their components' shares and how far modalities lie apart), ``attention``, and ``conflict`` (of
every checkpoint that is kept). A run is not analysed again until its checkpoints change. All runs see the same batches.
"""

from pathlib import Path
from typing import Any

from plait.batch.batch import Batch
from plait.common.files import read_json, write_json
from plait.compare.probes import attention_mass, components, gradient_conflict
from plait.compare.runner import StudyRun
from plait.config.run import RunConfig
from plait.config.tasks import AS_WRITTEN_TASK
from plait.data.loader import validation_batches
from plait.data.sources import resolve_vocabulary, validation_splits
from plait.evaluate.losses import VALIDATION_SEED
from plait.model.pretrained import load_pretrained
from plait.objectives.diffusion import corrupt
from plait.train import checkpoint
from plait.train.trainer import pick_device

FILE = "analysis.json"
KINDS = ("components", "layers", "attention", "conflict")
BATCHES = 4
"""Batches of each task; an even number, so that both halves have all tasks."""

Rows = dict[str, list[dict[str, Any]]]
"""Rows by kind."""


def analyse(run: StudyRun) -> None:
    """Analyse the checkpoints of every finished run that are not analysed yet."""
    for arm, seed, folder in run.each_finished("analyse"):
        steps = [path.name for path in checkpoint.find(folder / "checkpoints")]
        if steps and (not (folder / FILE).exists() or read_json(folder / FILE, "analysis")["steps"] != steps):
            config = run.study.run_config(arm, seed=seed, steps=1, out=folder)
            write_json(folder / FILE, {"steps": steps, **_analyse_run(config, arm, seed)})


def read_analyses(run: StudyRun) -> Rows:
    """Return the rows of all runs that were analysed, those of a study's arms in its order."""
    rows_by_kind: Rows = {kind: [] for kind in KINDS}
    for arm in run.study.config.arms:
        for seed in run.study.config.arms[arm].seeds:
            folder = run.folder(arm, seed)
            if folder is None or not (folder / FILE).exists():
                continue
            for kind, rows in read_json(folder / FILE, "analysis").items():
                if kind in rows_by_kind:
                    rows_by_kind[kind] += rows
    return rows_by_kind


def probe_batches(config: RunConfig) -> list[Batch]:
    """Return batches of the first validation split, some of each task, noised as in every evaluation."""
    split = validation_splits(config)[0]
    tasks = ["" if task == AS_WRITTEN_TASK else task for task in config.data.tasks] or [""]
    batches = [b for task in tasks for b in validation_batches(config, split, task, BATCHES)]
    return [corrupt(batch, config.diffusion, VALIDATION_SEED) for batch in batches]


def _analyse_run(config: RunConfig, arm: str, seed: int) -> Rows:
    config = resolve_vocabulary(config)
    device = pick_device(config.train.device)
    batches = [batch.to(device) for batch in probe_batches(config)]
    rows_by_kind: Rows = {kind: [] for kind in KINDS}
    paths = checkpoint.find(Path(config.out) / "checkpoints")
    for path in paths:
        model = load_pretrained(path, device=device, weights=checkpoint.weights_file(path).name)
        rows = {"conflict": gradient_conflict(model, batches)}
        if path == paths[-1]:
            rows["attention"] = attention_mass(model, batches)
            if model.config.same_width:
                rows["components"], rows["layers"] = components(model, batches)
        head = {"arm": arm, "seed": seed, "step": int(path.name.removeprefix("step-"))}
        for kind, some in rows.items():
            rows_by_kind[kind] += [head | _rounded(row) for row in some]
    return rows_by_kind


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [float(f"{v:.3g}") for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
