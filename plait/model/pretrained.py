"""Saving and loading models: safetensors and config.json, loud about every weight that does not fit."""

import contextlib
import fnmatch
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.common import hub
from plait.common.errors import CheckpointError, ConfigError, require, unknown
from plait.common.files import read_json, write_json, write_text
from plait.common.tensor_files import Cut, Stored, TensorStore, index_path, make_index, part_name, write_tensors
from plait.config.file import from_dict, to_dict
from plait.config.model import ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import shorten
from plait.model.ranks import part_of

ARCHITECTURE = "MixtureOfTransformers"
WEIGHTS = "model.safetensors"
_STEM = WEIGHTS.removesuffix(".safetensors")
SCHEMA_VERSION = 3
"""Version of the form of ``config.json``: what the weights are stands under ``model``, as in a run's config."""
MODEL_TYPE, HF_CLASS = "plait", "PlaitForMultimodalLM"
MODULE = "modeling_plait"
CODE = f"{MODULE}.py"
CODE_TEXT = '''"""By this file transformers loads the model with trust_remote_code=True: pip install "plait[hf]"."""

from plait.hf import PlaitConfig, PlaitForMultimodalLM, PlaitProcessor  # noqa: F401
'''
_OF_TRANSFORMERS = ("model_type", "architectures", "auto_map", "dtype", "transformers_version", "normalize",
                    "loss_weights")  # fmt: skip
"""Keys of ``config.json`` that are for `plait.hf`."""


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def save_pretrained(model: MixtureOfTransformers, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder`` (`MixtureOfTransformers.save_pretrained`)."""
    folder, own, file_bytes = Path(folder), model.state_dict(), _bytes_of(max_shard_size)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: Stored(tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        save_config(model.config, Path(temporary), with_code=True)
        write_weights(Path(temporary), tensors, own.__getitem__, file_bytes)
        for old in [path for pattern in hub.SHARDS for path in folder.glob(pattern)]:
            old.unlink()
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)


def _bytes_of(size: int | str) -> int:
    """Return a size in bytes, given as a number or as a text such as "5GB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", size) if isinstance(size, str) else None
    number = float(match[1]) * _UNITS[match[2]] if match else size
    fine = isinstance(number, int | float) and not isinstance(number, bool) and number >= 1
    require(fine, "max_shard_size", size, 'a number of bytes, or a text such as "5GB"')
    return int(number)


def save_config(config: ModelConfig, folder: Path, *, with_code: bool = False) -> None:
    """Write the ``config.json`` of a saved model, with or without the file that leads transformers to plait."""
    write_json(folder / "config.json", config_head(with_code=with_code) | {"model": to_dict(config)})
    if with_code:
        write_text(folder / CODE, CODE_TEXT)


def config_head(*, with_code: bool) -> dict[str, Any]:
    """Return what ``config.json`` begins with: whose it is, for plait and for transformers."""
    head = {"architecture": ARCHITECTURE, "schema_version": SCHEMA_VERSION, "model_type": MODEL_TYPE,
            "architectures": [HF_CLASS]}  # fmt: skip
    classes = {"AutoConfig": "PlaitConfig", "AutoModelForMultimodalLM": HF_CLASS, "AutoProcessor": "PlaitProcessor"}
    return head | ({"auto_map": {auto: f"{MODULE}.{name}" for auto, name in classes.items()}} if with_code else {})


def is_own(folder: Path) -> bool:
    """Say whether a folder's ``config.json`` is one of plait's."""
    values = read_json(folder / "config.json", "model")
    return isinstance(values, dict) and values.get("architecture") == ARCHITECTURE


def load_config(folder: str | Path, what: str = "model") -> ModelConfig:
    """Read the ``config.json`` of a saved model; errors (CheckpointError) say ``what`` it should have been."""
    path = Path(folder) / "config.json"
    values = read_json(path, what)
    settings = model_settings(values, what, str(path))
    for name in values:
        if name not in ("architecture", "schema_version", "model", *_OF_TRANSFORMERS):
            raise CheckpointError(f"{what}: {str(path)!r}: {unknown('config', name, ['model', *_OF_TRANSFORMERS])}")
    try:
        return from_dict(ModelConfig, settings, "model")
    except ConfigError as error:
        raise CheckpointError(f"{what}: {str(path)!r}: {error}") from None


def model_settings(values: Any, what: str, path: str = "config.json") -> dict[str, Any]:
    """Return what ``config.json`` says of the model, as plain values (raises CheckpointError)."""
    if not isinstance(values, dict) or values.get("architecture") != ARCHITECTURE:
        architecture = values.get("architecture", values.get("architectures")) if isinstance(values, dict) else None
        raise CheckpointError(f"{what}: {path!r} describes {architecture!r}, it must be {ARCHITECTURE!r}")
    version, settings = values.get("schema_version"), values.get("model")
    if version != SCHEMA_VERSION:
        cure = 'put all of it but "architecture" under "model"' if version == 2 else "train the model with this version"
        raise CheckpointError(f"{what}: {path!r} has schema version {version!r}, it must be {SCHEMA_VERSION}: {cure}")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{what}: {path!r} holds no mapping 'model', which says what the weights are")
    return settings


def load_pretrained(
    place: str | Path,
    *,
    device: torch.device | str = "cpu",
    weights: str = WEIGHTS,
    revision: str = "",
    dtype: torch.dtype = torch.float32,
    model_class: type[MixtureOfTransformers] = MixtureOfTransformers,
) -> MixtureOfTransformers:
    """Load a model that `save_pretrained` (or a checkpoint) wrote, from a folder or the Hub.

    ``weights`` is the name of their file in the folder. ``dtype`` bfloat16 keeps the matrices in it as they are read
    (`plait.model.precision.shorten`), so that the model is never there in float32; those with LoRA after it is merged.
    """
    require(dtype in (torch.float32, torch.bfloat16), "dtype", dtype, "torch.float32 or torch.bfloat16")
    folder = hub.found(place, "model", hub.WEIGHTS, revision)
    config = load_config(folder)
    with torch.device("meta"):
        model = model_class(config)
    has_lora = any(tower.lora for tower in config.towers.values())
    is_short = dtype == torch.bfloat16
    if is_short and not has_lora:
        shorten(model)
    model.to_empty(device=device)
    load_weights(model, folder, weights=weights)
    if is_short and has_lora:
        model.merge_lora()
        shorten(model)
    return model


def check_target(path: Path, known: Sequence[str], maker: str) -> None:
    """Raise a ConfigError for a folder that holds anything but what ``maker`` writes there (patterns)."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out: {str(path)!r} is a file, name a folder")
    names = [p.name for p in path.iterdir()] if path.exists() else []
    others = [n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in known)]
    if others:
        raise ConfigError(f"--out: {str(path)!r} holds {others[0]!r} and is no earlier {maker}, name another folder")


def write_weights(
    folder: Path,
    tensors: Mapping[str, Stored | Cut],
    read: Callable[[str], Tensor],
    file_bytes: int,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write a saved model's weights one by one, into several files where one would be larger than ``file_bytes``.

    ``advance`` is called with the bytes of each tensor that was read.
    """
    files = list(_files(tensors, file_bytes))
    cuts: dict[str, Cut] = {}

    def read_one(name: str) -> Tensor:
        tensor = read(name)
        advance(tensors[name].num_bytes)
        return tensor

    for number, names in enumerate(files, start=1):
        path = folder / part_name(_STEM, number, len(files))
        write_tensors(path, {n: Stored(tensors[n].dtype, tensors[n].shape) for n in names}, read_one)
        cuts |= {name: Cut.whole(tensors[name], path.name) for name in names}
    if len(files) > 1:
        write_json(index_path(folder / WEIGHTS), make_index(cuts))


def _files(tensors: Mapping[str, Stored | Cut], file_bytes: int) -> Iterator[list[str]]:
    """Share the tensors out to files, in their order."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.num_bytes > file_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.num_bytes
    yield names


@dataclass
class SavedWeights:
    """A saved model to start from, whose tensors are read one by one, so that it is never held whole."""

    name: str
    """Where it is, for the user."""
    config: ModelConfig
    read: Callable[[str], Tensor]
    """Returns a tensor by its name in the model of that config."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many of its tensors, or rows of them, are not in the config's model, by the rule that leaves them out."""

    def model(self) -> MixtureOfTransformers:
        """Return the model of the config, without values."""
        with torch.device("meta"):
            return MixtureOfTransformers(self.config)


Opener = Callable[[str, str], contextlib.AbstractContextManager[SavedWeights]]
"""Opens what a setting names; its second argument is the setting, for errors (CheckpointError)."""


@contextlib.contextmanager
def open_saved(place: str, where: str) -> Iterator[SavedWeights]:
    """Open a saved model, one on the Hub, or a checkpoint; raises CheckpointError unless it has all weights of its
    config."""
    folder = hub.found(place, where, hub.WEIGHTS)
    saved = SavedWeights(place, load_config(folder, where), lambda name: store.read(name))
    with TensorStore(folder / WEIGHTS, where) as store:
        check_tensors(saved.model().state_dict(), store.tensors, place, what=where)
        yield saved


@torch.no_grad()
def load_weights(
    model: MixtureOfTransformers, folder: str | Path, *, weights: str = WEIGHTS, what: str = "model"
) -> None:
    """Copy saved weights into ``model``; any missing, unexpected or differently shaped one is an error."""
    with TensorStore(Path(folder) / weights, what) as store:
        own = model.state_dict()
        check_tensors(own, store.tensors, str(folder), what=what)
        fill(model, own, store.read)


@torch.no_grad()
def fill(model: MixtureOfTransformers, own: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """Set weights of a model, ``own`` by name, one by one, so that none is held twice."""
    for name, tensor in own.items():
        tensor.copy_(part_of(read(name), tensor))
    # what is not saved is rebuilt: balancing counts start at zero
    for name, buffer in model.named_buffers():
        if name not in model.parts:
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
