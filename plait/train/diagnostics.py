"""What a run measures between two rows of its log: losses, gradient norms by tower, speed, how busy the towers are.

Numbers of the device stay there until a row is written; everything else is counted on the host.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from plait.batch.batch import Batch
from plait.common.units import count
from plait.config.run import TrainConfig
from plait.model.moe import MixtureOfExperts
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import local
from plait.model.routing import SHARED
from plait.plan.flops import BACKWARD, total_operations
from plait.plan.peaks import peak_of
from plait.train import parallel


class Measures:
    """Collects what happens in the steps of one row. With several ranks, speeds and shares are this rank's own."""

    def __init__(self, model: MixtureOfTransformers, config: TrainConfig, device: torch.device):
        self.model, self.config, self.device = model, config, device
        self.peak = peak_flops(config, device)
        self.restart()

    def restart(self, begun: Mapping[str, Any] | None = None) -> None:
        """Begin a row anew, or go on with the one that was ``begun`` when `state` returned it."""
        names, towers = self.model.config.layout.names, self.model.config.towers
        nothing: dict[str, Any] = {
            "seconds": 0.0, "waited": 0.0, "sums": [0.0] * len(names), "counts": [0.0] * len(names),
            "skipped": [0.0] * len(names), "tokens": 0, "operations": 0.0, "rows": [0] * len(towers),
        }  # fmt: skip
        row = nothing | dict(begun or {})
        self._started, self._waited = time.monotonic() - row["seconds"], row["waited"]
        self._sums, self._counts = (
            torch.tensor([float(x) for x in row["sums"]], device=self.device),
            list(row["counts"]),
        )
        self._skipped = list(row["skipped"])
        self._steps: list[tuple[list[float], Tensor]] = []
        self._tokens, self._operations, self._rows = row["tokens"], row["operations"], list(row["rows"])
        self._looked: dict[str, Tensor] = {}
        self._norm: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """Return what the row that is begun holds so far, for a checkpoint; here the host waits for the device."""
        self._count_steps()
        return {
            "seconds": time.monotonic() - self._started,
            "waited": self._waited,
            "sums": self._sums.tolist(),
            "counts": self._counts,
            "skipped": self._skipped,
            "tokens": self._tokens,
            "operations": self._operations,
            "rows": self._rows,
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Enter a context whose time is not training time."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began

    def read(self, batch: Batch, waited: float) -> None:
        """Count a batch on the host, and the seconds that the step waited for it."""
        self._waited += waited
        self._rows = [a + b for a, b in zip(self._rows, batch.routing.sizes, strict=True)]
        ranks, parts = self.model.ranks, total_operations(self.model.config, batch)
        # a rank of several that share a batch has its own targets and latents, and an equal part of the rest
        own = parts.pop("head") / ranks.tensor + parts.pop("latents")
        self._operations += (1 + BACKWARD) * (own + sum(parts.values()) / (ranks.context * ranks.tensor))

    def stepped(self, sums: Tensor, counts: list[float], norm: Tensor, tokens: int) -> None:
        """Count a step: loss sums [M] and their counts, the gradient's norm [], and the tokens of all ranks.

        A step whose norm is not finite was skipped: neither its loss nor its count takes part in the row's mean.
        """
        self._sums += torch.where(torch.isfinite(norm), sums, torch.zeros_like(sums))
        self._steps.append((counts, norm))
        self._norm, self._tokens = norm, self._tokens + tokens

    def _count_steps(self) -> None:
        """Add the counts of the steps so far, those of skipped steps apart; here the host waits for the device."""
        if not self._steps:
            return
        finite = torch.isfinite(torch.stack([norm for _, norm in self._steps])).tolist()
        for (counts, _), taken in zip(self._steps, finite, strict=True):
            sums = self._counts if taken else self._skipped
            sums[:] = [a + b for a, b in zip(sums, counts, strict=True)]
        self._steps = []

    def wants_gradients(self, step: int) -> bool:
        """Say whether a row follows the step of this number (from 1), as far as that is known before."""
        return step % self.config.log_every == 0 or step in (1, self.config.steps)

    @torch.no_grad()
    def look(self, model: MixtureOfTransformers, norm: Tensor) -> None:
        """Take each tower's gradient norm and the load of its experts, after clipping; all ranks call it.

        ``norm`` [] is the norm of the whole gradient before it was clipped.
        """
        groups = _by_tower(model)
        squares = []
        for parameters in groups.values():
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            assert len(gradients) == len(parameters), "every parameter that trains has a gradient"
            each = torch.stack(torch._foreach_norm(gradients)).square()
            shares = torch.tensor([1 / parallel.copies(p) for p in parameters], dtype=each.dtype).to(each.device)
            squares.append((each * shares).sum())
        clipped = model.ranks.total(torch.stack(squares)).sqrt()
        norms = clipped / (self.config.clip / (norm + 1e-6)).clamp(max=1.0)  # what torch's clipping multiplies by
        self._looked = {f"grad_norm/{name}": value for name, value in zip(groups, norms, strict=True)}
        self._looked |= expert_load(model)

    def row(self) -> dict[str, Any]:
        """Return what was measured since the last row; here the host waits for the device.

        A loss is the mean over the steps that were not skipped, and NaN where all were.
        """
        elapsed = max(time.monotonic() - self._started, 1e-9)
        self._count_steps()
        sums, names, row = self._sums.tolist(), self.model.config.layout.names, dict[str, Any]()
        for name, total, number, skipped in zip(names, sums, self._counts, self._skipped, strict=True):
            if number or skipped:
                row[f"loss/{name}"] = total / number if number else math.nan
        row["grad_norm"] = None if self._norm is None else float(self._norm)
        row |= {name: float(value) for name, value in self._looked.items()}
        row["tokens_per_second"] = self._tokens / elapsed
        row["tflops"] = self._operations / elapsed / 1e12
        row["mfu"] = self._operations / elapsed / self.peak if self.peak else None
        row["loader_share"] = self._waited / elapsed
        total = sum(self._rows)
        for tower, rows in zip(self.model.config.towers, self._rows, strict=True):
            row[f"token_share/{tower}"] = rows / total if total else None
        return row


def _by_tower(model: MixtureOfTransformers) -> dict[str, list[Tensor]]:
    """Return the trained parameters of each tower, and of what towers share."""
    groups: dict[str, list[Tensor]] = {}
    for part, parameter in model.weights():
        if parameter.requires_grad:
            groups.setdefault(part.tower or SHARED, []).append(parameter)
    return groups


def expert_load(model: MixtureOfTransformers) -> dict[str, Tensor]:
    """Return the tokens of the busiest expert over the mean one's since the last step, a mean over layers, by tower.

    1 is balanced; for token-choice experts, before `MixtureOfTransformers.update_balance` forgets the load.
    """
    by_tower: dict[str, list[Tensor]] = {}
    for tower, module in (owned for block in model.blocks for owned in block.ffn.owned()):
        if isinstance(module, MixtureOfExperts) and module.routing == "token_choice":
            load = module.tokens_per_expert
            by_tower.setdefault(f"expert_load/{tower or SHARED}", []).append(load.max() / load.mean().clamp_min(1e-9))
    return {name: torch.stack(loads).mean() for name, loads in by_tower.items()}


def peak_flops(config: TrainConfig, device: torch.device) -> float:
    """Return what a device can do a second: as configured, else by a known GPU's data sheet, else 0 (not known)."""
    if config.peak_tflops:
        return config.peak_tflops * 1e12
    if device.type == "cuda" and config.precision == "bfloat16":
        return peak_of(torch.cuda.get_device_name(device), config.precision) * 1e12
    return 0.0


def progress_text(row: Mapping[str, Any], step: int) -> str:
    """Return what the progress bar says of a row: the step, losses, and speed."""
    losses = [f"{name.partition('/')[2]} {value:.3f}" for name, value in row.items() if name.startswith("loss/")]
    share = [f"{row['mfu']:.0%} of peak"] if row.get("mfu") is not None else []
    return "  ".join([f"step {step:,}", *losses, f"{count(row['tokens_per_second'])} tokens/s", *share])
