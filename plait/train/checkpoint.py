"""Checkpoints: everything a run needs to go on as if it had never stopped. Safetensors and JSON, no pickle.

``checkpoints/step-00000100/`` holds config.json and model.safetensors (loadable as a saved model),
optimizer.safetensors, ema.safetensors where the run averages its weights, random.safetensors with the states of the
generators that torch, NumPy and Python keep, and state.json with the step, the data position, what the next row of the
log holds so far, the run's config and checksums. Where several ranks train, each writes what it holds
(``model-00001-of-00004.safetensors``) and ``model.safetensors.index.json`` says where the pieces lie; whoever reads
tensors by name (plait.common.tensor_files) reads both alike, and a run resumes from them on any number of ranks, cut in
any other way.

A checkpoint is written while training goes on: tensors are copied first, and torch.distributed.checkpoint writes the
copies in a thread, over its own process group. Everything is written under a temporary name and renamed, so a
folder that is there is whole. One that was damaged later is passed over by whoever reads, and whoever writes sets it
aside under another name, so that it is never counted as one that a run can go on from.
"""

import functools
import json
import os
import random
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions

from plait.common.errors import CheckpointError, PlaitError
from plait.common.files import read_json, recover_all, remove_folder, replace_folder, write_json
from plait.common.tensor_files import TensorStore, index_path
from plait.config.run import SCHEMA_VERSION
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import WEIGHTS, check_tensors, save_config
from plait.train.ema import AveragedWeights
from plait.train.storage import SafetensorsReader, SafetensorsWriter, Written

# one process writes in the same way as many; torch warns of it
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

DAMAGED = "damaged-"
"""How the names of checkpoints begin that were set aside."""
OPTIMIZER, AVERAGES, RANDOM = "optimizer.safetensors", "ema.safetensors", "random.safetensors"
STATE = "state.json"


def weights_file(path: Path) -> Path:
    """Return the file of a checkpoint that figures and samples are made with: the averages, where there are any."""
    averages = Path(path) / AVERAGES
    return averages if averages.is_file() or index_path(averages).is_file() else Path(path) / WEIGHTS


def find(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted((p for p in Path(folder).glob("step-*") if p.is_dir() and p.name[5:].isdigit()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files match their checksums; None where there is none at all.

    Raises CheckpointError where there are some and none is whole: nobody may take such a run for one not yet begun.
    """
    while True:
        checkpoints = find(folder)
        try:
            return _newest_whole(checkpoints, _damage_of)
        except CheckpointError:
            if all(path.is_dir() for path in checkpoints):
                raise  # else training has removed one in between, and written a newer one


def _damage_of(path: Path) -> str:
    """Say what is wrong with a checkpoint; "" where it is whole."""
    try:
        read_state(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _newest_whole(checkpoints: list[Path], damage_of: Callable[[Path], str], *, speaks: bool = True) -> Path | None:
    """Return the last of some checkpoints without damage, as `latest` does, and say which were passed over."""
    problems: list[str] = []
    for path in reversed(checkpoints):
        problem = damage_of(path)
        if not problem:
            for passed_over in problems if speaks else ():
                warn_of_damage(passed_over)
            return path
        problems.append(problem)
    if not checkpoints:
        return None
    folder = str(checkpoints[0].parent)
    raise CheckpointError(
        f"{problems[0]}, and {folder!r} has no other complete checkpoint; restore one from a backup, or start from "
        f"step 0: move or delete {folder!r}, or set another --out"
    )


def read_state(path: Path, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Read a checkpoint's state.json and check its files; raises CheckpointError where one is damaged.

    Every file's size is checked, and the checksum of every ``parts``-th file from number ``part`` on.
    """
    state = read_json(path / STATE, "checkpoint")
    try:
        files = sorted(state["files"].items())
        for number, (name, expected) in enumerate(files):
            file = path / name
            status = file.stat() if file.is_file() else None
            whole = status is not None and status.st_size == expected["bytes"]
            if whole and number % parts == part:
                whole = _checksum(file, status.st_size, status.st_mtime_ns) == expected["crc32"]
            if not whole:
                raise CheckpointError(f"checkpoint: {str(file)!r} is corrupt (checksum mismatch)")
        version = state["schema_version"]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint: {str(path / STATE)!r} is not the state of a checkpoint") from None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"checkpoint: {str(path)!r} has schema version {version!r}, it must be {SCHEMA_VERSION}")
    return state


_checksums: dict[tuple[str, int, int], int] = {}
"""CRC-32 of files by name, size and time of the last change, which say whether it is still the same file."""


def _checksum(path: Path, num_bytes: int, changed_ns: int) -> int:
    key = (str(path), num_bytes, changed_ns)
    if key not in _checksums:
        value = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                value = zlib.crc32(block, value)
        _checksums[key] = value
    return _checksums[key]


def remember_checksums(path: Path, files: dict[str, dict[str, int]]) -> None:
    """Take the checksums that were found while a checkpoint was written: nobody reads it again unless it changes."""
    for name, record in files.items():
        status = (path / name).stat()
        _checksums[str(path / name), status.st_size, status.st_mtime_ns] = record["crc32"]


@functools.cache
def warn_of_damage(message: str) -> None:
    """Say once that a checkpoint is passed over."""
    print(f"plait: {message}; falling back to the previous checkpoint", file=sys.stderr, flush=True)


def set_aside(path: Path, reason: str) -> None:
    """Give a damaged checkpoint a name that is counted nowhere, and say what and why."""
    for number in ("", *(f"-{n}" for n in range(2, 100))):
        aside = path.with_name(f"{DAMAGED}{path.name}{number}")
        if not aside.exists():
            break
    os.replace(path, aside)
    print(f"plait: {reason}; it is kept as {aside.name!r} and counted nowhere, remove it when you like",
          file=sys.stderr, flush=True)  # fmt: skip


def weights_key(path: Path) -> dict[str, int]:
    """Return what tells the weights of one checkpoint from those of another: the checksums of their files."""
    stem = weights_file(path).name.partition(".")[0]
    files = read_state(path)["files"]
    return {name: record["crc32"] for name, record in files.items() if name.startswith(stem)}


class Copies(AsyncStager):
    """Copies tensors to memory that is kept for the next checkpoint, page-locked where they come from a GPU."""

    _synchronize_after_execute = False  # `stage` returns when all is copied

    def __init__(self, *, from_gpu: bool):
        self._stager = DefaultStager(StagingOptions(
            use_pinned_memory=from_gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=from_gpu
        ))  # fmt: skip

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Tensor]:
        """Return copies of ``state_dict["tensors"]``; torch takes long to look at each entry of a state itself."""
        return self._stager.stage(state_dict["tensors"])

    def close(self) -> None:
        """Let the memory go."""
        self._stager.close()


class Checkpoints:
    """The checkpoints of a run that trains: written while training goes on, one at a time, the oldest removed.

    Kept are the newest ``keep``, and those of every ``keep_every``-th step (0: none besides). With several ranks every
    method is called on all of them. Raises ResourceError for a full disk and CheckpointError for what does not fit.
    """

    def __init__(self, folder: str | Path, *, keep: int, keep_every: int = 0):
        self.folder = Path(folder)
        self._keep, self._keep_every = keep, keep_every
        # torch's own messages between the ranks' threads must not meet those of training
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._rank = dist.get_rank(self._group) if self._group else 0
        self._world_size = dist.get_world_size(self._group) if self._group else 1
        self._under_way: tuple[Future, Path] | None = None
        self._copies: Copies | None = None

    # -- writing ------------------------------------------------------------------------------------------------

    def save(self, model: MixtureOfTransformers, optimizer: torch.optim.Optimizer, state: dict[str, Any], *,
             averages: AveragedWeights | None = None) -> None:  # fmt: skip
        """Copy everything, and begin to write the checkpoint of ``state["step"]``; waits for the one before."""
        self.wait()
        path = self.folder / f"step-{state['step']:08d}"
        temporary = path.with_name(f".{path.name}.tmp")
        tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for kind, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{kind}/{name}"] = tensor
        if averages:  # under the model's names, so that it loads as a model; what has no average is as it is
            tensors |= {f"ema/{name}": t for name, t in (model.state_dict() | averages.tensors).items()}
            state = state | {"ema_updates": float(averages.num_updates)}
        tensors |= {f"random/{self._rank}/{name}": t for name, t in random_states(model.device).items()}
        state = {"schema_version": SCHEMA_VERSION, "world_size": self._world_size, **state}
        text = json.dumps(state)  # as it is now: training goes on

        def finish(written: list[Written]) -> None:
            save_config(model.config, temporary)
            small = [p for p in temporary.glob("*.json")]
            files = {w.file: {"bytes": w.num_bytes, "crc32": w.checksum} for w in written}
            files |= {p.name: {"bytes": p.stat().st_size, "crc32": zlib.crc32(p.read_bytes())} for p in small}
            write_json(temporary / STATE, json.loads(text) | {"files": files})
            replace_folder(temporary, path)
            remember_checksums(path, files)
            self._remove_old()

        writer, planner = SafetensorsWriter(temporary, finish), DefaultSavePlanner(flatten_state_dict=False)
        self._copies = self._copies or Copies(from_gpu=model.device.type == "cuda")
        future = dcp.async_save({"tensors": tensors}, storage_writer=writer, planner=planner,
                                process_group=self._group, async_stager=self._copies)  # fmt: skip
        self._under_way = future, temporary

    def wait(self) -> None:
        """Wait until the checkpoint under way is whole; raises what went wrong, on every rank."""
        if self._under_way is None:
            return
        (future, temporary), self._under_way = self._under_way, None
        try:
            future.result()
        except CheckpointException as error:
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise first_failure(error) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Finish what is under way, however training ended."""
        try:
            self.wait()
        except Exception:
            if error is None:
                raise
        finally:
            if self._copies:
                self._copies.close()
                self._copies = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._under_way is not None and not self._under_way[0].done()

    def _remove_old(self) -> None:
        """Remove all but the newest whole ones; damaged ones are set aside first, and count for none of them."""
        self._set_damaged_aside()
        for path in find(self.folder)[: -self._keep]:
            if not (self._keep_every and _step(path) % self._keep_every == 0):
                remove_folder(path)

    def _set_damaged_aside(self) -> None:
        for path in find(self.folder):
            if problem := _damage_of(path):
                set_aside(path, problem)

    # -- reading ------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, the same on every rank, as `latest` does."""
        if self._rank == 0:
            recover_all(self.folder)
        paths = self._from_first([str(p) for p in find(self.folder)] if self._rank == 0 else None)

        def damage_of(path: Path) -> str:
            try:
                read_state(path, part=self._rank, parts=self._world_size)  # each rank checks its share
                problem = ""
            except CheckpointError as error:
                problem = str(error)
            return next((p for p in self._from_all(problem) if p), "")

        return _newest_whole([Path(p) for p in paths], damage_of, speaks=self._rank == 0)

    def restore(self, path: Path, model: MixtureOfTransformers, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Load a checkpoint into model and optimizer, however they are cut, and return its state.

        Whether it belongs to the run's config is checked before, by `plait.train.acceptance`.
        """
        state = read_json(path / STATE, "checkpoint")
        with (
            TensorStore(path / WEIGHTS, "checkpoint") as weights,
            TensorStore(path / OPTIMIZER, "checkpoint") as moments,
        ):
            own = model.state_dict()
            check_tensors(own, weights.tensors, str(path))
            tensors = {f"model/{name}": t for name, t in own.items()}
            parameters = dict(model.named_parameters())
            for key, cut in moments.tensors.items():
                kind, _, name = key.partition("/")
                parameter = parameters.get(name)
                if parameter is None or not parameter.requires_grad:
                    continue
                like = (
                    parameter.detach() if cut.shape == parameter.shape else torch.empty(cut.shape, device=model.device)
                )
                tensors[f"optimizer/{key}"] = torch.empty_like(like, dtype=cut.dtype)
                optimizer.state[parameter][kind] = tensors[f"optimizer/{key}"]
            self._load(tensors, {"model": weights, "optimizer": moments})
        self._restore_random(path, model.device)
        return state

    def restore_averages(self, path: Path, state: dict[str, Any], averages: AveragedWeights) -> None:
        """Load a checkpoint's averages, ``state`` being what `restore` returned; without any, they start anew."""
        if "ema_updates" not in state:
            return
        with TensorStore(path / AVERAGES, "checkpoint") as store:
            self._load({f"ema/{name}": t for name, t in averages.tensors.items()}, {"ema": store})
        averages.num_updates.fill_(state["ema_updates"])

    def tidy(self) -> None:
        """End what a killed run had begun to write, and set damaged checkpoints aside: training is about to write."""
        if self._rank == 0 and self.folder.is_dir():
            for path in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
            self._set_damaged_aside()

    def _load(self, tensors: dict[str, Tensor], stores: dict[str, TensorStore]) -> None:
        try:
            dcp.load(tensors, storage_reader=SafetensorsReader(stores),
                     planner=DefaultLoadPlanner(flatten_state_dict=False), process_group=self._group)  # fmt: skip
        except CheckpointException as error:
            raise first_failure(error) from None

    def _restore_random(self, path: Path, device: torch.device) -> None:
        """Set the generators as this rank's were; where there was no such rank, they stay as they are."""
        with TensorStore(path / RANDOM, "checkpoint") as store:
            prefix = f"{self._rank}/"
            states = {n.removeprefix(prefix): store.read(n) for n in store.tensors if n.startswith(prefix)}
        try:
            set_random_states(states, device)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError):
            raise CheckpointError(f"checkpoint: {str(path / RANDOM)!r} holds no states of generators") from None

    def _from_first(self, value: Any) -> Any:
        values = [value]
        if self._group:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def _from_all(self, value: str) -> list[str]:
        if not self._group:
            return [value]
        values: list[str] = [""] * self._world_size
        dist.all_gather_object(values, value, group=self._group)
        return values


def first_failure(error: CheckpointException) -> BaseException:
    """Return what went wrong first: a sentence for the user where there is one."""
    failures = [failure for failure, _ in error.failures.values()]
    return next((f for f in failures if isinstance(f, PlaitError)), failures[0])


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that libraries keep, as bytes. plait's own draws need none."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state()
    others = {"numpy": [name, keys.tolist(), *rest], "python": random.getstate()}
    return states | {
        n: torch.frombuffer(bytearray(json.dumps(v).encode()), dtype=torch.uint8) for n, v in others.items()
    }


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators to states that `random_states` returned."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    values = {n: json.loads(states[n].numpy().tobytes()) for n in ("numpy", "python") if n in states}
    if "numpy" in values:
        np.random.set_state(tuple(values["numpy"]))
    if "python" in values:
        version, keys, gauss = values["python"]
        random.setstate((version, tuple(keys), gauss))
