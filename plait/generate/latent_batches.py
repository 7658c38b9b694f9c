"""Items under denoising. Those that begin in the same step with the same settings go through one scheduler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.batch.assemble import Run
from plait.batch.documents import Part, role_of
from plait.objectives.samplers import Denoiser


class Canvas:
    """One item under denoising: its extent, its place in a wave, and the snapshots taken of it."""

    def __init__(self, modality: str, grid: tuple[int, ...], noise: Tensor, *, hidden: bool, num_snapshots: int):
        self.modality, self.grid, self.noise = modality, grid, noise
        # the values are filled in on the device; here they only have a shape
        blank = torch.zeros(noise.shape, dtype=torch.float32).numpy()
        self.run = Run(modality, None, blank, grid, role_of(given=False), noised=True, hidden=hidden)
        self.num_snapshots = num_snapshots
        self.snapshots: list[tuple[float, Tensor]] = []
        self.wave: Wave | None = None
        self.slot = 0

    def __len__(self) -> int:
        return len(self.noise)

    @property
    def started(self) -> "Wave":
        """The wave that denoises it; it has one from its first step on."""
        assert self.wave is not None, f"the denoising of {self.modality} has not started"
        return self.wave

    @property
    def latents(self) -> Tensor:
        """The item's latents as they are now, [n, C]."""
        start = self.started.starts[self.slot]
        return self.started.latents[start : start + len(self)]

    @property
    def level(self) -> float:
        """The noise level of the next forward pass."""
        return self.started.denoiser.levels[self.started.passes]

    @property
    def is_done(self) -> bool:
        """Whether its latents are clean."""
        return self.started.passes == len(self.started.denoiser.levels)

    def part(self, latents: Tensor) -> Part:
        """Return latents of this item as a part, on the host."""
        return Part(self.modality, latents=latents.float().cpu().numpy(), grid=self.grid)


class Wave:
    """Canvases that one scheduler denoises together. One that is let go on the way keeps its place, unread."""

    def __init__(self, denoiser: Denoiser, canvases: list[Canvas]):
        self.denoiser, self.canvases, self.passes = denoiser, canvases, 0
        self.latents = torch.cat([c.noise for c in canvases])
        self.starts = torch.tensor([0, *map(len, canvases)]).cumsum(0).tolist()
        for slot, canvas in enumerate(canvases):
            canvas.wave, canvas.slot = self, slot

    def step(self, prediction: Tensor) -> None:
        """Go on to the next noise level, given what the model predicts for all items [N, C]."""
        for canvas in self.canvases:
            if canvas.num_snapshots and self._is_moment(canvas.num_snapshots):
                canvas.snapshots.append((canvas.level, canvas.latents))
        self.latents = self.denoiser.step(prediction.to(self.latents.dtype), self.latents)
        self.passes += 1

    def _is_moment(self, count: int) -> bool:
        """Say whether this pass is one of ``count`` evenly spaced ones."""
        total = len(self.denoiser.levels)
        return self.passes in {i * total // count for i in range(count)}


def start_waves(
    canvases: list[Canvas], settings: list[Any], seeds: list[int], make: Callable[[Any, list[int]], Denoiser]
) -> list[Wave]:
    """Group canvases of equal settings (modality, sampler, steps) and size; ``make(settings, seeds)`` returns a
    Denoiser. Where it draws noise, each canvas has its own seed, so that no draw depends on the company."""
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(settings):
        groups.setdefault((key, len(canvases[i])), []).append(i)
    return [
        Wave(make(key, [seeds[i] for i in members]), [canvases[i] for i in members])
        for (key, _), members in groups.items()
    ]
