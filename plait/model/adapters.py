"""Adapters: what LoRA learned, in its own folder, in the form that peft reads and writes.

`adapter_config.json` says rank and scale, `adapter_model.safetensors` holds the matrices A [r, I] and B [O, r] of each
changed matrix under `base_model.model.{its name}.lora_A.weight` and `...lora_B.weight`.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.common import hub
from plait.common.errors import CheckpointError
from plait.common.files import read_json, write_json
from plait.common.tensor_files import Cut, Stored, TensorStore, write_tensors
from plait.config.model import ModelConfig
from plait.model.lora import Adapters, Change, Chosen, adapted_in, linears_in
from plait.model.mot import MixtureOfTransformers

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
_NAME = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False,), "use_dora": (False,), "lora_bias": (False,),
    "modules_to_save": (None, []), "use_qalora": (False,), "trainable_token_indices": (None,), "use_bdlora": (None,),
    "alora_invocation_tokens": (None,), "layer_replication": (None,), "arrow_config": (None,),
    "target_parameters": (None, []), "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip
"""Options of peft, and the values for which an adapter is W + scale B A of the weights that it was trained on."""


def merged(config: ModelConfig, read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """Return what reads the weights of a model with its LoRA merged, one by one, given what reads those it has."""
    adapted = {f"{module}.weight": (module, lora) for module, lora in adapted_in(_without_values(config))}

    def read_merged(name: str) -> Tensor:
        if name not in adapted:
            return read(name)
        module, lora = adapted[name]
        return Change(read(f"{module}.lora.a"), read(f"{module}.lora.b"), lora.scale).added_to(read(name))

    return read_merged


def write_adapter(
    folder: Path, config: ModelConfig, stored: Mapping[str, Cut], read: Callable[[str], Tensor], *, base: str
) -> None:
    """Write a model's LoRA as an adapter; ``base`` names the model that it changes."""
    model = _without_values(config)
    modules = [module for module, _ in adapted_in(model)]
    sources = {f"{PREFIX}{m}.lora_{side}.weight": f"{m}.lora.{side.lower()}" for m in modules for side in "AB"}
    write_tensors(
        folder / WEIGHTS,
        {name: Stored(stored[source].dtype, stored[source].shape) for name, source in sources.items()},
        lambda name: read(sources[name]),
    )
    records = {m: config.towers[model.parts[f"{m}.weight"].tower or ""].lora for m in modules}
    ranks = {m: record.rank for m, record in records.items() if record}
    alphas = {m: record.alpha for m, record in records.items() if record}
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "inference_mode": True,
        "r": ranks[modules[0]], "lora_alpha": alphas[modules[0]], "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "target_modules": modules, "rank_pattern": _others(ranks),
        "alpha_pattern": _others(alphas),
    })  # fmt: skip


def _without_values(config: ModelConfig) -> MixtureOfTransformers:
    with torch.device("meta"):
        return MixtureOfTransformers(config)


def _others(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not the first one's, by their modules."""
    first = next(iter(values.values()))
    return {module: value for module, value in values.items() if value != first}


@contextlib.contextmanager
def open_adapter(
    folder: str | Path, model: MixtureOfTransformers, where: str = "adapter"
) -> Iterator[dict[str, Callable[[], Change]]]:
    """Open an adapter of a model; yields what reads the change of each matrix, by the name of its module.

    Raises CheckpointError, which names what does not fit: other options of peft than plain LoRA, matrices that the
    model has not, or of another shape, and halves without the other.
    """
    folder = hub.found(folder, where, hub.ADAPTER)
    config = _read_config(folder, where)
    with TensorStore(folder / WEIGHTS, where) as store:
        names = _by_module(store.tensors, str(folder), where)
        matrices = linears_in(model)
        for module, pair in names.items():
            if module not in matrices:
                raise CheckpointError(
                    f"{where}: {str(folder)!r} changes {module!r}, which this model has not: it is of another model, "
                    f"or of other towers than {', '.join(model.config.towers)}"
                )
            _check(module, pair, store.tensors, matrices[module].weight.shape, config, str(folder), where)

        def reader(module: str) -> Callable[[], Change]:
            a, b = names[module]["A"], names[module]["B"]
            return lambda: Change(store.read(a), store.read(b), _scale(config, module))

        yield {module: reader(module) for module in names}


@torch.no_grad()
def merge_adapter(model: MixtureOfTransformers, folder: str | Path, where: str = "adapter") -> None:
    """Add an adapter to the matrices that it changes, in place (raises CheckpointError; then nothing is changed)."""
    matrices = linears_in(model)
    with open_adapter(folder, model, where) as readers:
        for module, read in readers.items():
            weight = matrices[module].weight
            weight.copy_(read().added_to(weight))


@torch.no_grad()
def attach(model: MixtureOfTransformers, folders: Mapping[str, str | Path], where: str = "adapter") -> None:
    """Put adapters beside a model, by names that requests may ask for; raises CheckpointError."""
    adapters, matrices = Adapters(list(folders)), linears_in(model)
    towers = list(model.config.towers)
    for number, folder in enumerate(folders.values(), start=1):
        with open_adapter(folder, model, where) as readers:
            for module, read in readers.items():
                matrix, part = matrices[module], model.parts[f"{module}.weight"]
                if not part.in_block:
                    raise CheckpointError(
                        f"{where}: {str(folder)!r} changes {module!r}, which stands outside of the blocks: beside a "
                        "model it cannot be, load the model with it merged (plait generate --adapter)"
                    )
                if matrix.lora is None:
                    matrix.lora = Chosen(adapters, None if part.tower is None else towers.index(part.tower))
                assert isinstance(matrix.lora, Chosen)
                matrix.lora.changes[number] = read().beside(matrix.weight)
    model.adapters = adapters


def check_adapter(folder: str | Path, where: str = "adapter") -> None:
    """Raise a CheckpointError for what is no adapter; no weights are read."""
    _read_config(hub.found(folder, where, hub.ADAPTER), where)


def _read_config(folder: Path, where: str) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{where}: {str(folder)!r} holds no {CONFIG}, so it is no adapter")
    config = read_json(folder / CONFIG, where)
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: {str(folder / CONFIG)!r} is not a mapping of options")
    for name, allowed in PLAIN.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{where}: {str(folder)!r} has {name} {value!r}, it must be {allowed[0]!r}: plain LoRA"
            )
    for name in ("r", "lora_alpha"):
        if not _is_positive(config.get(name)):
            raise CheckpointError(
                f"{where}: {str(folder)!r} has {name} {config.get(name)!r}, it must be a number above 0"
            )
    for name in ("rank_pattern", "alpha_pattern"):
        values = config.get(name) or {}
        if not isinstance(values, dict) or not all(map(_is_positive, values.values())):
            raise CheckpointError(f"{where}: {str(folder)!r} has {name} {values!r}, it must be numbers above 0 by name")
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise CheckpointError(
            f"{where}: {str(folder)!r} holds a pickle ({PICKLE}), which may run anything; save it with peft as "
            "safetensors (save_pretrained(..., safe_serialization=True))"
        )
    return config


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _by_module(stored: Mapping[str, Cut], folder: str, where: str) -> dict[str, dict[str, str]]:
    """Return the names of A and B of each changed module."""
    names: dict[str, dict[str, str]] = {}
    for name in stored:
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{where}: {name!r} in {folder!r} is no matrix of LoRA (lora_A, lora_B)")
        names.setdefault(match["module"], {})[match["side"]] = name
    if not names:
        raise CheckpointError(f"{where}: {folder!r} changes nothing, its {WEIGHTS} is empty")
    return names


def _check(module: str, pair: dict[str, str], stored: Mapping[str, Cut], shape: tuple[int, ...],
           config: dict[str, Any], folder: str, where: str) -> None:  # fmt: skip
    if len(pair) < 2:
        raise CheckpointError(f"{where}: {folder!r} has lora_{next(iter(pair))} of {module!r} alone, not A and B")
    outputs, inputs = shape
    rank = _of_module(config, "rank_pattern", "r", module)
    wanted = {"A": (rank, inputs), "B": (outputs, rank)}
    for side, name in pair.items():
        if stored[name].shape != wanted[side]:
            raise CheckpointError(
                f"{where}: {name} in {folder!r} has shape {list(stored[name].shape)}, this model needs "
                f"{list(wanted[side])}"
            )


def _of_module(config: dict[str, Any], patterns: str, general: str, module: str) -> Any:
    """Return a setting that peft lets differ by module: that of the first pattern which its name ends with."""
    for pattern, value in (config.get(patterns) or {}).items():
        with contextlib.suppress(re.error):
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
    return config[general]


def _scale(config: dict[str, Any], module: str) -> float:
    rank = _of_module(config, "rank_pattern", "r", module)
    alpha: float = _of_module(config, "alpha_pattern", "lora_alpha", module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
