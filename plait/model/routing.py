"""THE routing of tokens to towers.

The stream is a list with one tensor [N_k, D_k] per tower, in the order of the config. Tokens are sorted by tower once
a step (`plait.batch.Routing`, built on the host); every module that has one copy per tower is a `PerTower`. Only
attention needs sequence order: `to_sequence` and `to_towers` are the two permutations around it.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from plait.batch import Routing

SHARED = "shared"


class PerTower(nn.ModuleDict):
    """One module per tower, or one that all towers share.

    Parameters are named ``{component}.{tower}...`` or ``{component}.shared...``. Every tower's module is called
    even where it has no tokens, so that its parameters get zero gradients and no collective waits for them.
    """

    def __init__(self, make: Callable[[str], nn.Module], towers: Iterable[str], *, untied: bool):
        towers = list(towers)
        # one tower keeps its own name: a dense model is a mixture of one
        super().__init__({t: make(t) for t in towers} if untied or len(towers) == 1 else {SHARED: make(towers[0])})

    @property
    def is_shared(self) -> bool:
        return SHARED in self

    def forward(self, streams: list[Tensor], *extra: list) -> list:
        """Apply tower k's module to stream k; ``extra`` are further lists with one item per stream.

        A shared module is applied to whatever streams there are: pass them `merged` for one large matrix product.
        """
        modules = [self[SHARED]] * len(streams) if self.is_shared else self.values()
        return [module(*arguments) for module, *arguments in zip(modules, streams, *extra, strict=True)]


def merged(streams: list[Tensor]) -> list[Tensor]:
    """Return the streams as a list of one tensor [R, D], for a shared module."""
    return streams if len(streams) == 1 else [torch.cat(streams)]


def separated(streams: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Return one stream per tower, of the given padded sizes, undoing `merged` where needed."""
    return list(streams[0].split(sizes)) if len(streams) == 1 and len(sizes) > 1 else streams


def to_sequence(streams: list[Tensor], routing: Routing) -> Tensor:
    """Bring streams [N_k, ...] into sequence order [T, ...]."""
    return merged(streams)[0].index_select(0, routing.to_sequence)


def to_towers(x: Tensor, routing: Routing) -> Tensor:
    """Bring a tensor [T, ...] in sequence order into tower order [R, ...]; padding rows repeat the first token."""
    return _ToTowers.apply(x, routing.to_towers, routing.to_sequence)


class _ToTowers(torch.autograd.Function):
    """A gather whose gradient is a gather too: nothing flows back from padding rows, and each token has one row."""

    @staticmethod
    def forward(ctx, x: Tensor, to_towers: Tensor, to_sequence: Tensor) -> Tensor:
        ctx.save_for_backward(to_sequence)
        return x.index_select(0, to_towers)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def tower_of_parameter(name: str, towers: Iterable[str]) -> str:
    """Return the tower a parameter belongs to, or "" where it is shared."""
    return next((part for part in reversed(name.split(".")) if part in towers), "")
