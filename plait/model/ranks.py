"""How several ranks compute one batch: rows of every tower, heads, the vocabulary, and weights that are cut.

The ranks of a run are data x context x tensor. Each data rank has its own batches; its context x tensor ranks
compute one batch together, and each owns an equal part of every tower's rows.

- Tensor ranks hold a part of every weight: of the heads, the hidden sizes, the ids. Between them, rows are gathered
  before a weight that is cut by its outputs, and summed and handed back after one that is cut by its inputs
  (Megatron's sequence parallelism, arXiv 2205.05198).
- Context ranks hold the same weights. Around attention, rows are exchanged for heads and back (Ulysses,
  arXiv 2309.14509), so that a rank sees all tokens of a few heads.

Activations are plain tensors and weights are DTensors, read through `local`. Every rank computes a part of the loss,
and the loss is the sum over all ranks. So the gradient of a weight that several ranks hold is the sum of theirs.

Shapes: N_k rows of tower k (padded), C context ranks, T tensor ranks, n = N_k / (C T) rows of one rank.
"""

from dataclasses import dataclass

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(weight: Tensor) -> Tensor:
    """Return what this rank computes with of a weight: all of it, or its part."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def part_of(whole: Tensor, weight: Tensor) -> Tensor:
    """Return a whole tensor in the form of ``weight``: itself, or as a DTensor this rank's part of it."""
    if not isinstance(weight, DTensor):
        return whole
    shape, offset = compute_local_shape_and_global_offset(whole.shape, weight.device_mesh, weight.placements)
    part = whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
    part = part.to(weight.device, weight.dtype).contiguous()
    return DTensor.from_local(part, weight.device_mesh, weight.placements, shape=whole.shape, stride=whole.stride())


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, and this rank's place among them; without a mesh, one process alone.

    Every method is called by all ranks that share a batch, in the same order. In one process each returns its input.
    """

    mesh: DeviceMesh | None = None
    """data x context x tensor."""
    data: int = 1
    data_rank: int = 0
    context: int = 1
    context_rank: int = 0
    tensor: int = 1
    tensor_rank: int = 0
    context_mesh: DeviceMesh | None = None
    tensor_mesh: DeviceMesh | None = None
    row_mesh: DeviceMesh | None = None
    """Context and tensor ranks as one dimension."""

    @classmethod
    def of(cls, mesh: DeviceMesh, row_mesh: DeviceMesh) -> "Ranks":
        """Return the ranks of a mesh with the dimensions data, context and tensor."""
        names = mesh.mesh_dim_names or ()
        sizes = {name: mesh[name].size() for name in names}
        places = {f"{name}_rank": mesh[name].get_local_rank() for name in names}
        return cls(mesh, **sizes, **places, context_mesh=mesh["context"], tensor_mesh=mesh["tensor"], row_mesh=row_mesh)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.data_rank == self.context_rank == self.tensor_rank == 0

    @property
    def leads_batch(self) -> bool:
        """Whether this rank is the first of those that compute its batch."""
        return self.context_rank == self.tensor_rank == 0

    @property
    def share_batch(self) -> bool:
        """Whether several ranks compute one batch."""
        return self.context * self.tensor > 1

    def gather(self, streams: list[Tensor]) -> list[Tensor]:
        """Rows [n, D] of each tower to those of this context rank [N_k / C, D]."""
        if self.tensor == 1:
            return streams
        return [_redistributed(x, self.tensor_mesh, [Shard(0)], [Replicate()]) for x in streams]

    def scatter(self, streams: list[Tensor]) -> list[Tensor]:
        """Sum tensor ranks' parts [N_k / C, D] of each tower and return this rank's rows [n, D]."""
        if self.tensor == 1:
            return streams
        return [_redistributed(x, self.tensor_mesh, [Partial()], [Shard(0)]) for x in streams]

    def gather_all(self, x: Tensor) -> Tensor:
        """Rows [n, D] of one tower to all of its rows [N_k, D]."""
        if not self.share_batch:
            return x
        return _redistributed(x, self.row_mesh, [Shard(0)], [Replicate()])

    def scatter_all(self, x: Tensor) -> Tensor:
        """Sum the parts [N_k, D] of all ranks that share a batch and return this rank's rows [n, D]."""
        if not self.share_batch:
            return x
        return _redistributed(x, self.row_mesh, [Partial()], [Shard(0)])

    def rows_to_heads(self, heads: Tensor) -> Tensor:
        """Heads [N_k / C, G, ...] of a tower's rows to a part of the heads of all rows [N_k, G / C, ...]."""
        return _redistributed(heads, self.context_mesh, [Shard(0)], [Shard(1)]).contiguous()

    def heads_to_rows(self, heads: Tensor) -> Tensor:
        """A part of the heads of all rows [N_k, H / C, d] to all heads of this context rank's [N_k / C, H, d]."""
        return _redistributed(heads, self.context_mesh, [Shard(1)], [Shard(0)])

    def rows_of_context(self, x: Tensor) -> Tensor:
        """Return the part [N_k / C, ...] of a tower's rows [N_k, ...] that is this context rank's."""
        size = x.shape[0] // self.context
        return x if self.context == 1 else x.narrow(0, self.context_rank * size, size)

    def embed(self, ids: list[Tensor], tables: list[Tensor]) -> list[Tensor]:
        """Look up each tower's ids [N_k] in its table, of which this rank has a part; return its rows [n, D].

        An id below 0 gives zeros.
        """
        embedded = []
        for of_tower, weight in zip(ids, tables, strict=True):
            table = local(weight)
            table_rows = self.rows_of_context(of_tower) - self.first_id(len(weight))
            inside = (table_rows >= 0) & (table_rows < len(table))
            embedded.append(F.embedding(table_rows.clamp(0, len(table) - 1), table) * inside[:, None])
        return self.scatter(embedded)

    def first_id(self, num_ids: int) -> int:
        """Return the first id of this rank's part of a table of ids."""
        return self.tensor_rank * -(-num_ids // self.tensor)

    def stacked(self, x: Tensor) -> Tensor:
        """Return the tensors of all tensor ranks, [T, ...]; no gradient flows."""
        return DTensor.from_local(x[None], self.tensor_mesh, [Shard(0)], run_check=False).full_tensor()

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of all tensor ranks' tensors; no gradient flows."""
        return DTensor.from_local(x, self.tensor_mesh, [Partial()], run_check=False).full_tensor()

    def total(self, x: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it; no gradient flows."""
        if self.mesh is not None:
            dist.all_reduce(x)
        return x


def _redistributed(x: Tensor, mesh: DeviceMesh | None, before: list[Placement], after: list[Placement]) -> Tensor:
    """Change how ranks hold a tensor. What comes back as a whole gets a part of its gradient from each rank."""
    assert mesh is not None, "a rank alone has nobody to exchange with"
    gradient = [Partial() if isinstance(p, Replicate) else p for p in after]
    x = DTensor.from_local(x, mesh, before, run_check=False)
    return x.redistribute(placements=after).to_local(grad_placements=gradient)
