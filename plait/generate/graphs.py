"""CUDA graphs of the step of decoding: its kernels are launched as one, so that no small one waits for the host."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

MOST_GRAPHS = 128
"""Shapes whose graphs are kept; the one that was captured first goes first."""

Step = Callable[[Tensor, Tensor, Any], Any]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Any]], tuple[Replay, Any]]


class Graphs:
    """Replays a function of two arrays and a shape, captured once for each shape.

    ``capture(function)`` runs a function without arguments and returns how to run it again, and its output, which is
    the same memory every time.
    """

    def __init__(self, function: Step, capture: Capture):
        self.function, self.capture = function, capture
        self.captured: dict[Hashable, tuple[Tensor, Tensor, Replay, Any]] = {}

    def __call__(self, ints: Tensor, floats: Tensor, shape: Hashable) -> Any:
        """Return the function's output; it holds until the next call."""
        if shape not in self.captured:
            if len(self.captured) == MOST_GRAPHS:
                self.captured.pop(next(iter(self.captured)))
            static_inputs = ints.clone(), floats.clone()
            self.captured[shape] = (*static_inputs, *self.capture(lambda: self.function(*static_inputs, shape)))
        my_ints, my_floats, replay, out = self.captured[shape]
        my_ints.copy_(ints, non_blocking=True)
        my_floats.copy_(floats, non_blocking=True)
        replay()
        return out


class CudaCapture:
    """Captures functions as CUDA graphs that share one pool of memory, as only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> tuple[Replay, Any]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries take their workspaces before the capture
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            out = function()
        return graph.replay, out
