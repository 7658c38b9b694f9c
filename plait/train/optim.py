"""AdamW or Muon with groups by tower and decay, and the learning-rate schedule."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from plait.config.run import TrainConfig
from plait.config.run_records import TowerSettings, fixed_towers
from plait.model.frozen import has_frozen_rows, is_frozen
from plait.model.mot import MixtureOfTransformers
from plait.train.muon import MuonAdamW


def make_optimizer(
    model: MixtureOfTransformers, config: TrainConfig, towers: Mapping[str, TowerSettings] | None = None
) -> torch.optim.AdamW:
    """Return fused AdamW, or Muon for the blocks' matrices with AdamW for the rest; ``towers`` says how each trains.

    Matrices decay, norms, biases and embeddings do not, nor does a head with frozen rows; a tower may scale its own
    rate. What is frozen (`plait.model.frozen`) is left out.
    """
    scales = {name: t.learning_rate_scale for name, t in (towers or {}).items()}
    frozen = fixed_towers(model.config, towers or {})
    groups: dict[tuple[float, bool, bool], list[Tensor]] = {}
    for part, parameter in model.weights():
        if is_frozen(part, model.config, frozen):
            parameter.requires_grad_(False)
            continue
        decays = part.trait.is_matrix and not has_frozen_rows(part, model.config, frozen)
        muon = config.optimizer == "muon" and decays and part.in_block
        scale = 1.0 if part.tower is None else scales.get(part.tower, 1.0)
        groups.setdefault((scale, decays, muon), []).append(parameter)
    first, second = config.betas
    kind = MuonAdamW if config.optimizer == "muon" else torch.optim.AdamW
    return kind(
        [{"params": p, "scale": s, "weight_decay": config.weight_decay if d else 0.0, "muon": m,
          "rows": config.muon_rows}
         for (s, d, m), p in groups.items()],
        lr=config.learning_rate, betas=(first, second), eps=config.eps, fused=True,
    )  # fmt: skip


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Return the rate of a step: linear warm-up, then decay with ``progress`` (share of the run done, 0 to 1)."""
    peak, final = config.learning_rate, config.final_learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    progress = min(max(progress, 0.0), 1.0)
    share = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (peak - final) * share


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate, each with its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
