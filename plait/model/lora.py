"""LoRA on the matrices of a tower: y = x W^T + alpha / rank (x A^T) B^T, where W stays as it is (arXiv 2106.09685).

B begins as zero, so that at first nothing changes. A tower's `lora` record says which matrices have one; these are
parameters of the model as all others are, cut and sharded with the matrix that they change. To generate, they are
merged into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.batch.batch import Routing
from plait.config.model import LoraConfig, ModelConfig
from plait.model.layers import Linear
from plait.model.ranks import local
from plait.model.traits import Trait


class LoRA(nn.Module):
    """The change of one matrix [O, I]: ``a`` [r, I] and ``b`` [O, r]."""

    def __init__(self, linear: Linear, rank: int, scale: float):
        super().__init__()
        outputs, inputs = linear.weight.shape
        cut = linear.traits["weight"].cut
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))
        # small beside the matrix: AdamW moves both, without decay
        self.traits = {"a": Trait("normal", (3 * inputs) ** -0.5, cut=1 if cut == 1 else None, adapts=True),
                       "b": Trait("zeros", cut=0 if cut == 0 else None, adapts=True)}  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added for x [..., I]: [..., O]."""
        return F.linear(F.linear(x, local(self.a)), local(self.b)) * self.scale


def add_lora(module: nn.Module, config: LoraConfig) -> None:
    """Give every matrix within a module a change that is zero at first."""
    for linear in linears_in(module).values():
        linear.lora = LoRA(linear, config.rank, config.alpha / config.rank)


def linears_in(module: nn.Module) -> dict[str, Linear]:
    """Return the matrices within a module, by their names."""
    return {name: inner for name, inner in module.named_modules() if isinstance(inner, Linear)}


def adapted_in(module: nn.Module) -> list[tuple[str, LoRA]]:
    """Return the names of the matrices within a module that have a change, with it."""
    return [(name, m.lora) for name, m in linears_in(module).items() if isinstance(m.lora, LoRA)]


@dataclass(frozen=True)
class Asked:
    """The adapters that the tokens of a step are computed with: ``numbers`` [T], 0 for none, and which there are."""

    numbers: Tensor
    used: tuple[int, ...]


class Adapters:
    """The adapters beside a model, by name, and which of them each row of the step at hand asks for."""

    def __init__(self, names: Sequence[str] = ()):
        self.names = ["", *names]
        self.rows: list[Tensor] = []
        """For each tower [N_k]."""
        self.used: tuple[int, ...] = ()

    def choose(self, routing: Routing, asked: Asked | None) -> None:
        """Take in what the tokens of a step ask for."""
        self.used = asked.used if asked else ()
        if asked:
            self.rows = list(asked.numbers.index_select(0, routing.to_towers).split(routing.padded_sizes))


class Chosen(nn.Module):
    """The changes of one matrix by several adapters, each for the rows of a tower that ask for it.

    ``tower`` is the tower's number, None where towers share the matrix.
    """

    def __init__(self, adapters: Adapters, tower: int | None):
        super().__init__()
        self.adapters, self.tower = adapters, tower
        self.changes: dict[int, Change] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added for x [N, I]: [N, O], or 0 where nothing is."""
        rows = self.adapters.rows
        total = x.new_zeros(())
        for number in self.adapters.used:
            if number in self.changes:
                change = self.changes[number]
                asks = (torch.cat(rows) if self.tower is None else rows[self.tower]) == number
                total = total + F.linear(F.linear(x, change.a), change.b) * (asks[:, None] * change.scale)
        return total


@dataclass(frozen=True)
class Change:
    """The change of one matrix, as it is kept apart from a model."""

    a: Tensor
    b: Tensor
    scale: float

    def beside(self, weight: Tensor) -> "Change":
        """Return it on the matrix's device, in its precision, in float32 at least."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return Change(self.a.to(weight.device, dtype), self.b.to(weight.device, dtype), self.scale)

    def added_to(self, weight: Tensor) -> Tensor:
        """Return the matrix W + scale B A, in its own precision."""
        wide = [t.to(weight.device, torch.float64) for t in (weight, self.b, self.a)]
        return (wide[0] + self.scale * (wide[1] @ wide[2])).to(weight.dtype)


def without_lora(config: ModelConfig) -> ModelConfig:
    """Return the config of a model once its changes are merged."""
    return replace(config, towers={name: replace(t, lora=None) for name, t in config.towers.items()})


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Add the changes of the matrices within a module to these, in place."""
    for linear in linears_in(module).values():
        if isinstance(linear.lora, LoRA):
            change = Change(linear.lora.a, linear.lora.b, linear.lora.scale)
            linear.weight.copy_(change.added_to(linear.weight))
            linear.lora = None
