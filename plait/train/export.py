"""`plait export`: a checkpoint's weights as a saved model, safetensors and config.json, on any machine.

Tensors are read and written one after another, put together from the pieces that ranks wrote, so that little more than
the largest one is ever held. Where the weights are larger than one file may be, they become several with the index
that Hugging Face's libraries read.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from plait.common.errors import CheckpointError, ConfigError
from plait.common.files import atomic_folder, write_json
from plait.common.locks import one_writer
from plait.common.progress import Progress, QuietProgress
from plait.common.tensor_files import Cut, Stored, TensorStore, index_path, make_index, part_name, write_tensors
from plait.config.bounds import Bounds, as_number
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import WEIGHTS, check_tensors, load_config
from plait.train import checkpoint

GB = 1_000_000_000


def export(
    run: str | Path,
    out: str | Path = "",
    *,
    step: int | None = None,
    averages: bool = False,
    file_gb: float = 5.0,
    progress: Progress | None = None,
) -> Path:
    """Write the weights of a run's newest checkpoint, or that of ``step``, as a saved model; return its folder.

    ``averages`` takes the averaged weights (train.ema). No file is larger than ``file_gb``, unless one tensor is.
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
    name = f"{checkpoint_folder.name}{'-ema' if averages else ''}"
    path = Path(out) if out else Path(run) / "exported" / name
    _check_target(path)
    config = load_config(checkpoint_folder)
    with (
        one_writer(path, "--out", replaced=True),
        TensorStore(source, "checkpoint") as store,
        atomic_folder(path) as temporary,
    ):
        with torch.device("meta"):
            check_tensors(MixtureOfTransformers(config).state_dict(), store.tensors, str(checkpoint_folder))
        shutil.copyfile(checkpoint_folder / "config.json", temporary / "config.json")
        with (progress or QuietProgress()).stage(
            f"export {name}", total=sum(c.num_bytes for c in store.tensors.values()) / GB
        ) as bar:
            _write(store, temporary, int(file_gb * GB), bar)
    return path


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


def _check_target(path: Path) -> None:
    """Refuse to replace a folder that is no earlier export."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out: {str(path)!r} is a file, name a folder")
    names = [p.name for p in path.iterdir()] if path.exists() else []
    others = [n for n in names if n != "config.json" and not n.startswith("model")]
    if others:
        raise ConfigError(f"--out: {str(path)!r} holds {others[0]!r} and is no earlier export, name another folder")


def _write(store: TensorStore, folder: Path, file_bytes: int, bar) -> None:
    files = list(_files(store.tensors, file_bytes))
    cuts: dict[str, Cut] = {}
    stem = WEIGHTS.removesuffix(".safetensors")

    def read(name: str) -> torch.Tensor:
        tensor = store.read(name)
        bar.advance(store.tensors[name].num_bytes / GB)
        return tensor

    for number, names in enumerate(files, start=1):
        path = folder / part_name(stem, number, len(files))
        write_tensors(path, {n: Stored(store.tensors[n].dtype, store.tensors[n].shape) for n in names}, read)
        cuts |= {name: Cut.whole(store.tensors[name], path.name) for name in names}
    if len(files) > 1:
        write_json(index_path(folder / WEIGHTS), make_index(cuts))


def _files(tensors: dict[str, Cut], file_bytes: int) -> Iterator[list[str]]:
    """Share the tensors out to files, in their order."""
    names: list[str] = []
    size = 0
    for name, cut in tensors.items():
        if names and size + cut.num_bytes > file_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += cut.num_bytes
    yield names
