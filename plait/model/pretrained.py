"""Saving and loading models: safetensors and config.json, loud about every weight that does not fit."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.common.errors import CheckpointError, ConfigError
from plait.common.files import read_json, write_json
from plait.common.tensor_files import Cut, Stored, TensorStore, index_path, make_index, part_name, write_tensors
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


def is_own(folder: Path) -> bool:
    """Say whether a folder's ``config.json`` is one of plait's."""
    values = read_json(folder / "config.json", "model")
    return isinstance(values, dict) and values.get("architecture") == ARCHITECTURE


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
    stem = WEIGHTS.removesuffix(".safetensors")
    files = list(_files(tensors, file_bytes))
    cuts: dict[str, Cut] = {}

    def read_one(name: str) -> Tensor:
        tensor = read(name)
        advance(tensors[name].num_bytes)
        return tensor

    for number, names in enumerate(files, start=1):
        path = folder / part_name(stem, number, len(files))
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
def open_saved(folder: str, where: str) -> Iterator[SavedWeights]:
    """Open a saved model, or a checkpoint; raises CheckpointError unless it has all weights of its config."""
    saved = SavedWeights(folder, load_config(folder, where), lambda name: store.read(name))
    with TensorStore(Path(folder) / WEIGHTS, where) as store:
        check_tensors(saved.model().state_dict(), store.tensors, folder, what=where)
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
