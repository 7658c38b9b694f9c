"""Averaged weights: an exponential moving average of the parameters, which samples and figures are made with.

One tensor beside each trained parameter, laid out as it is: a sharded parameter has a sharded average, and nothing
here gathers, copies a whole model, or waits for the device.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait.model.mot import MixtureOfTransformers


class AveragedWeights:
    """The average of a model's trained parameters; it starts as they are. Fixed parameters have none.

    After update n (from 0), average = d * average + (1 - d) * parameter with d = min(decay, (1 + n) / (10 + n)), so
    that the first steps do not hold on to the start.
    """

    def __init__(self, model: MixtureOfTransformers, decay: float):
        self.decay = decay
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self._parameters.items()}
        """The averages by parameter name; while `applied`, the parameters."""
        first = next(iter(self._parameters.values()))
        self.num_updates = torch.zeros((), dtype=first.dtype, device=first.device)
        """[] n, counted on the device."""

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Average in the present parameters; nothing changes where ``skipped`` [] is 1 (0: the step was done)."""
        done = 1 - skipped
        # 1 - (1 + n) / (10 + n), written so that nothing cancels
        weight = (9 / (10 + self.num_updates)).clamp_min(1 - self.decay) * done
        averages = [_own(t) for t in self.tensors.values()]
        torch._foreach_lerp_(averages, [_own(p) for p in self._parameters.values()], [weight] * len(averages))
        self.num_updates += done

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the model's parameters; afterwards both are as they were, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange parameters and averages in place, one by one, so that only one is held twice."""
        for name, parameter in self._parameters.items():
            weight, average = _own(parameter), _own(self.tensors[name])
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)


def _own(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
