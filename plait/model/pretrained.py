"""Saving and loading models: safetensors and config.json, loud about every weight that does not fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.common.errors import CheckpointError, ConfigError
from plait.common.files import read_json, write_json
from plait.common.tensor_files import Cut, TensorStore
from plait.config.file import from_dict, to_dict
from plait.config.model import ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import part_of

ARCHITECTURE = "MixtureOfTransformers"
WEIGHTS = "model.safetensors"
SCHEMA_VERSION = 2
"""Version of the form of ``config.json``; from 2 on it holds what the weights are and nothing else."""


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


def load_config(folder: str | Path, what: str = "model") -> ModelConfig:
    """Read the ``config.json`` of a saved model; errors (CheckpointError) say ``what`` it should have been."""
    path = Path(folder) / "config.json"
    values = read_json(path, what)
    if not isinstance(values, dict) or values.get("architecture") != ARCHITECTURE:
        architecture = values.get("architecture", values.get("architectures")) if isinstance(values, dict) else None
        raise CheckpointError(f"{what}: {str(path)!r} describes {architecture!r}, it must be {ARCHITECTURE!r}")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        cure = ", or take out what a run says of modalities and towers (codecs, weights of losses, rates, freezing)"
        raise CheckpointError(
            f"{what}: {str(path)!r} has schema version {version!r}, it must be {SCHEMA_VERSION}: train the model with "
            f"this version of plait{cure if version == 1 else ''}"
        )
    values = {k: v for k, v in values.items() if k not in ("architecture", "schema_version")}
    try:
        return from_dict(ModelConfig, values, "model")
    except ConfigError as error:
        raise CheckpointError(f"{what}: {str(path)!r}: {error}") from None


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
    model: MixtureOfTransformers, folder: str | Path, *, weights: str = WEIGHTS, what: str = "model"
) -> None:
    """Copy saved weights into ``model``; any missing, unexpected or differently shaped one is an error."""
    own = model.state_dict()
    with TensorStore(Path(folder) / weights, what) as store:
        check_tensors(own, store.tensors, str(folder), what=what)
        for name in store.tensors:  # one by one, so that the model is not held twice
            own[name].copy_(part_of(store.read(name), own[name]))
    # what is not saved is rebuilt: balancing counts start at zero
    for name, buffer in model.named_buffers():
        if name not in own:
            buffer.zero_()


def check_tensors(
    own: Mapping[str, Tensor], stored: Mapping[str, Tensor | Cut], where: str, *, what: str = "model"
) -> None:
    """Raise a CheckpointError unless what is stored in ``where`` has the names and shapes of ``own``."""
    missing = [n for n in own if n not in stored]
    unexpected = [n for n in stored if n not in own]
    if missing or unexpected:
        first = (missing or unexpected)[0]
        raise CheckpointError(
            f"{what}: {where!r} is of another architecture: {len(missing)} weights are missing and "
            f"{len(unexpected)} are unexpected, the first is {first!r}"
        )
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{what}: {name} in {where!r} has shape {list(tensor.shape)}, this model needs {list(own[name].shape)}"
            )
