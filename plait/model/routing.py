"""THE routing of tokens to towers.

The stream is a list with one tensor [N_k, D_k] per tower, in the order of the config. Tokens are sorted by tower once
a step (`plait.batch.batch.Routing`, built on the host); every module that has one copy per tower is a `PerTower`. Only
attention needs sequence order: `to_sequence` and `to_towers` are the two permutations around it.
"""

from collections.abc import Callable, ItemsView, Iterable, Iterator, ValuesView
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from plait.batch.batch import Routing
from plait.model.traits import Place, WeightRecord, traits_of

SHARED = "shared"
M = TypeVar("M", bound=nn.Module)


class Stack(nn.ModuleList, Generic[M]):
    """Modules of one kind, in order."""

    if TYPE_CHECKING:  # torch does not say of which kind

        def __iter__(self) -> Iterator[M]: ...


class ByName(nn.ModuleDict, Generic[M]):
    """Modules by the name of a modality or tower, which may be one of torch's own attributes (`keys`, `forward`)."""

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self._modules[name] = module

    if TYPE_CHECKING:  # torch does not say of which kind

        def __getitem__(self, name: str) -> M: ...

        def items(self) -> ItemsView[str, M]: ...

        def values(self) -> ValuesView[M]: ...


class PerTower(ByName[M]):
    """One module per tower, or one that all towers share.

    Parameters are named ``{component}.{tower}...`` or ``{component}.shared...``. Every tower's module is called
    even where it has no tokens, so that its parameters get zero gradients and no collective waits for them.
    """

    def __init__(self, make: Callable[[str], M], towers: Iterable[str], *, untied: bool):
        towers = list(towers)
        # one tower keeps its own name: a dense model is a mixture of one
        shared = not untied and len(towers) > 1
        super().__init__({SHARED: make(towers[0])} if shared else {t: make(t) for t in towers})
        self.is_shared = shared

    def owned(self) -> list[tuple[str | None, M]]:
        """Return each module with the tower that owns it, None where towers share it."""
        return [(None if self.is_shared else name, module) for name, module in self.items()]

    def parts(self, prefix: str, component: str, **where: Any) -> Iterator[WeightRecord]:
        """Yield what each tensor is; ``prefix`` is this module's name, ``where`` the layer or modality of its place."""
        for (tower, module), key in zip(self.owned(), self, strict=True):
            for inner, trait in traits_of(module):
                yield WeightRecord(f"{prefix}.{key}.{inner}", Place(component, inner, **where), tower, trait)

    def forward(self, streams: list[Tensor], *extra: list[Any]) -> list[Any]:
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
    if routing.in_order:
        return next(stream for stream in streams if len(stream))
    return merged(streams)[0].index_select(0, routing.to_sequence)


def to_towers(x: Tensor, routing: Routing) -> Tensor:
    """Bring a tensor [T, ...] in sequence order into tower order [R, ...]; padding rows repeat the first token."""
    if routing.in_order:
        return x
    places = routing.to_towers, routing.to_sequence
    moved: Tensor = _ToTowers.apply(x, *places)  # type: ignore[no-untyped-call]  # torch says no types
    return moved


class _ToTowers(torch.autograd.Function):
    """A gather whose gradient is a gather too: nothing flows back from padding rows, and each token has one row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_towers: Tensor, to_sequence: Tensor) -> Tensor:
        ctx.save_for_backward(to_sequence)
        return x.index_select(0, to_towers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None
