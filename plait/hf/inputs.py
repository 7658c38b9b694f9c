"""Documents as the tensors that transformers passes around, and back.

A batch of B documents of up to T tokens is

    input_ids       [B, T]  global ids as the document is spelt: <bos>, texts, other parts between their delimiters; the
                            opening delimiter stands in place of each latent between it and the closing one
    attention_mask  [B, T]  1 where there is a token
    labels          [B, T]  -100 for what is given; any other number: this part is learned
    NAME_latents    [n, C]  all latents of a continuous modality, document after document
    NAME_grids      [S, 3]  the extent of each of a modality's items in whole numbers, 0 where there is no further axis

A part other than the host's is given or learned as a whole. The mapping is exact both ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.assemble import edge_id
from plait.batch.documents import Document, Part, role_of
from plait.common.errors import DataError, require
from plait.config.model import ModelConfig

IGNORED = -100
AXES = 3


@dataclass
class Row:
    """One document, and whether it ends here rather than goes on."""

    document: Document
    is_closed: bool


def latents_name(modality: str) -> str:
    """Return the name of a modality's latents among a model's inputs."""
    return f"{modality}_latents"


def grids_name(modality: str) -> str:
    """Return the name of the extents of a modality's items."""
    return f"{modality}_grids"


def names_of_media(config: ModelConfig) -> list[str]:
    """Return the names of all inputs of a model that hold media."""
    return [of(modality) for modality in list(config.modalities)[1:] for of in (latents_name, grids_name)]


def tensors_of(rows: Sequence[Row], config: ModelConfig, *, with_labels: bool, left: bool = False) -> dict[str, Tensor]:
    """Return documents as tensors; ``left`` pads on the left, as generation wants it."""
    spelt = [list(_spelt(row, config)) for row in rows]
    ids = [np.concatenate([piece[0] for piece in pieces]) for pieces in spelt]
    learned = [np.concatenate([np.full(len(i), on) for i, on in pieces]) for pieces in spelt]
    longest = max(map(len, ids))
    shape = (len(rows), longest)
    input_ids, mask = torch.full(shape, config.layout.eos), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for i, (row, on) in enumerate(zip(ids, learned, strict=True)):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        input_ids[i, place], mask[i, place] = torch.from_numpy(row), 1
        labels[i, place] = torch.from_numpy(np.where(on, row, IGNORED))
    found = {"input_ids": input_ids, "attention_mask": mask} | ({"labels": labels} if with_labels else {})
    return found | _latents(rows, config)


def _spelt(row: Row, config: ModelConfig) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the ids of a document, and whether they are learned."""
    layout, parts = config.layout, row.document.parts
    first, last = (edge_id(row.document, layout, at) for at in (0, -1))
    if layout.bos is not None and first != layout.bos:
        yield np.array([layout.bos]), False
    for part in parts:
        for shown in _shown(part, config):
            ids = _ids(shown, config)
            if shown.modality != layout.host:
                opening, closing = layout.opening[shown.modality], layout.closing[shown.modality]
                ids = np.concatenate([[opening], ids, [closing]])
            yield ids, shown.loss > 0
    if row.is_closed and last not in layout.stops:
        yield np.array([layout.eos]), True


def _shown(part: Part, config: ModelConfig) -> list[Part]:
    """Return what stands for a part: itself, or what is read of it where it is given."""
    reader = config.readers.get(part.modality)
    if reader is None or part.role != role_of(given=True) or part.features is None:
        return [part]
    features = replace(part.features, loss=0.0)
    return [part, features] if config.modalities[reader].beside else [features]


def _ids(part: Part, config: ModelConfig) -> np.ndarray:
    if part.ids is None:
        return np.full(len(part), config.layout.opening[part.modality], np.int64)
    return np.asarray(part.ids, np.int64) + config.layout.offsets[part.modality]


def _latents(rows: Sequence[Row], config: ModelConfig) -> dict[str, Tensor]:
    parts = [shown for row in rows for part in row.document.parts for shown in _shown(part, config)]
    found: dict[str, Tensor] = {}
    for name in list(config.modalities)[1:]:
        own = [part for part in parts if part.modality == name]
        values = [np.asarray(part.latents, np.float32) for part in own if part.latents is not None]
        if values:
            found[latents_name(name)] = torch.from_numpy(np.concatenate(values))
        if any(part.grid for part in own):
            extents = [[*part.grid, *[0] * (AXES - len(part.grid))] for part in own]
            found[grids_name(name)] = torch.tensor(extents)
    return found


# -- and back -------------------------------------------------------------------------------------------------------


def rows_of(
    config: ModelConfig, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None,
    others: Mapping[str, Any],
) -> list[Row]:  # fmt: skip
    """Return the documents of a batch. Raises DataError where the tensors do not fit each other."""
    require(input_ids.ndim == 2, "input_ids", list(input_ids.shape), "[rows, tokens]")
    for name, tensor in (("attention_mask", attention_mask), ("labels", labels)):
        fits = tensor is None or tensor.shape == input_ids.shape
        require(fits, name, list(getattr(tensor, "shape", ())), f"{list(input_ids.shape)}, as input_ids")
    stores = {name: _Store(name, m.objective != "next_token", others) for name, m in config.modalities.items()}
    kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    found = []
    for i in range(len(input_ids)):
        inside = kept[i].bool().cpu()
        ids = input_ids[i].cpu()[inside].numpy()
        learned = None if labels is None else labels[i].cpu()[inside].numpy() != IGNORED
        found.append(_read(ids, learned, config, stores, f"input_ids: row {i}"))
        found[-1].document.index = i
    for store in stores.values():
        store.check_used()
    return found


class _Store:
    """The latents and extents of a modality, which the rows take in order."""

    def __init__(self, modality: str, is_continuous: bool, others: Mapping[str, Any]):
        self.name, self.is_continuous, self.at, self.items = latents_name(modality), is_continuous, 0, 0
        latents, grids = others.get(self.name), others.get(grids_name(modality))
        self.values = None if latents is None else latents.detach().float().cpu().numpy()
        self.grids = None if grids is None else grids.cpu().tolist()

    def take(self, count: int, where: str) -> np.ndarray:
        """Return the next latents [count, C]."""
        values = None if self.values is None else self.values[self.at : self.at + count]
        if values is None or len(values) < count:
            raise DataError(f"{where} asks for more latents than {self.name} has, give those of all its items")
        self.at += count
        return values

    def grid(self) -> tuple[int, ...]:
        """Return the extent of the next item."""
        self.items += 1
        known = self.grids is not None and self.items <= len(self.grids)
        return tuple(n for n in self.grids[self.items - 1] if n) if known else ()  # type: ignore[index]

    def check_used(self) -> None:
        if self.values is not None and self.at < len(self.values):
            raise DataError(f"{self.name}: {len(self.values) - self.at} latents are left over, no row asks for them")


def _read(
    ids: np.ndarray, learned: np.ndarray | None, config: ModelConfig, stores: Mapping[str, _Store], where: str
) -> Row:
    """Return the document that ids spell."""
    layout = config.layout
    parts: list[Part] = []
    at, stop = 0, len(ids)
    if layout.bos is not None:
        if not stop or ids[0] != layout.bos:
            raise DataError(f"{where} does not begin with the id {layout.bos}, which opens documents of this model")
        at = int(layout.bos not in layout.ids(layout.host))  # an id of the host's own stays in its text
    is_closed = stop > at and int(ids[-1]) in layout.stops
    ends_item = stop - at > 1 and int(ids[-2]) in layout.closing.values()
    if is_closed and (int(ids[-1]) in layout.added or (ends_item and int(ids[-1]) == layout.eos)):
        stop -= 1  # it is of no part
    modalities = {opening: name for name, opening in layout.opening.items()}
    while at < stop:
        name = modalities.get(int(ids[at]), layout.host)
        is_item = name != layout.host
        end = at + _length(ids[at:stop], name, config, where)
        inside = slice(at + is_item, end - is_item)  # without its delimiters
        flags = None if learned is None else learned[inside]
        parts += _parts(name, ids[inside], flags, config, stores, where)
        at = end
    return Row(Document(_with_features(parts, config)), is_closed)


def _length(ids: np.ndarray, name: str, config: ModelConfig, where: str) -> int:
    """Return how many ids, from the first one on, are one text, or an item with its delimiters."""
    layout = config.layout
    if name == layout.host:
        opening = np.flatnonzero(np.isin(ids, list(layout.opening.values())))
        return int(opening[0]) if len(opening) else len(ids)
    closing = np.flatnonzero(ids == layout.closing[name])
    if not len(closing):
        raise DataError(f"{where} opens an item of {name!r} that it does not close")
    return int(closing[0]) + 1


def _parts(
    name: str, ids: np.ndarray, learned: np.ndarray | None, config: ModelConfig, stores: Mapping[str, _Store],
    where: str,
) -> Iterator[Part]:  # fmt: skip
    """Yield the part of one span; a text is cut where what is learned begins or ends."""
    flags = np.zeros(len(ids), bool) if learned is None else learned
    if stores[name].is_continuous:
        if not (ids == config.layout.opening[name]).all() or not len(ids):
            raise DataError(f"{where}: an item of {name!r} holds ids, it must hold its opening id for each latent")
        on = _of_all(flags, name, where)
        values, grid = stores[name].take(len(ids), where), stores[name].grid()
        yield Part(name, None, values, grid, role_of(given=not on), float(on))
        return
    local = ids - config.layout.offsets[name]
    if len(local) and not (local.min() >= 0 and local.max() < config.layout.sizes[name]):
        other = int(ids[(local < 0) | (local >= config.layout.sizes[name])][0])
        raise DataError(f"{where} holds the id {other} ({_named(other, config)}) where one of {name!r} must stand")
    if name != config.layout.host:
        on = _of_all(flags, name, where)
        grid = stores[name].grid()
        yield Part(name, local.astype(np.int32), grid=grid, role=role_of(given=not on), loss=float(on))
        return
    start = 0
    for on, group in groupby(flags.tolist()):
        size = len(list(group))
        yield Part(name, local[start : start + size].astype(np.int32), role=role_of(given=not on), loss=float(on))
        start += size


def _named(token: int, config: ModelConfig) -> str:
    size = config.layout.size
    return config.layout.name_of(token) if 0 <= token < size else f"there are {size} ids"


def _of_all(flags: np.ndarray, name: str, where: str) -> bool:
    if flags.any() != flags.all():
        raise DataError(f"labels: of an item of {name!r} ({where}) some are {IGNORED} and some are not, it is learned "
                        "as a whole or not at all")  # fmt: skip
    return bool(flags.any())


def _with_features(parts: list[Part], config: ModelConfig) -> list[Part]:
    """Put what was read of a part behind it, where both stand there."""
    found: list[Part] = []
    for part in parts:
        reads = config.modalities[part.modality].reads
        if reads and found and found[-1].modality == reads and config.modalities[part.modality].beside:
            found[-1].features = part
        else:
            found.append(part)
    return found
