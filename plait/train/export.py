"""`plait export`: a checkpoint's weights as a saved model, safetensors and config.json, or its LoRA as an adapter.

Tensors are read and written one after another, put together from the pieces that ranks wrote, so that little more than
the largest one is ever held. Where the weights are larger than one file may be, they become several with the index
that Hugging Face's libraries read.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from plait.common.errors import CheckpointError, ConfigError
from plait.common.files import atomic_folder
from plait.common.locks import one_writer
from plait.common.progress import Progress, QuietProgress
from plait.common.tensor_files import TensorStore
from plait.config.bounds import Bounds, as_number
from plait.config.file import load_kept
from plait.config.model import ModelConfig
from plait.model import adapters
from plait.model.adapters import merged, write_adapter
from plait.model.lora import without_lora
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import WEIGHTS, check_target, check_tensors, load_config, save_config, write_weights
from plait.train import checkpoint

GB = 1_000_000_000
EXPORTED = ("config.json", "model*", "codecs", "generation.json", "README.md")
ADAPTER = (adapters.CONFIG, adapters.WEIGHTS)
"""What the folders of an exported model and adapter hold."""


def export(
    run: str | Path,
    out: str | Path = "",
    *,
    step: int | None = None,
    averages: bool = False,
    merge: bool = False,
    adapter: bool = False,
    add: Callable[[Path], None] = lambda folder: None,
    file_gb: float = 5.0,
    progress: Progress | None = None,
) -> Path:
    """Write the weights of a run's newest checkpoint, or that of ``step``, as a saved model; return its folder.

    ``averages`` takes the averaged weights (train.ema). Of a run with LoRA, ``merge`` writes a model without it, whose
    matrices hold what was learned, and ``adapter`` what was learned alone, as peft writes it. No file is larger than
    ``file_gb``, unless one tensor is. ``add`` writes what else a saved model's folder shall hold.

    Raises CheckpointError where there is no such checkpoint, ConfigError for a folder that holds something else, and
    Held where another process writes it.
    """
    file_gb = as_number(file_gb, float, "--file-gb", Bounds(above=0))
    step = step if step is None else as_number(step, int, "--step", Bounds(at_least=0))
    checkpoint_folder = _checkpoint(Path(run), step)
    source = checkpoint_folder / (checkpoint.AVERAGES if averages else WEIGHTS)
    if averages and checkpoint.weights_file(checkpoint_folder) != source:
        raise CheckpointError(
            f"export: {str(checkpoint_folder)!r} has no averaged weights (train.ema was 0), leave out --ema"
        )
    config = load_config(checkpoint_folder)
    chosen = _checked(config, str(run), merge=merge, adapter=adapter)
    name = f"{checkpoint_folder.name}{'-ema' if averages else ''}{f'-{chosen}' if chosen else ''}"
    path = Path(out) if out else Path(run) / "exported" / name
    check_target(path, ADAPTER if adapter else EXPORTED, "export")
    with (
        one_writer(path, "--out", replaced=True),
        TensorStore(source, "checkpoint") as store,
        atomic_folder(path) as temporary,
    ):
        with torch.device("meta"):
            check_tensors(MixtureOfTransformers(config).state_dict(), store.tensors, str(checkpoint_folder))
        if adapter:
            write_adapter(temporary, config, store.tensors, store.read, base=load_kept(run).train.init_from)
            return path
        read: Callable[[str], Tensor] = store.read
        tensors = dict(store.tensors)
        if merge:
            config, read = without_lora(config), merged(config, store.read)
            with torch.device("meta"):
                tensors = {n: tensors[n] for n in MixtureOfTransformers(config).state_dict()}
        save_config(config, temporary, with_code=True)
        add(temporary)
        with (progress or QuietProgress()).stage(
            f"export {name}", total=sum(c.num_bytes for c in tensors.values()) / GB
        ) as bar:
            write_weights(temporary, tensors, read, int(file_gb * GB), lambda n: bar.advance(n / GB))
    return path


def _checked(config: ModelConfig, run: str, *, merge: bool, adapter: bool) -> str:
    """Return what is to be done about LoRA: merge, adapter or "", nothing. Raises ConfigError."""
    chosen = "merge" if merge else "adapter" if adapter else ""
    if merge and adapter:
        raise ConfigError("export: --merge and --adapter are not allowed together, take one of them")
    if chosen and not any(tower.lora for tower in config.towers.values()):
        raise ConfigError(f"export: --{chosen} is not allowed, {run!r} has no LoRA (model.towers.*.lora)")
    return chosen


def _checkpoint(run: Path, step: int | None) -> Path:
    folder = run / "checkpoints"
    if step is None:
        newest = checkpoint.latest(folder)
        if newest is None:
            raise CheckpointError(f"export: {str(run)!r} has no complete checkpoint, run `plait train` first")
        return newest
    steps = [int(p.name.removeprefix("step-")) for p in checkpoint.find(folder)]
    if step not in steps:
        raise CheckpointError(
            f"export: {str(run)!r} has no checkpoint of step {step}, only {', '.join(map(str, steps)) or 'none at all'}"
        )
    path = folder / f"step-{step:08d}"
    checkpoint.read_state(path)
    return path
