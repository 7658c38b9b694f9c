"""The gradients of a step's batches: one batch after another, or on a CPU side by side, each with its own cores.

Small models leave a CPU's second core idle: their operations are too short to share. Two batches on a thread each make
more tokens a second than one batch on two threads (docs/experiments.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from plait.batch.batch import Batch
from plait.model.mot import MixtureOfTransformers

Loss = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch's share of the step's loss [], and its sums by modality [M]."""


def side_by_side(
    model: MixtureOfTransformers, num_batches: int, *, compiled: bool = False
) -> ThreadPoolExecutor | None:
    """Return threads for a step's batches, as many as there are cores for them; None where one follows the other."""
    cores = torch.get_num_threads()
    # token choice counts its load in place, and tracing for the compiler is no work for several threads
    in_place = any(t.ffn == "moe" and t.moe_routing == "token_choice" for t in model.config.towers.values())
    # ranks have their own cores, and exchange gradients in the backward pass
    alone = model.ranks.mesh is None
    workers = min(cores, num_batches)
    if model.device.type != "cpu" or workers < 2 or in_place or compiled or not alone:
        return None
    return ThreadPoolExecutor(workers, "plait-batch", initializer=torch.set_num_threads, initargs=(cores // workers,))


def add_gradients(
    parameters: Sequence[Tensor], batches: Sequence[Batch], loss: Loss, pool: ThreadPoolExecutor | None
) -> Tensor:
    """Add the gradients of all batches to the parameters', and return the sum of their sums [M].

    Side by side, each batch has its own gradients, added in the order of the batches whichever was done first: the
    result does not depend on the threads.
    """
    sums = []
    if pool is None or len(batches) == 1:
        for batch in batches:
            value, batch_sums = loss(batch)
            value.backward()
            sums.append(batch_sums.detach())
        return torch.stack(sums).sum(0)

    def gradients(batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        value, batch_sums = loss(batch)
        return torch.autograd.grad(value, list(parameters)), batch_sums.detach()

    for own, batch_sums in pool.map(gradients, batches):
        _add(parameters, own)
        sums.append(batch_sums)
    return torch.stack(sums).sum(0)


def _add(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    if parameters[0].grad is not None:
        torch._foreach_add_([p.grad for p in parameters], list(gradients))
        return
    held: set[int] = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # what is added to later is its own memory, as backward() sees to: the zeros of an idle head are one number
        # spread out, and two addends have one gradient
        own = gradient.stride() == parameter.stride() and gradient.data_ptr() not in held
        held.add(gradient.data_ptr())
        parameter.grad = gradient if own else torch.empty_like(parameter).copy_(gradient)
