"""Starting from saved weights: a whole model (`train.init_from`), or single towers of it (`init_from` of a tower).

A tower takes all that the saved model's tower computes with: its own weights and those it shares, by their places. All
that the saved tower has must be used and all that this tower computes with must be filled, or the start is refused with
the reason. Two rules say what may differ:

- Ids and latents go by modality. Those of one that this model lacks, or that this tower does not carry, are left out.
  Latents of a modality that the saved model lacks train from scratch; so do ids, which begin at the mean of the rows
  that are filled: a row near zero, beside trained ones, would take probability from them. <bos> and <eos> go with the
  first modality.
- Other towers of the saved model are left out.

What was left out, and what trains from scratch, is counted and said, and so are settings that differ and may. LoRA of
this model begins at zero; a saved model holds none.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.common.errors import CheckpointError, require
from plait.config.id_layout import IdLayout
from plait.config.model import ModelConfig, TowerConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.narrowing import Kept, choose
from plait.model.pretrained import Opener, SavedWeights, check_tensors, fill, open_saved
from plait.model.ranks import local, part_of
from plait.model.traits import Place, WeightRecord

READ_ALIKE = ("num_heads", "num_kv_heads", "head_dim", "norm_order", "unrotated_layers")
EXPERTS_READ_ALIKE = ("moe_routing",)
LATENTS_READ_ALIKE = ("patch_size", "place_embedding")
"""Settings that say how weights of one shape are read: the same numbers would compute something else."""

SAID = ("position_axes",)
TOWERS_SAID = ("rope_theta", "rope_scaling", "norm_eps")
EXPERTS_SAID = ("top_k",)
"""Settings that may differ, such as for longer documents, or by mistake: it is said where they do."""


@dataclass
class _Copy:
    """One tensor to fill: all of it, or rows of ids."""

    source: str
    place: Place
    target: str
    rows: list[tuple[range, range]] | None = None
    """Ranges of rows of the source, and those of the target that they go to."""
    sums: list[Tensor] = field(default_factory=list)
    """The sum [D] of the rows of each range, once they are copied."""


@dataclass
class _Start:
    """What one tower takes from a saved model."""

    tower: str
    saved: SavedWeights
    source_tower: str
    said: str = ""
    """Settings that differ and may."""
    kept: Kept | None = None
    """What is kept of a wider tower."""
    copies: list[_Copy] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Tensors of the saved tower that are not used, by the reason."""
    scratch: Counter[str] = field(default_factory=Counter)
    """Tensors of this tower that train from scratch, by the reason."""

    @property
    def where(self) -> str:
        return f"model.towers.{self.tower}.init_from"

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {self.saved.name!r} {reason}")

    @property
    def config(self) -> ModelConfig:
        """The saved model's."""
        return self.saved.config

    @property
    def line(self) -> str:
        """What happened, for the user."""
        text = f"{self.where}: {len(self.copies)} tensors of tower {self.source_tower!r} in {self.saved.name!r}"
        left_out = Counter(self.saved.left_out) + self.left_out
        for verb, counts in (("left out", left_out), ("from scratch", self.scratch)):
            text += "".join(f"; {verb}: {n} of {reason}" for reason, n in counts.items())
        if self.kept is not None:
            sizes = len(self.kept.stream), len(self.kept.hidden[0])
            text += f"; kept of it: {sizes[0]} channels and {sizes[1]} hidden units, those of the largest weights"
        return text + self.said


Differing = tuple[str, Any, Any]
"""A setting, its value of this model, and that of the saved one."""


def _differing(saved: ModelConfig, config: ModelConfig, towers: Mapping[str, str]) -> tuple[list[Differing], str]:
    """Return the settings by which ``towers`` (mine: saved) would read the saved weights otherwise, which is refused.

    With them comes what is to be said of others that differ. All else shows in places and shapes.
    """
    alike: list[Differing] = [(f"model.{n}", getattr(config, n), getattr(saved, n)) for n in READ_ALIKE]
    said: list[Differing] = [(f"model.{n}", getattr(config, n), getattr(saved, n)) for n in SAID]
    for name, source in towers.items():
        tower, saved_tower, where = config.towers[name], saved.towers[source], f"model.towers.{name}"
        for n in TOWERS_SAID:
            values = config.of_tower(name, n), saved.of_tower(source, n)
            is_models = values == (getattr(config, n), getattr(saved, n))
            said.append((f"model.{n}" if is_models else f"{where}.{n}", *values))
        if tower.ffn == saved_tower.ffn == "moe":
            alike += [(f"{where}.{n}", getattr(tower, n), getattr(saved_tower, n)) for n in EXPERTS_READ_ALIKE]
            said += [(f"{where}.{n}", getattr(tower, n), getattr(saved_tower, n)) for n in EXPERTS_SAID]
    for name, latents in config.modalities.items():
        known = saved.modalities.get(name)
        if known is None:
            continue
        carried = any(t in latents.towers and source in known.towers for t, source in towers.items())
        if carried and latents.objective == known.objective == "diffusion":
            where = f"model.modalities.{name}"
            alike += [(f"{where}.{n}", getattr(latents, n), getattr(known, n)) for n in LATENTS_READ_ALIKE]
    refused = [(name, value, saved_value) for name, value, saved_value in alike if value != saved_value]
    others = (f"; {name} is {value!r}, it was {saved_value!r}" for name, value, saved_value in said
              if value != saved_value)  # fmt: skip
    return refused, "".join(dict.fromkeys(others))


def start_model(model: MixtureOfTransformers, source: str | Path, open_weights: Opener = open_saved) -> list[str]:
    """Copy all weights of a saved model of the same architecture (raises CheckpointError); return what to say."""
    where = "train.init_from"
    with open_weights(str(source), where) as saved:
        both = {name: name for name in model.config.towers if name in saved.config.towers}
        refused, said = _differing(saved.config, model.config, both)
        for name, value, saved_value in refused:
            raise CheckpointError(f"{where}: {saved.name!r} has {name} {saved_value!r}, this model has {value!r}")
        if saved.config.layout != model.config.layout:
            raise CheckpointError(
                f"{where}: {saved.name!r} has model.layout {saved.config.layout}, this model has {model.config.layout}"
            )
        _refuse_lora(saved, where)
        own = {n: t for n, t in model.state_dict().items() if not model.parts[n].trait.adapts}
        check_tensors(own, saved.model().state_dict(), saved.name, what=where)
        fill(model, own, saved.read)
    said += "".join(f"; left out: {n} of {reason}" for reason, n in saved.left_out.items())
    return [f"{where}: all weights of {saved.name!r}{said}"] if said else []


def start_towers(
    model: MixtureOfTransformers,
    sources: Mapping[str, str],
    open_weights: Opener = open_saved,
    narrow: Collection[str] = (),
) -> list[str]:
    """Fill towers from saved models, given where that of each is; return a line for each that says what was taken.

    Those of ``narrow`` may be narrower than what they are filled from (`plait.model.narrowing`). Nothing is changed
    where a CheckpointError is raised: for a saved model that does not fit, and two that would fill the same weights.
    """
    with contextlib.ExitStack() as stack:
        opened = {t: stack.enter_context(open_weights(s, f"model.towers.{t}.init_from")) for t, s in sources.items()}
        starts = [_plan(model, tower, saved, tower in narrow) for tower, saved in opened.items()]
        _refuse_conflicts(model, starts)
        for start in starts:
            _fill(model, start)
        _fill_new_rows(model, starts)
    return [start.line for start in starts]


@torch.no_grad()
def zero_outputs(model: MixtureOfTransformers, towers: Collection[str]) -> None:
    """Set what some towers write to the residual stream to zero; raises ConfigError where they share it."""
    for tower in towers:
        outputs = [(part, p) for part, p in model.weights() if part.tower == tower and _is_output(part)]
        ffn = sum(part.place.component == "ffn" for part, _ in outputs)
        require(len(outputs) - ffn == ffn == model.config.num_layers, f"model.towers.{tower}.zero_output", True,
                "false where towers share o or ffn (model.untied)")  # fmt: skip
        for _, parameter in outputs:
            parameter.zero_()


def _is_output(part: WeightRecord) -> bool:
    if part.trait.adapts:  # zero already, as a product
        return False
    return part.place.component == "o" or (part.place.component == "ffn" and part.place.inner == "down.weight")


def _plan(model: MixtureOfTransformers, tower: str, weights: SavedWeights, narrow: bool) -> _Start:
    start = _open(model.config, tower, weights)
    if narrow:
        start.kept = _narrowed(start, model.config.towers[tower])
    saved = weights.model()
    have = {p.place: p for p in saved.parts.values() if p.tower in (start.source_tower, None)}
    wanted = {p.place: p for p in model.parts.values() if p.tower in (tower, None) and not p.trait.adapts}
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


def _open(config: ModelConfig, tower: str, weights: SavedWeights) -> _Start:
    """Begin to plan, and refuse what cannot fit whatever the weights."""
    saved = weights.config
    towers = list(saved.towers)
    start = _Start(tower, weights, tower if tower in towers else towers[0])
    if start.source_tower != tower and len(towers) > 1:
        raise start.refuse(f"has the towers {', '.join(towers)}, it must have one tower, or one named {tower!r}")
    _refuse_lora(weights, start.where)
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


def _refuse_lora(saved: SavedWeights, where: str) -> None:
    for name, tower in saved.config.towers.items():
        if tower.lora:
            raise CheckpointError(
                f"{where}: {saved.name!r} has LoRA on tower {name!r}, which is part of its matrices only once it is "
                "merged: run `plait export RUN --merge` and start from what that writes"
            )


def _narrowed(start: _Start, tower: TowerConfig) -> Kept:
    """Choose what is kept of the saved tower; refuse one that is not as wide."""
    saved = start.config.towers[start.source_tower]
    if saved.ffn != "swiglu" or tower.ffn != "swiglu":
        raise start.refuse(f"has ffn {saved.ffn!r} and this tower {tower.ffn!r}: only swiglu can be narrowed")
    for name in ("width", "ffn_width"):
        if getattr(saved, name) < getattr(tower, name):
            raise start.refuse(
                f"has {name} {getattr(saved, name)}, which cannot be narrowed to {getattr(tower, name)}; set "
                f"model.towers.{start.tower}.{name} to at most {getattr(saved, name)}"
            )
    return choose(start.saved, start.source_tower, tower.width, tower.ffn_width)


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
    own = saved.state_dict()[source.name]
    own = start.kept.of(own, source.place) if start.kept is not None else own
    source_shape, target_shape = own.shape, model.state_dict()[target.name].shape
    by_ids = target.place.component in ("embed", "head")
    if source_shape[by_ids:] != target_shape[by_ids:]:
        raise start.refuse(
            f"has {source.name!r} of shape {list(source_shape)}, and {target.name!r} of this model needs "
            f"{list(target_shape)}; set the sizes of model.towers.{start.tower} to the saved ones, or narrow: true"
        )
    copy = _Copy(source.name, source.place, target.name)
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
    if modality == layout.host:
        return range(layout.sizes[modality], layout.sizes[modality] + len(layout.added))
    return range(layout.opening[modality], layout.opening[modality] + 2)


def _refuse_conflicts(model: MixtureOfTransformers, starts: list[_Start]) -> None:
    """Refuse two saved models that would fill the same weights."""
    claimed: dict[tuple[str, int], tuple[_Start, str]] = {}
    for start in starts:
        for copy in start.copies:
            for at in [target.start for _, target in copy.rows] if copy.rows is not None else [-1]:
                whole = claimed.get((copy.target, -1)) if at >= 0 else next(
                    (c for (name, _), c in claimed.items() if name == copy.target), None)  # fmt: skip
                other, name = claimed.get((copy.target, at)) or whole or (start, copy.source)
                if (Path(other.saved.name).resolve(), name) != (Path(start.saved.name).resolve(), copy.source):
                    untie = ", or untie it (model.untied)" if model.parts[copy.target].in_block else ""
                    raise start.refuse(
                        f"would fill {copy.target!r}, which towers share, and so would {other.where} with {name!r} of "
                        f"{other.saved.name!r}; start both from one saved tower{untie}"
                    )
                claimed[copy.target, at] = start, copy.source


@torch.no_grad()
def _fill(model: MixtureOfTransformers, start: _Start) -> None:
    own = model.state_dict()
    for copy in start.copies:  # one by one, so that no model is held twice
        tensor, target = start.saved.read(copy.source), own[copy.target]
        tensor = start.kept.of(tensor, copy.place) if start.kept is not None else tensor
        if copy.rows is None:
            target.copy_(part_of(tensor, target))
            continue
        values, is_filled = tensor.new_zeros(target.shape), tensor.new_zeros(len(target), 1)
        for source_rows, target_rows in copy.rows:
            rows = tensor[source_rows.start : source_rows.stop]
            values[target_rows.start : target_rows.stop] = rows
            is_filled[target_rows.start : target_rows.stop] = 1
            copy.sums.append(rows.double().sum(0))
        _fill_where(target, values, is_filled)


@torch.no_grad()
def _fill_new_rows(model: MixtureOfTransformers, starts: list[_Start]) -> None:
    """Let the rows of ids that no saved model fills begin at the mean of those that are filled."""
    own = model.state_dict()
    by_target: dict[str, list[_Copy]] = {}
    for copy in (copy for start in starts for copy in start.copies if copy.rows):
        by_target.setdefault(copy.target, []).append(copy)
    for name, copies in by_target.items():
        target, is_new = own[name], torch.ones(len(own[name]), 1)
        ranges = [rows for copy in copies for _, rows in copy.rows or ()]
        for rows in ranges:
            is_new[rows.start : rows.stop] = 0
        mean = torch.stack([total for copy in copies for total in copy.sums]).sum(0) / sum(map(len, ranges))
        _fill_where(target, mean.to(is_new.dtype).expand(target.shape), is_new)


def _fill_where(target: Tensor, values: Tensor, is_filled: Tensor) -> None:
    """Set the rows of a tensor, or of this rank's part of it, where ``is_filled`` [rows, 1] is 1."""
    part, values, is_filled = (local(x) for x in (target, part_of(values, target), part_of(is_filled, target)))
    part.copy_(torch.where(is_filled.to(part.device) > 0, values.to(part.device, part.dtype), part))
