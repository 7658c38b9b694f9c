"""Starting from saved weights: a whole model (`train.init_from`), or single towers of it (`init_from` of a tower).

A tower takes all that the saved model's tower computes with: its own weights and those it shares, by their places. All
that the saved tower has must be used and all that this tower computes with must be filled, or the start is refused with
the reason. Two rules say what may differ:

- Ids and latents go by modality. Those of a modality that the saved model lacks train from scratch; those of one that
  this model lacks, or that this tower does not carry, are left out. <bos> and <eos> go with the first modality.
- Other towers of the saved model are left out.

What was left out, and what trains from scratch, is counted and said, and so are settings that differ and may.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.common.errors import CheckpointError
from plait.common.tensor_files import TensorStore
from plait.config.id_layout import IdLayout
from plait.config.model import ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import WEIGHTS, check_tensors, load_config, load_weights
from plait.model.ranks import local, part_of
from plait.model.traits import Place, WeightRecord

READ_ALIKE = ("num_heads", "num_kv_heads", "head_dim", "norm_order")
EXPERTS_READ_ALIKE = ("moe_routing",)
LATENTS_READ_ALIKE = ("patch_size", "place_embedding")
"""Settings that say how weights of one shape are read: the same numbers would compute something else."""

SAID = ("rope_theta", "rope_scaling", "position_axes", "norm_eps")
EXPERTS_SAID = ("top_k",)
"""Settings that may differ, such as for longer documents, or by mistake: it is said where they do."""


@dataclass
class _Copy:
    """One tensor to fill: all of it, or rows of ids."""

    source: str
    target: str
    rows: list[tuple[range, range]] | None = None
    """Ranges of rows of the source, and those of the target that they go to."""


@dataclass
class _Start:
    """What one tower takes from a saved model."""

    tower: str
    folder: Path
    config: ModelConfig
    """The saved model's."""
    source_tower: str
    said: str = ""
    """Settings that differ and may."""
    copies: list[_Copy] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Tensors of the saved tower that are not used, by the reason."""
    scratch: Counter[str] = field(default_factory=Counter)
    """Tensors of this tower that train from scratch, by the reason."""

    @property
    def where(self) -> str:
        return f"model.towers.{self.tower}.init_from"

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {str(self.folder)!r} {reason}")

    @property
    def line(self) -> str:
        """What happened, for the user."""
        text = f"{self.where}: {len(self.copies)} tensors of tower {self.source_tower!r} in {str(self.folder)!r}"
        for verb, counts in (("left out", self.left_out), ("from scratch", self.scratch)):
            text += "".join(f"; {verb}: {n} of {reason}" for reason, n in counts.items())
        return text + self.said


Differing = tuple[str, Any, Any]
"""A setting, its value of this model, and that of the saved one."""


def _differing(saved: ModelConfig, config: ModelConfig, towers: Mapping[str, str]) -> tuple[list[Differing], str]:
    """Return the settings by which ``towers`` (mine: saved) would read the saved weights otherwise, which is refused.

    With them comes what is to be said of others that differ. All else shows in places and shapes.
    """
    alike: list[tuple[str, Any, Any, tuple[str, ...]]] = [("model", config, saved, READ_ALIKE)]
    said: list[tuple[str, Any, Any, tuple[str, ...]]] = [("model", config, saved, SAID)]
    for name, source in towers.items():
        tower, saved_tower = config.towers[name], saved.towers[source]
        if tower.ffn == saved_tower.ffn == "moe":
            alike.append((f"model.towers.{name}", tower, saved_tower, EXPERTS_READ_ALIKE))
            said.append((f"model.towers.{name}", tower, saved_tower, EXPERTS_SAID))
    for name, latents in config.modalities.items():
        known = saved.modalities.get(name)
        if known is None:
            continue
        carried = any(t in latents.towers and source in known.towers for t, source in towers.items())
        if carried and latents.objective == known.objective == "diffusion":
            alike.append((f"model.modalities.{name}", latents, known, LATENTS_READ_ALIKE))
    refused, other_ones = (
        [(f"{where}.{n}", getattr(a, n), getattr(b, n)) for where, a, b, names in settings for n in names
         if getattr(a, n) != getattr(b, n)]
        for settings in (alike, said)
    )  # fmt: skip
    return refused, "".join(f"; {name} is {value!r}, it was {saved_value!r}" for name, value, saved_value in other_ones)


def start_model(model: MixtureOfTransformers, folder: str | Path) -> list[str]:
    """Copy all weights of a saved model of the same architecture (raises CheckpointError); return what to say."""
    where = "train.init_from"
    saved = load_config(folder, where)
    both = {name: name for name in model.config.towers if name in saved.towers}
    refused, said = _differing(saved, model.config, both)
    for name, value, saved_value in refused:
        raise CheckpointError(f"{where}: {str(folder)!r} has {name} {saved_value!r}, this model has {value!r}")
    if saved.layout != model.config.layout:
        raise CheckpointError(
            f"{where}: {str(folder)!r} has model.layout {saved.layout}, this model has {model.config.layout}"
        )
    load_weights(model, folder, what=where)
    return [f"{where}: all weights of {str(folder)!r}{said}"] if said else []


def start_towers(model: MixtureOfTransformers, folders: Mapping[str, str]) -> list[str]:
    """Fill towers from saved models, given the folder of each; return a line for each that says what was taken.

    Nothing is changed where a CheckpointError is raised: for a saved model that does not fit, and for two that would
    fill the same weights.
    """
    starts = [_plan(model, tower, Path(folder)) for tower, folder in folders.items()]
    _refuse_conflicts(model, starts)
    for start in starts:
        _fill(model, start)
    return [start.line for start in starts]


def _plan(model: MixtureOfTransformers, tower: str, folder: Path) -> _Start:
    start = _open(model.config, tower, folder)
    with torch.device("meta"):
        saved = MixtureOfTransformers(start.config)
    with TensorStore(folder / WEIGHTS, start.where) as store:
        check_tensors(saved.state_dict(), store.tensors, str(folder), what=start.where)
    have = {p.place: p for p in saved.parts.values() if p.tower in (start.source_tower, None)}
    wanted = {p.place: p for p in model.parts.values() if p.tower in (tower, None)}
    used: set[Place] = set()
    for part in wanted.values():
        source = _source_of(start, part, have)
        if source is not None:
            used.add(source.place)
            _take(start, source, part, saved, model)
    for place in have:
        if place not in used:
            _leave_out(start, have[place], wanted, model.config)
    return start


def _open(config: ModelConfig, tower: str, folder: Path) -> _Start:
    """Read what was saved, and refuse what cannot fit whatever the weights."""
    saved = load_config(folder, f"model.towers.{tower}.init_from")
    towers = list(saved.towers)
    start = _Start(tower, folder, saved, tower if tower in towers else towers[0])
    if start.source_tower != tower and len(towers) > 1:
        raise start.refuse(f"has the towers {', '.join(towers)}, it must have one tower, or one named {tower!r}")
    if saved.num_layers != config.num_layers:
        raise start.refuse(
            f"has {saved.num_layers} layers and this model has {config.num_layers}, not as many: "
            f"set model.num_layers to {saved.num_layers}"
        )
    refused, start.said = _differing(saved, config, {tower: start.source_tower})
    for name, value, saved_value in refused:
        raise start.refuse(f"has {name} {saved_value!r} and this model has {value!r}, set {name} to {saved_value!r}")
    if config.tie_embeddings and not saved.tie_embeddings:
        raise start.refuse("has its own head, for which this model has no place, set model.tie_embeddings to false")
    for name, modality in saved.modalities.items():
        target = config.modalities.get(name)
        if target is not None and target.objective == modality.objective and target.vocab_size != modality.vocab_size:
            raise start.refuse(
                f"has {modality.vocab_size} ids of {name} and this model has {target.vocab_size}, "
                "they must be the same: "
                f"set model.modalities.{name}.vocab_size to {modality.vocab_size}, with the codec it was trained on"
            )
    return start


def _source_of(start: _Start, part: WeightRecord, have: Mapping[Place, WeightRecord]) -> WeightRecord | None:
    """Return what fills a tensor of this model; None where it trains from scratch by rule."""
    place = part.place
    if place in have:
        return have[place]
    if place.component == "head" and start.config.tie_embeddings:  # the table is the head
        return have[Place("embed", place.inner)]
    if place.modality is not None and not any(
        (p.component, p.modality) == (place.component, place.modality) for p in have
    ):
        start.scratch[f"{place.modality} latents, which it does not have"] += 1
        return None
    raise start.refuse(
        f"has nothing for {part.name!r}, which tower {start.tower!r} computes with; give both models "
        "the same model section, or start this tower from another one"
    )


def _leave_out(start: _Start, part: WeightRecord, wanted: Mapping[Place, WeightRecord], config: ModelConfig) -> None:
    """Count a saved tensor that this model has no place for, where a rule says so; else refuse."""
    modality = part.place.modality
    if modality is None or any((p.component, p.modality) == (part.place.component, modality) for p in wanted):
        raise start.refuse(
            f"has {part.name!r}, which tower {start.tower!r} of this model has no place for; give both "
            "models the same model section"
        )
    start.left_out[f"{modality} latents, which tower {start.tower!r} does not carry"] += 1


def _take(
    start: _Start,
    source: WeightRecord,
    target: WeightRecord,
    saved: MixtureOfTransformers,
    model: MixtureOfTransformers,
) -> None:
    """Plan a copy; ids go modality by modality."""
    source_shape, target_shape = saved.state_dict()[source.name].shape, model.state_dict()[target.name].shape
    by_ids = target.place.component in ("embed", "head")
    if source_shape[by_ids:] != target_shape[by_ids:]:
        raise start.refuse(
            f"has {source.name!r} of shape {list(source_shape)}, and {target.name!r} of this model needs "
            f"{list(target_shape)}; set the sizes of model.towers.{start.tower} to the saved ones"
        )
    copy = _Copy(source.name, target.name)
    if by_ids and saved.config.layout != model.config.layout:
        copy.rows = _rows(saved.config, model.config)
        for name in saved.config.modalities:
            if not _alike(saved.config, model.config, name):
                start.left_out[f"{name} ids ({target.place.component}), which this model lacks"] += 1
        for name in model.config.modalities:
            if not _alike(saved.config, model.config, name):
                start.scratch[f"{name} ids ({target.place.component}), which it does not have"] += 1
    start.copies.append(copy)


def _alike(saved: ModelConfig, config: ModelConfig, modality: str) -> bool:
    """Whether both models have the modality, as the same kind of data."""
    source, target = saved.modalities.get(modality), config.modalities.get(modality)
    return source is not None and target is not None and source.objective == target.objective


def _rows(saved: ModelConfig, config: ModelConfig) -> list[tuple[range, range]]:
    """Return the rows of ids and delimiters that both models have."""
    pairs = []
    for name in config.modalities:
        if _alike(saved, config, name):
            pairs.append((saved.layout.ids(name), config.layout.ids(name)))
            if (saved.layout.host == name) == (config.layout.host == name):
                pairs.append((_delimiters(saved.layout, name), _delimiters(config.layout, name)))
    return [(a, b) for a, b in pairs if len(a)]


def _delimiters(layout: IdLayout, modality: str) -> range:
    first = layout.bos if modality == layout.host else layout.opening[modality]
    return range(first, first + 2)


def _refuse_conflicts(model: MixtureOfTransformers, starts: list[_Start]) -> None:
    """Refuse two saved models that would fill the same weights."""
    claimed: dict[tuple[str, int], tuple[_Start, str]] = {}
    for start in starts:
        for copy in start.copies:
            for at in [target.start for _, target in copy.rows] if copy.rows is not None else [-1]:
                whole = claimed.get((copy.target, -1)) if at >= 0 else next(
                    (c for (name, _), c in claimed.items() if name == copy.target), None)  # fmt: skip
                other, name = claimed.get((copy.target, at)) or whole or (start, copy.source)
                if (other.folder.resolve(), name) != (start.folder.resolve(), copy.source):
                    untie = ", or untie it (model.untied)" if model.parts[copy.target].in_block else ""
                    raise start.refuse(
                        f"would fill {copy.target!r}, which towers share, and so would {other.where} with {name!r} of "
                        f"{str(other.folder)!r}; start both from one saved tower{untie}"
                    )
                claimed[copy.target, at] = start, copy.source


@torch.no_grad()
def _fill(model: MixtureOfTransformers, start: _Start) -> None:
    own = model.state_dict()
    with TensorStore(start.folder / WEIGHTS, start.where) as store:
        for copy in start.copies:  # one by one, so that no model is held twice
            tensor, target = store.read(copy.source), own[copy.target]
            if copy.rows is None:
                target.copy_(part_of(tensor, target))
                continue
            values, is_filled = tensor.new_zeros(target.shape), tensor.new_zeros(target.shape)
            for source_rows, target_rows in copy.rows:
                values[target_rows.start : target_rows.stop] = tensor[source_rows.start : source_rows.stop]
                is_filled[target_rows.start : target_rows.stop] = 1
            _fill_where(target, values, is_filled)


def _fill_where(target: Tensor, values: Tensor, is_filled: Tensor) -> None:
    """Set the entries of a tensor, or of this rank's part of it, where ``is_filled`` is 1."""
    part, values, is_filled = (local(x) for x in (target, part_of(values, target), part_of(is_filled, target)))
    part.copy_(torch.where(is_filled.to(part.device) > 0, values.to(part.device, part.dtype), part))
