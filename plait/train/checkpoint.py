"""Checkpoints: everything a run needs to go on as if it had never stopped. Safetensors and JSON, no pickle.

``checkpoints/step-00000100/`` holds config.json and model.safetensors (loadable as a saved model),
optimizer.safetensors, and state.json with the step, the data position and checksums. A folder is written under a
temporary name and renamed, so a folder that is there is whole.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from plait.config import SCHEMA_VERSION
from plait.errors import CheckpointError
from plait.files import atomic_folder, read_json, write_json
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_config, load_weights, read_tensors, save_pretrained

FILES = ("model.safetensors", "optimizer.safetensors")


def save(folder: Path, model: MixtureOfTransformers, optimizer: torch.optim.Optimizer, state: dict[str, Any], *,
         keep: int) -> Path:  # fmt: skip
    """Write the checkpoint of ``state["step"]`` and remove all but the newest ``keep``."""
    path = folder / f"step-{state['step']:08d}"
    with atomic_folder(path) as temporary:
        save_pretrained(model, temporary)
        save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        checksums = {name: _checksum(temporary / name) for name in FILES}
        write_json(temporary / "state.json", {"schema_version": SCHEMA_VERSION, "checksums": checksums, **state})
    for old in find(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def find(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(p for p in Path(folder).glob("step-*") if p.is_dir())


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files match their checksums; None where there is none."""
    for path in reversed(find(folder)):
        try:
            read_state(path)
        except CheckpointError:
            continue
        return path
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint's state.json; raises CheckpointError where a file is damaged."""
    state = read_json(path / "state.json", "checkpoint")
    for name, expected in state.get("checksums", {}).items():
        if not (path / name).is_file() or _checksum(path / name) != expected:
            raise CheckpointError(f"checkpoint: {str(path / name)!r} is damaged (its checksum differs)")
    return state


def restore(path: Path, model: MixtureOfTransformers, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into model and optimizer, and return its state."""
    state = read_state(path)
    if load_config(path) != model.config:
        raise CheckpointError(
            f"checkpoint: {str(path)!r} was made with another model section, so this run cannot go on from it; "
            "give the run another name, or start from its weights by train.init_from"
        )
    load_weights(model, path)
    tensors = read_tensors(path / "optimizer.safetensors", "checkpoint")
    for name, parameter in model.named_parameters():
        found = {key.partition("/")[0]: t for key, t in tensors.items() if key.partition("/")[2] == name}
        if found:
            optimizer.state[parameter] = {k: t.to(parameter.device) for k, t in found.items()}
    return state


def _optimizer_tensors(model: MixtureOfTransformers, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return AdamW's state as ``{kind}/{parameter name}``."""
    return {
        f"{kind}/{name}": tensor.contiguous()
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
