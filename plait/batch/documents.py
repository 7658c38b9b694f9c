"""Documents and their parts, THE rule of roles, and what parts a model takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from plait.common.errors import ConfigError, DataError, require, unknown
from plait.config.bounds import Bounds, as_number
from plait.config.modality import ROLES
from plait.config.model import ModelConfig


@dataclass
class Part:
    """One encoded piece of a document."""

    modality: str
    ids: np.ndarray | None = None
    """Local ids of the codec, [n] (discrete)."""
    latents: np.ndarray | None = None
    """Latents, [n, C] (continuous)."""
    grid: tuple[int, ...] = ()
    """Extent in space, such as (rows, columns); their product is n."""
    role: str = "generation"
    """understanding or generation, as `role_of` says; a routing key where the config says so."""
    loss: float = 1.0
    """Weight of these tokens as targets; 0 where they are no targets."""
    features: "Part | None" = None
    """The same item as the modality has it that reads this one (`ModalityConfig.reads`): where the part is given, its
    features stand in its place."""

    def __len__(self) -> int:
        data = self.latents if self.ids is None else self.ids
        if data is None:
            raise DataError(f"a part of {self.modality!r} has no ids and no latents, it must have one of them")
        return len(data)


def role_of(*, given: bool, loss: float = 1.0) -> str:
    """THE rule of roles: a part is generation where it carries loss or is being made, else understanding.

    ``given`` is what a task or a prompt gives, so that something else follows from it. What a task gives is
    understanding even where next-token losses count its ids too, as they do in Chameleon: it goes the way that a prompt
    goes.
    """
    return "understanding" if given or not loss else "generation"


def as_given(parts: Sequence[Part]) -> list[Part]:
    """Return parts as a prompt holds them."""
    return [replace(part, role=role_of(given=True, loss=part.loss)) for part in parts]


@dataclass
class Document:
    """Parts in order, and who they are. `index` and `epoch` key every random draw about the document."""

    parts: list[Part]
    index: int = 0
    epoch: int = 0
    task: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> list[Part]:
        """All that its parts hold, each followed by its features."""
        return [p for part in self.parts for p in (part, part.features) if p is not None]


def check_parts(parts: Sequence[Part], config: ModelConfig, where: str) -> None:
    """Raise a ConfigError, which begins with ``where``, for what is no part or does not fit the model.

    For parts that a caller of plait made: those of prepared data were checked when they were written.
    """
    require(isinstance(parts, list | tuple), where, parts, "a list of parts")
    for part in parts:
        require(isinstance(part, Part), where, part, "a plait.Part")
        if part.modality not in config.modalities:
            raise ConfigError(unknown(f"{where}: modality", part.modality, config.modalities))
        _check_values(part, config, where)
        named = f"{where}: %s of {part.modality!r}"
        require(part.role in ROLES, named % "role", part.role, " or ".join(ROLES))
        as_number(part.loss, float, named % "loss", Bounds(at_least=0))
        require(isinstance(part.grid, list | tuple), named % "grid", part.grid, "whole numbers such as (8, 12)")
        for n in part.grid:
            as_number(n, int, named % "grid", Bounds(at_least=1))
        fits = not part.grid or math.prod(part.grid) == len(part)
        require(fits, named % "grid", part.grid, f"() or numbers whose product is {len(part)}, the part's length")
        _check_features(part, config, named % "features")


def _check_features(part: Part, config: ModelConfig, where: str) -> None:
    """Refuse a given part without the features that stand for it, and features of another modality."""
    reader, features = config.readers.get(part.modality), part.features
    if reader and (features is not None or part.role == role_of(given=True)):
        allowed = f"a plait.Part of {reader!r}, as Pipeline.encode makes it of the same item"
        require(isinstance(features, Part) and features.modality == reader, where, features, allowed)
        check_parts([p for p in (features,) if p is not None], config, where)


def _check_values(part: Part, config: ModelConfig, where: str) -> None:
    record, named = config.modalities[part.modality], f"{where}: %s of {part.modality!r}"
    kind, other = ("ids", "latents") if record.objective == "next_token" else ("latents", "ids")
    raw_values = getattr(part, kind)
    require(raw_values is not None and getattr(part, other) is None, named % "values",
            [n for n in ("ids", "latents") if getattr(part, n) is not None], f"{kind} alone")  # fmt: skip
    values = np.asarray(raw_values)
    shape, is_number = list(values.shape), values.dtype.kind in ("iu" if kind == "ids" else "fiu")
    require(is_number or not values.size, named % kind, raw_values, "whole numbers" if kind == "ids" else "numbers")
    if kind == "ids":
        require(values.ndim == 1, named % kind, shape, "[tokens]")
        for edge in (int(values.min()), int(values.max())) if len(values) else ():
            require(0 <= edge < record.vocab_size, named % kind, edge, f"0 to {record.vocab_size - 1}")
    else:
        channels = record.latent_channels
        require(values.ndim == 2 and shape[1] == channels, named % kind, shape, f"[tokens, {channels}]")
        require(bool(np.isfinite(values).all()), named % kind, "nan or inf", "finite numbers")
    require(len(values) > 0 or part.modality == config.layout.host, named % "length", 0, "1 or more")
