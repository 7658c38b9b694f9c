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

from plait.model.ranks import part_of

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: singular values end between about .7 and 1.2."""

NUM_STEPS = 3
"""Five are usual; on the quickstart three gave the same losses at three fifths of the work (docs/experiments.md)."""
MOMENTUM = 0.95


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with ``muon: True`` hold matrices [..., out, in] that Muon moves.

    torch.optim.Muon takes matrices one by one and cannot leave a step out without asking the device whether to; here
    matrices of one shape go together, and where ``found_inf`` is 1 nothing changes.
    """

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move all parameters."""
        groups = self.param_groups
        self.param_groups = [g for g in groups if not g["muon"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict) -> None:
        bad = getattr(self, "found_inf", None)
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            updates = [whole(self._momentum(p, bad)) for p in parameters]
            size = 0.2 * math.sqrt(max(shape[-2:])) * group["lr"]
            decay = group["lr"] * group["weight_decay"]
            if bad is not None:
                size, decay = size * (1 - bad), decay * (1 - bad)
            # the experts of one weight [E, in, out] are matrices of their own
            moved = orthogonal(torch.stack(updates).flatten(0, -3)).view(len(updates), *shape)
            for parameter, update in zip(parameters, moved, strict=True):
                parameter.mul_(1 - decay).sub_(part_of(update.to(parameter.dtype) * size, parameter))

    def _momentum(self, parameter: Tensor, bad: Tensor | None) -> Tensor:
        """Take the gradient into the parameter's momentum; return Nesterov's look ahead."""
        state, gradient = self.state[parameter], parameter.grad
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, share = state["momentum"], 1 - MOMENTUM
        if bad is None:
            momentum.lerp_(gradient, share)
        else:
            gradient = torch.where(bad > 0, 0.0, gradient)
            momentum.mul_(1 - share * (1 - bad)).add_(gradient * share)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor, steps: int = NUM_STEPS) -> Tensor:
    """Return matrices [K, m, n] with their singular values brought near to 1, in bfloat16.

    float64 stays float64, for tests. A matrix of zeros stays so.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x if x.dtype == torch.float64 else x.to(torch.bfloat16)).contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def whole(x: Tensor) -> Tensor:
    """Return all of a tensor that may be spread over ranks."""
    return x.full_tensor() if isinstance(x, DTensor) else x
