"""Muon for matrices, AdamW for the rest, as one optimizer (arXiv 2502.16982; Jordan et al. 2024).

Muon replaces the momentum of a matrix by the nearest matrix of orthonormal rows or columns, up to what some
Newton-Schulz steps leave, so that no direction of a gradient is drowned by its largest ones. It is scaled to the size
of AdamW's updates (equation 4 of arXiv 2502.16982), so that one learning rate serves both.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait.common.devices import is_fast_in_bfloat16
from plait.model.ranks import local, part_of

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: singular values end between about .7 and 1.2."""

NUM_STEPS = 3
"""Five are usual; on the quickstart three gave the same losses at three fifths of the work (docs/experiments.md)."""
MOMENTUM = 0.95


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with ``muon: True`` hold matrices [..., out, in] that Muon moves.

    torch.optim.Muon takes matrices one by one and cannot leave a step out without asking the device whether to; here
    matrices of one shape go together, and where ``found_inf`` is 1 nothing changes. Small matrices cost what is read
    and written, not the products: gradients are used up, and nothing is copied but into the products' precision.
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move all parameters; afterwards the gradients of matrices are no longer what they were."""
        groups = self.param_groups
        self.param_groups = [g for g in groups if not g["muon"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        bad = getattr(self, "found_inf", None)
        if bad is not None and bad.device.type == "cpu":  # where asking waits for nothing
            if bad:
                return
            bad = None
        for group in groups:
            if group["muon"]:
                self._step_matrices(group, bad)

    def _step_matrices(self, group: dict, bad: Tensor | None) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            rows = rows_together(shape, group.get("rows", 0))
            size = 0.2 * math.sqrt(max(rows, shape[-1])) * group["lr"]
            decay = group["lr"] * group["weight_decay"]
            # the experts of one weight [E, in, out] are their own matrices
            pieces = self._look_ahead(parameters, bad).view(-1, rows, shape[-1])
            moved = orthogonal(pieces).reshape(len(parameters), *shape)
            for parameter, update in zip(parameters, moved, strict=True):
                if bad is None:
                    parameter.mul_(1 - decay).add_(part_of(update, parameter), alpha=-size)
                else:
                    update = update.to(parameter.dtype) * (size * (1 - bad))
                    parameter.mul_(1 - decay * (1 - bad)).sub_(part_of(update, parameter))

    def _look_ahead(self, parameters: list[Tensor], bad: Tensor | None) -> Tensor:
        """Take the gradients into the momenta; return Nesterov's look ahead, [number of parameters, ...]."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [local(self.state[p]["momentum"]) for p in parameters]
        gradients = [local(p.grad) for p in parameters]
        share = 1 - MOMENTUM
        if bad is None:
            torch._foreach_lerp_(momenta, gradients, share)
        else:
            for gradient in gradients:
                gradient.copy_(torch.where(bad > 0, 0.0, gradient))
            torch._foreach_mul_(momenta, 1 - share * (1 - bad))
            torch._foreach_add_(momenta, torch._foreach_mul(gradients, share * (1 - bad)))
        torch._foreach_lerp_(gradients, momenta, MOMENTUM)
        first = parameters[0]
        matrices = torch.empty(len(parameters), *first.shape, dtype=_precision(first), device=first.device)
        for row, parameter in zip(matrices, parameters, strict=True):
            row.copy_(whole(parameter.grad))
        return matrices


def rows_together(shape: torch.Size, rows: int) -> int:
    """Return how many rows of matrices [..., out, in] are made orthogonal together: ``rows`` where they divide out."""
    return rows if rows and shape[-2] % rows == 0 else shape[-2]


def orthogonal(matrices: Tensor, steps: int = NUM_STEPS) -> Tensor:
    """Return matrices [K, m, n] with their singular values brought near to 1, in `_precision`.

    A matrix of zeros stays so.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.to(_precision(x)).contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _precision(x: Tensor) -> torch.dtype:
    """Return the precision in which a matrix is made orthogonal: bfloat16, float32 where the device has no
    instructions for it, and float64 of what is float64, for tests."""
    if x.dtype == torch.float64:
        return x.dtype
    return torch.bfloat16 if is_fast_in_bfloat16(x.device.type) else torch.float32


def whole(x: Tensor) -> Tensor:
    """Return all of a tensor that may be spread over ranks."""
    return x.full_tensor() if isinstance(x, DTensor) else x
