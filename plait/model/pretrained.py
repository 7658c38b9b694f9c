"""Saving and loading models: safetensors and config.json, loud about every weight that does not fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.config import SCHEMA_VERSION
from plait.config_file import from_dict, to_dict
from plait.errors import CheckpointError, ConfigError
from plait.files import read_json, write_json
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import part_of
from plait.model_config import ModelConfig
from plait.tensor_files import Cut, TensorStore

ARCHITECTURE = "MixtureOfTransformers"
WEIGHTS = "model.safetensors"


def save_pretrained(model: MixtureOfTransformers, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(model.config, folder)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / WEIGHTS)


def save_config(config: ModelConfig, folder: Path) -> None:
    """Write the ``config.json`` of a saved model."""
    head = {"architecture": ARCHITECTURE, "schema_version": SCHEMA_VERSION}
    write_json(folder / "config.json", head | to_dict(config))


def load_config(folder: str | Path) -> ModelConfig:
    """Read the ``config.json`` of a saved model."""
    path = Path(folder) / "config.json"
    values = read_json(path, "model")
    if not isinstance(values, dict) or values.get("architecture") != ARCHITECTURE:
        found = values.get("architecture", values.get("architectures")) if isinstance(values, dict) else None
        raise CheckpointError(f"model: {str(path)!r} describes {found!r}, it must be {ARCHITECTURE!r}")
    if values.get("schema_version") != SCHEMA_VERSION:
        version = values.get("schema_version")
        raise CheckpointError(f"model: {str(path)!r} has schema version {version!r}, it must be {SCHEMA_VERSION}")
    values = {k: v for k, v in values.items() if k not in ("architecture", "schema_version")}
    try:
        return from_dict(ModelConfig, values, "model")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_pretrained(
    folder: str | Path, *, device: torch.device | str = "cpu", weights: str = WEIGHTS
) -> MixtureOfTransformers:
    """Load a model that `save_pretrained` (or a checkpoint) wrote; ``weights`` is the file's name in its folder."""
    config = load_config(folder)
    with torch.device("meta"):
        model = MixtureOfTransformers(config)
    model.to_empty(device=device)
    load_weights(model, folder, weights=weights)
    return model


@torch.no_grad()
def load_weights(
    model: MixtureOfTransformers, folder: str | Path, *, allow_missing: tuple[str, ...] = (), weights: str = WEIGHTS
) -> None:
    """Copy saved weights into ``model``; any missing, unexpected or differently shaped one is an error.

    ``allow_missing`` names parameters (by the start of their name) that may keep their present value.
    """
    own = model.state_dict()
    with TensorStore(Path(folder) / weights, "model") as store:
        check_tensors(own, store.tensors, str(folder), allow_missing=allow_missing)
        for name in store.tensors:  # one by one, so that the model is not held twice
            own[name].copy_(part_of(store.read(name), own[name]))
    # what is not saved is rebuilt: balancing counts start at zero
    for name, buffer in model.named_buffers():
        if name not in own:
            buffer.zero_()


@torch.no_grad()
def load_tower(model: MixtureOfTransformers, tower: str, folder: str) -> None:
    """Copy into one tower the tower of that name, or the only one, of a saved model."""
    towers = list(load_config(folder).towers)
    source = tower if tower in towers else towers[0]
    if source != tower and len(towers) > 1:
        raise CheckpointError(
            f"model.towers.{tower}.init_from: {folder!r} has the towers {towers}, none named {tower!r}"
        )
    state = read_tensors(Path(folder) / WEIGHTS, f"model.towers.{tower}.init_from")
    own = model.state_dict()
    copied = {n.replace(f".{source}.", f".{tower}."): t for n, t in state.items() if f".{source}." in n}
    copied = {n: t for n, t in copied.items() if n in own and n.startswith(("blocks.", "final_norm."))}
    check_shapes(own, copied, folder)
    needed = [n for n in own if f".{tower}." in n and n.startswith(("blocks.", "final_norm."))]
    missing = [n for n in needed if n not in copied]
    if missing:
        raise CheckpointError(f"model.towers.{tower}.init_from: {folder!r} lacks {missing[0]!r}")
    for name, tensor in copied.items():
        own[name].copy_(part_of(tensor, own[name]))


def check_tensors(
    own: Mapping[str, Tensor], stored: Mapping[str, Cut], where: str, *, allow_missing: tuple[str, ...] = ()
) -> None:
    """Raise a CheckpointError unless what is stored has the names and shapes of ``own``."""
    missing = [n for n in own if n not in stored and not n.startswith(allow_missing or ("\0",))]
    unexpected = [n for n in stored if n not in own]
    if missing or unexpected:
        first = (missing or unexpected)[0]
        raise CheckpointError(
            f"model: {where!r} is of another architecture: {len(missing)} weights are missing and "
            f"{len(unexpected)} are unexpected, the first is {first!r}"
        )
    check_shapes(own, stored, where)


def check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor | Cut], where: str) -> None:
    """Raise a CheckpointError for the first tensor whose shape differs."""
    for name, tensor in state.items():
        if name in own and tensor.shape != own[name].shape:
            raise CheckpointError(
                f"model: {name} in {where!r} has shape {list(tensor.shape)}, this model needs {list(own[name].shape)}"
            )


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Read a safetensors file, or those of its index; a missing or broken one is a CheckpointError."""
    with TensorStore(path, what) as store:
        return {name: store.read(name) for name in store.tensors}
