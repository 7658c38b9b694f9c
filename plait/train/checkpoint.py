"""Checkpoints: everything a run needs to go on as if it had never stopped. Safetensors and JSON, no pickle.

``checkpoints/step-00000100/`` holds config.json and model.safetensors (loadable as a saved model),
optimizer.safetensors, ema.safetensors where the run averages its weights, and state.json with the step, the data
position and checksums. A folder is written under a temporary name and renamed, so a folder that is there is whole.
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
from plait.model.pretrained import WEIGHTS, load_config, load_weights, read_tensors, save_pretrained
from plait.train.ema import AveragedWeights

OPTIMIZER, AVERAGES = "optimizer.safetensors", "ema.safetensors"


def save(folder: Path, model: MixtureOfTransformers, optimizer: torch.optim.Optimizer, state: dict[str, Any], *,
         keep: int, averages: AveragedWeights | None = None) -> Path:  # fmt: skip
    """Write the checkpoint of ``state["step"]`` and remove all but the newest ``keep``."""
    path = folder / f"step-{state['step']:08d}"
    with atomic_folder(path) as temporary:
        save_pretrained(model, temporary)
        save_file(_optimizer_tensors(model, optimizer), temporary / OPTIMIZER)
        if averages:  # under the model's names, so that it loads as a model; what has no average is as it is
            tensors = model.state_dict() | averages.tensors
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / AVERAGES)
            state = state | {"ema_updates": float(averages.num_updates)}
        checksums = {path.name: _checksum(path) for path in sorted(temporary.glob("*.safetensors"))}
        write_json(temporary / "state.json", {"schema_version": SCHEMA_VERSION, "checksums": checksums, **state})
    for old in find(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def weights_file(path: Path) -> Path:
    """Return the file of a checkpoint that figures and samples are made with: the averages, where there are any."""
    averages = Path(path) / AVERAGES
    return averages if averages.is_file() else Path(path) / WEIGHTS


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
    tensors = read_tensors(path / OPTIMIZER, "checkpoint")
    for name, parameter in model.named_parameters():
        found = {key.partition("/")[0]: t for key, t in tensors.items() if key.partition("/")[2] == name}
        if found:
            optimizer.state[parameter] = {k: t.to(parameter.device) for k, t in found.items()}
    return state


def restore_averages(path: Path, state: dict[str, Any], averages: AveragedWeights) -> None:
    """Load a checkpoint's averages, ``state`` being what `restore` returned; without any, they start anew."""
    if "ema_updates" not in state:
        return
    tensors = read_tensors(path / AVERAGES, "checkpoint")
    averages.load(tensors, state["ema_updates"])


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
