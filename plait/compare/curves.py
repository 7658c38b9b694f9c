"""The loss curves of a run, read from its log (metrics.jsonl)."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.train.metrics import FILE_NAME, read_metrics

TRAINING, VALIDATION = "training", "validation"
"""The mean training loss since the evaluation before, and the mean over all validation sets."""

Key = tuple[str, str]
"""(validation set, TRAINING or VALIDATION; modality)"""


@dataclass
class Curve:
    """Losses at the evaluation steps."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, step: int, loss: Any) -> None:
        """Add a point; one that is no finite number is left out."""
        if isinstance(loss, int | float) and math.isfinite(loss):
            self.steps.append(step)
            self.losses.append(float(loss))


def read_curves(folder: Path) -> dict[Key, Curve]:
    """Return the curves of a run's folder: every validation set, their mean, and the training loss, by modality.

    A folder without a log has none.
    """
    path = Path(folder) / FILE_NAME
    return curves_of(read_metrics(path) if path.exists() else [])


def curves_of(rows: list[dict[str, Any]]) -> dict[Key, Curve]:
    """Return the curves of a log's rows."""
    validated = any(name.startswith("val_loss/") for row in rows for name in row)  # else every log line is a point
    curves: dict[Key, Curve] = {}
    since: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            kind, _, rest = name.partition("/")
            if kind == "loss" and value is not None:
                since.setdefault(rest, []).append(value)
        if validated and not any(name.startswith("val_loss/") for name in row):
            continue
        step, by_modality = row["step"], {}
        for name, value in row.items():
            if name.startswith("val_loss/"):
                split, modality = name.removeprefix("val_loss/").rsplit("/", 1)
                curves.setdefault((split, modality), Curve()).add(step, value)
                by_modality.setdefault(modality, []).append(value)
        for modality, values in by_modality.items():
            whole = None not in values  # a mean over fewer sets would be another curve
            curves.setdefault((VALIDATION, modality), Curve()).add(step, np.mean(values).item() if whole else None)
        for modality, values in since.items():
            curves.setdefault((TRAINING, modality), Curve()).add(step, np.mean(values).item())
        since = {}
    return curves


def final_losses(folder: Path) -> dict[str, float]:
    """Return the last loss of every curve, as ``set/modality``."""
    return {"/".join(key): curve.losses[-1] for key, curve in read_curves(folder).items() if curve.losses}


def score(losses: dict[str, float]) -> float | None:
    """Return the geometric mean of the validation losses over modalities (training losses where there are none).

    So no modality counts for more because its loss is in other units. None without losses.
    """
    for split in (VALIDATION, TRAINING):
        found = [v for k, v in losses.items() if k.startswith(f"{split}/")]
        if found:
            return float(np.exp(np.mean(np.log(np.maximum(found, 1e-12)))))
    return None


def step_seconds(folder: Path) -> float | None:
    """Return the median time of a training step, evaluation left out."""
    path = Path(folder) / FILE_NAME
    rows = [r for r in (read_metrics(path) if path.exists() else []) if r.get("tokens_per_second")]
    # the first steps of a run warm up caches and compilers
    times = [row["tokens"] / row["step"] / row["tokens_per_second"] for row in rows[len(rows) > 2 :]]
    return float(np.median(times)) if times else None
