"""The loss curves of a run, read from its log (metrics.jsonl)."""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.train.metrics import FILE_NAME, read_metrics

TRAINING, VALIDATION = "training", "validation"
"""The mean training loss since the evaluation before, and the mean over all validation sets."""

LOSS, VAL_LOSS = "loss/", "val_loss/"
"""How the names of losses begin in a log."""

Key = tuple[str, str]
"""(validation set, TRAINING or VALIDATION; modality)"""


@dataclass
class Curve:
    """Losses at the evaluation steps."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, step: int, loss: Any) -> None:
        """Add a point; one that is no finite number is left out."""
        if is_finite(loss):
            self.steps.append(step)
            self.losses.append(float(loss))


def read_curves(folder: Path) -> dict[Key, Curve]:
    """Return the curves of a run's folder: every validation set, their mean, and the training loss, by modality.

    A folder without a log has none.
    """
    path = Path(folder) / FILE_NAME
    return curves_of(read_metrics(path) if path.exists() else [])


def curves_of(rows: list[dict[str, Any]], every: float = 0) -> dict[Key, Curve]:
    """Return the curves of a log's rows, whose steps must not fall.

    Training losses are means since the point before, with a point ``every`` so many steps; 0: at `training_steps`.
    """
    own, sets = set(training_steps(rows)), _validation_sets(rows)
    curves: dict[Key, Curve] = {}
    since: dict[str, list[float]] = {}
    due = 0.0  # the step of the next point of training losses
    for step, same in itertools.groupby(rows, key=lambda row: row["step"]):
        named_values = [item for row in same for item in row.items()]
        validated = {_validation_key(name): value for name, value in named_values if name.startswith(VAL_LOSS)}
        for key, value in validated.items():
            curves.setdefault(key, Curve()).add(step, value)
        for modality in dict.fromkeys(modality for _, modality in validated):
            # a mean over fewer sets would be another curve
            values = [validated.get((split, modality)) for split in sets[modality]]
            mean = np.mean(values).item() if all(map(is_finite, values)) else None
            curves.setdefault((VALIDATION, modality), Curve()).add(step, mean)
        for name, value in named_values:
            if name.startswith(LOSS) and is_finite(value):
                since.setdefault(name.removeprefix(LOSS), []).append(value)
        if step >= due if every else step in own:
            for modality, values in since.items():
                curves.setdefault((TRAINING, modality), Curve()).add(step, np.mean(values).item())
            since, due = {}, (step // every + 1) * every if every else 0.0
    return curves


def training_steps(rows: list[dict[str, Any]]) -> list[float]:
    """Return where a log's training curve has its points: the steps with validation losses, else all with losses."""
    for kind in (VAL_LOSS, LOSS):
        steps = {row["step"] for row in rows if any(name.startswith(kind) for name in row)}
        if steps:
            return sorted(steps)
    return []


def _validation_sets(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the names of all validation sets that a modality has losses of, by modality."""
    sets: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name.startswith(VAL_LOSS)):
        split, modality = _validation_key(name)
        sets.setdefault(modality, []).append(split)
    return sets


def _validation_key(name: str) -> Key:
    split, modality = name.removeprefix(VAL_LOSS).rsplit("/", 1)
    return set_name(split), modality


def set_name(split: str) -> str:
    """Return what a validation set is called, which is never what the derived curves are."""
    return f"{split} set" if split in (TRAINING, VALIDATION) else split


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def final_losses(folder: Path) -> dict[str, float | None]:
    """Return the losses at the last evaluation, as ``set/modality``; None where one is no finite number there."""
    curves = read_curves(folder)
    end = max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0)
    return {"/".join(key): c.losses[-1] if c.steps[-1:] == [end] else None for key, c in curves.items()}


def score(losses: dict[str, float | None]) -> float | None:
    """Return the geometric mean of the validation losses over modalities (training losses where there are none).

    So no modality counts for more because its loss is in other units. None without losses, or where one is missing.
    """
    for split in (VALIDATION, TRAINING):
        values = [v for k, v in losses.items() if k.startswith(f"{split}/")]
        if values:
            return None if None in values else float(np.exp(np.mean(np.log(np.maximum(values, 1e-12)))))
    return None


def step_seconds(folder: Path) -> float | None:
    """Return the median time of a training step, evaluation left out."""
    path = Path(folder) / FILE_NAME
    rows = [r for r in (read_metrics(path) if path.exists() else []) if r.get("tokens_per_second")]
    # the first steps of a run warm up caches and compilers
    times = [row["tokens"] / row["step"] / row["tokens_per_second"] for row in rows[len(rows) > 2 :]]
    return float(np.median(times)) if times else None
