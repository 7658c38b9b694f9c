"""Stand-ins for the ranks that share a batch: what they would exchange has a shape, and its bytes are counted."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import Placement, Shard

from plait.model import ranks
from plait.model.ranks import Ranks


@dataclass
class Group:
    """Ranks that exchange something, by the name of what they share."""

    name: str
    size: int


@dataclass(frozen=True)
class PlannedRanks(Ranks):
    """The first of several ranks, alone: the others are made up."""

    sent: Counter = field(default_factory=Counter)
    """Bytes that this rank has sent, by the name of the group."""

    @classmethod
    def of_sizes(cls, *, context: int, tensor: int) -> "PlannedRanks":
        """Return the first of ``context`` x ``tensor`` ranks."""
        rows = Group("tensor" if tensor > 1 else "context", context * tensor)
        meshes = {"context_mesh": (Group("context", context),), "tensor_mesh": (Group("tensor", tensor),)}
        return cls(context=context, tensor=tensor, row_mesh=(rows,), **meshes)

    def stacked(self, x: Tensor) -> Tensor:
        self._count(self.tensor_mesh[0], self.tensor * x.numel() * x.element_size())
        return x[None].expand(self.tensor, *x.shape).clone()

    def summed(self, x: Tensor) -> Tensor:
        self._count(self.tensor_mesh[0], 2 * x.numel() * x.element_size())
        return x.clone()

    def redistributed(self, x: Tensor, groups: tuple[Group, ...], before: list, after: list) -> Tensor:
        """Exchange a tensor over groups as `plait.model.ranks` does, forward and backward."""
        for group, was, becomes in zip(groups, before, after, strict=True):
            x = _Exchange.apply(x, self, group, was, becomes)
        return x

    def _count(self, group: Group, size: float) -> None:
        """Count what each of n ranks in a ring sends of what is gathered, scattered or exchanged: (n - 1) / n."""
        self.sent[group.name] += size * (group.size - 1) / group.size


@contextlib.contextmanager
def made_up_ranks(planned: PlannedRanks) -> Iterator[None]:
    """Let every exchange of the model go through ``planned``."""
    before = ranks._redistributed
    ranks._redistributed = planned.redistributed
    try:
        yield
    finally:
        ranks._redistributed = before


class _Exchange(torch.autograd.Function):
    """One exchange over one group; its gradient goes the opposite way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, planned: PlannedRanks, group: Group, was: Placement, becomes: Placement) -> Tensor:
        ctx.exchange = planned, group, becomes, was
        return _exchanged(x, planned, group, was, becomes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        return _exchanged(gradient, *ctx.exchange), None, None, None, None


def _exchanged(x: Tensor, planned: PlannedRanks, group: Group, was: Placement, becomes: Placement) -> Tensor:
    """Return the result of torch's own operation, whose shape it knows without any group."""
    operations, shape = torch.ops._c10d_functional, list(x.shape)
    if not isinstance(was, Shard):
        made = operations.reduce_scatter_tensor(x, "sum", group.size, "plan")
    elif not isinstance(becomes, Shard):
        made = operations.all_gather_into_tensor(x, group.size, "plan")
    else:
        shape[was.dim] *= group.size
        shape[becomes.dim] //= group.size
        made = operations.all_to_all_single(x, [len(x)], [len(x)], "plan").reshape(shape)
    planned._count(group, max(x.numel(), made.numel()) * x.element_size())
    return made
