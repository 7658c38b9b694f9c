"""What stays as it is in a model of which some towers are frozen.

A frozen tower keeps its own parameters. In embedding and head, it is rows that are frozen: those of the ids that only
frozen towers carry. So a pretrained text tower keeps its tokenizer's ids, whether it shares the table or not, and
the rows of ids that came with other modalities, such as <image>, train.
"""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from plait.config.model import ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import local, part_of
from plait.model.traits import WeightRecord

TABLES = ("embed", "head")


def frozen_ids(config: ModelConfig, frozen: Collection[str]) -> list[range]:
    """Return the ids that only frozen towers carry; the host's include those that open and end documents."""
    layout, ranges = config.layout, []
    for name, modality in config.modalities.items():
        if all(tower in frozen for tower in modality.towers):
            ids = layout.ids(name)
            ranges.append(range(ids.start, ids.stop + len(layout.added) * (name == layout.host)))
    return ranges


def is_frozen(part: WeightRecord, config: ModelConfig, frozen: Collection[str]) -> bool:
    """Say whether a parameter stays as it is, all of it. Where all towers are frozen, what they share is too."""
    if part.trait.adapts:
        return False
    if set(config.towers) <= set(frozen):
        return True
    if part.tower not in frozen:
        return False
    new_ids = sum(map(len, frozen_ids(config, frozen))) < config.layout.size
    return not (part.place.component in TABLES and new_ids)


def has_frozen_rows(part: WeightRecord, config: ModelConfig, frozen: Collection[str]) -> bool:
    """Say whether a parameter trains but for rows of frozen ids: a table that a frozen tower computes with."""
    computes = part.tower in frozen or (part.tower is None and bool(frozen))
    return (
        part.place.component in TABLES
        and computes
        and not is_frozen(part, config, frozen)
        and bool(frozen_ids(config, frozen))
    )


def trained_rows(model: MixtureOfTransformers, frozen: Collection[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each table that has frozen rows with what its gradient is multiplied by [rows, 1]: 0 for those, else 1.

    Of sharded tables both are this rank's part.
    """
    for part, parameter in model.weights():
        if has_frozen_rows(part, model.config, frozen):
            trains = torch.ones(parameter.shape[0], 1)
            for ids in frozen_ids(model.config, frozen):
                trains[ids.start : ids.stop] = 0
            yield parameter, local(part_of(trains.to(parameter.device, parameter.dtype), parameter))
