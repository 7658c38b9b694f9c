"""What one of several ranks computes of a batch."""

import dataclasses
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from plait.batch.batch import Batch, Latents, Place, Targets


class Sharing(Protocol):
    """The ranks that share a batch: how many of each kind, and which one this is (`plait.model.ranks.Ranks`)."""

    @property
    def context(self) -> int: ...

    @property
    def context_rank(self) -> int: ...

    @property
    def tensor(self) -> int: ...

    @property
    def tensor_rank(self) -> int: ...


def share_of(batch: Batch, ranks: Sharing) -> Batch:
    """Return a batch on the host with this rank's part of its targets and latents; its counts stay the whole's.

    Targets go with the rows of a context rank; each tensor rank sees a share of the ids of all of them, and counts
    for 1 / T of their loss. Continuous spans go to the ranks in turn. The ids of latents become -1.
    """
    if ranks.context * ranks.tensor == 1:
        return batch
    ids = batch.ids.clone()
    for span in batch.spans:
        if batch.latents.get(span.modality) is not None:
            ids[span.start : span.stop] = -1
    latents = {name: _share_of_latents(group, ranks) for name, group in batch.latents.items()}
    return dataclasses.replace(batch, ids=ids, targets=_share_of_targets(batch, ranks), latents=latents)


def _share_of_targets(batch: Batch, ranks: Sharing) -> Targets:
    targets, rows, chosen, at = batch.targets, [], [], 0
    for of_tower, padded in zip(targets.rows, batch.routing.padded_sizes, strict=True):
        size = padded // ranks.context
        is_owned = of_tower // size == ranks.context_rank
        rows.append(of_tower[is_owned] - ranks.context_rank * size)
        chosen.append(at + is_owned.nonzero().flatten())
        at += len(of_tower)
    places = torch.cat(chosen)
    return dataclasses.replace(
        targets, rows=rows, ids=targets.ids[places], modality=targets.modality[places],
        weight=targets.weight[places] / ranks.tensor, document=targets.document[places],
    )  # fmt: skip


def _share_of_latents(group: Latents, ranks: Sharing) -> Latents:
    number, count = ranks.context_rank * ranks.tensor + ranks.tensor_rank, ranks.context * ranks.tensor
    spans = list(range(number, len(group.lengths), count))
    owned = np.isin(group.span.numpy(), spans)
    tokens = torch.from_numpy(np.flatnonzero(owned))
    new_place = torch.from_numpy(np.cumsum(owned) - 1)
    places = {}
    for tower, place in group.places.items():
        is_owned = torch.from_numpy(owned)[place.tokens]
        # a tower holds whole spans, in their order: the grids are those of its spans that are owned
        of_tower = group.span[place.tokens].unique_consecutive().tolist()
        grids = [grid for grid, span in zip(place.grids, of_tower, strict=True) if span in spans]
        places[tower] = Place(new_place[place.tokens[is_owned]], place.rows[is_owned], grids)

    def each(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[tokens]

    return Latents(
        group.values[tokens], group.span[tokens] // count, places, [group.lengths[s] for s in spans],
        [group.documents[s] for s in spans], [group.noised[s] for s in spans], each(group.timesteps),
        each(group.targets),
    )  # fmt: skip
