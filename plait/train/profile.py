"""A look inside some steps: torch's profiler, and on a GPU the history of its memory (train.profile)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from plait.common.files import atomic_file

COLLECT_EVERY = 50
"""Steps between two collections of garbage: collected whenever Python likes, ranks would wait for one another."""


class StepProfiler:
    """Records the steps from ``first`` to ``last`` into ``folder``; without steps it does nothing.

    ``trace-<first>-<last>.json`` opens in Perfetto (ui.perfetto.dev) or chrome://tracing. On a GPU,
    ``memory-<first>-<last>.pickle`` opens in pytorch.org/memory_viz; nothing here reads it.
    """

    def __init__(self, steps: list[int], folder: Path, device: torch.device, *, rank: int | None = None):
        """``rank`` is that of one among several, each of which writes its own files."""
        self.first, self.last = steps or (0, 0)
        self.folder, self.device = folder, device
        self._name = f"{self.first}-{self.last}" + ("" if rank is None else f"-rank-{rank}")
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """Begin to record where ``step`` is the first."""
        if step != self.first:
            return
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profile = profile(activities=activities, profile_memory=True, record_shapes=True)
        if on_gpu:
            torch.cuda.memory._record_memory_history()
        self._profile.start()

    def end(self, step: int) -> None:
        """Write what was recorded where ``step`` is the last."""
        if self._profile is None or step != self.last:
            return
        self._profile.stop()
        with atomic_file(self.folder / f"trace-{self._name}.json") as path:
            self._profile.export_chrome_trace(str(path))
        if self.device.type == "cuda":
            with atomic_file(self.folder / f"memory-{self._name}.pickle") as path:
                torch.cuda.memory._dump_snapshot(str(path))
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profile = None


@contextmanager
def garbage_by_step() -> Iterator[None]:
    """Enter a context in which Python collects no garbage by itself: `collect` does, at the same steps on all ranks."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def collect(step: int) -> None:
    """Collect garbage where the step's turn has come."""
    if step % COLLECT_EVERY == 0:
        gc.collect(1)
