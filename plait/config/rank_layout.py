"""How the ranks of a launch share the work."""

from dataclasses import dataclass

from plait.common.errors import require
from plait.config.run import ParallelConfig


@dataclass(frozen=True)
class Layout:
    """How many ranks share each kind of work; their product is the number of ranks."""

    replicate: int = 1
    """Copies of the whole sharded model: gradients are summed over them once a step."""
    shard: int = 1
    """Ranks that parameters, gradients and optimizer state are spread over (FSDP2)."""
    tensor: int = 1
    """Ranks that every matrix is cut over."""
    context: int = 1
    """Ranks that the tokens of one batch are cut over."""

    @property
    def data(self) -> int:
        """Ranks, or groups of them, with their own batches."""
        return self.replicate * self.shard

    @property
    def sharers(self) -> int:
        """Ranks that one copy of a tensor rank's weights is spread over; context ranks are among them."""
        return self.shard * self.context

    @property
    def is_gathered(self) -> bool:
        """Whether weights are gathered for their use, by FSDP2: wherever several ranks have the same ones."""
        return self.data * self.context > 1

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.context

    @classmethod
    def of(cls, config: ParallelConfig, world_size: int) -> "Layout":
        """Return the layout of a number of ranks (raises ConfigError)."""
        rest = world_size
        for name in ("tensor", "context", "replicate"):
            size = getattr(config, name)
            require(rest % size == 0, f"parallel.{name}", size,
                    f"a divisor of {rest}, the ranks that are left ({world_size} in all)")  # fmt: skip
            rest //= size
        require(config.shard in (0, rest), "parallel.shard", config.shard,
                f"0 or {rest}: that many of {world_size} ranks are left")  # fmt: skip
        return cls(config.replicate, rest, config.tensor, config.context)
