"""The small training loop that codecs share: fitted to a time, resumable, saved often.

The learning rate depends on the share of the time that is spent (or of the steps, where their number is given), so
that a slow machine makes fewer steps but still decays to the end. Batches are drawn by step number: a given number of
steps always gives the same weights on one machine.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.codecs.base import Progress
from plait.common.devices import is_fast_in_bfloat16
from plait.common.files import atomic_file
from plait.common.randomness import generator

_WARMUP_STEPS = 50
_FLAT_SHARE = 0.4  # of the time at the peak, before the linear decay
_SAVE_SECONDS = 15.0
_REPORT_SECONDS = 0.5


@dataclass
class Schedule:
    """How long to fit: ``minutes`` of wall-clock, or ``steps`` where that is above 0."""

    minutes: float
    steps: int = 0
    learning_rate: float = 2e-3

    def share(self, step: int, seconds: float) -> float:
        """Return the share that is done, 0 to 1."""
        done = step / self.steps if self.steps else seconds / max(60 * self.minutes, 1e-9)
        return min(done, 1.0)

    def rate(self, step: int, share: float) -> float:
        """Return the learning rate: linear warm-up, flat, linear decay to nearly 0."""
        decay = min(1.0, (1.01 - share) / (1.01 - _FLAT_SHARE))
        return self.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS) * decay


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return bfloat16 autocast where the device computes in it faster than in float32, else nothing."""
    is_fast = is_fast_in_bfloat16(device.type)
    return torch.autocast(device.type, torch.bfloat16) if is_fast else contextlib.nullcontext()


def fit_model(
    model: nn.Module,
    loss_of: Callable[[Any, np.random.Generator, torch.device], Tensor],
    *,
    schedule: Schedule,
    seed: int,
    folder: Path,
    key: str,
    progress: Progress,
) -> None:
    """Train ``model`` on the best device, then bring it back to the CPU.

    ``loss_of(model, rng, device)`` draws a batch with ``rng`` and returns its loss; it runs under autocast where that
    is faster. ``folder`` holds the state of an interrupted call with the same ``key``, and the call goes on from there.
    """
    device = best_device()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    state = Path(folder) / "fit.safetensors"
    step, seconds = _restore(state, key, model, optimizer)
    saved = reported = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while (share := schedule.share(step, seconds)) < 1.0:
            began = time.monotonic()
            torch.manual_seed(generator(seed, "codec: torch", position=step).integers(2**62))
            optimizer.param_groups[0]["lr"] = schedule.rate(step, share)
            with fast_autocast(device):
                loss = loss_of(model, generator(seed, "codec: batch", position=step), device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            now = time.monotonic()
            step, seconds = step + 1, seconds + now - began
            if now - reported > _REPORT_SECONDS or step == 1:
                progress(schedule.share(step, seconds), f"loss {loss.item():.4f}")
                reported = now
            if now - saved > _SAVE_SECONDS:
                _save(state, key, model, optimizer, step, seconds)
                saved = now
    _save(state, key, model, optimizer, step, seconds)
    model.to("cpu").eval()
    progress(1.0, f"{step} steps")


def fitting_key(options: object, media: Sequence[np.ndarray] | Tensor, seed: int, schedule: Schedule) -> str:
    """Return what a saved state must agree on to be continued: settings, number of items, seed, length."""
    return json.dumps([repr(options), len(media), seed, repr(schedule)])


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for kind, t in optimizer.state[parameter].items():
            tensors[f"optimizer.{kind}.{name}"] = t
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _save(path: Path, key: str, model, optimizer, step: int, seconds: float) -> None:
    metadata = {"key": key, "step": str(step), "seconds": repr(seconds)}
    with atomic_file(path) as temporary:
        save_file(_tensors(model, optimizer), temporary, metadata)


def _restore(path: Path, key: str, model: nn.Module, optimizer) -> tuple[int, float]:
    """Load a state of the same key into model and optimizer; returns (step, seconds), zeros where there is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return 0, 0.0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError):
        return 0, 0.0
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for name, parameter in model.named_parameters():
        kinds = ("step", "exp_avg", "exp_avg_sq")
        if all(f"optimizer.{kind}.{name}" in tensors for kind in kinds):
            moments = {kind: tensors[f"optimizer.{kind}.{name}"].clone() for kind in kinds}
            optimizer.state[parameter] = {k: t if k == "step" else t.to(parameter) for k, t in moments.items()}
    return int(metadata["step"]), float(metadata["seconds"])
