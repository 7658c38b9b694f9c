"""Bytes of weights that operations read, counted as they run; and the least that a decoding step of some rows must."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.model.mot import MixtureOfTransformers

ROWS_ALONE = ("embedding", "index_select", "index")
"""Operations that read the rows they return, not the whole table."""


class WeightBytes(TorchDispatchMode):
    """Counts, while it is entered, the bytes that operations read of each of a model's weights, by name.

    A weight that is cast and then multiplied is read once, as it is kept; its copy is counted under ``copies``, written
    and read. What is kept inside a kernel (caches of a processor) is not seen.
    """

    def __init__(self, model: MixtureOfTransformers):
        super().__init__()
        self.read: dict[str, int] = {}
        self.copies = 0
        self._names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        name = func.overloadpacket.__name__.lstrip("_")
        for tensor in {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}.values():
            weight = self._names.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
            if weight is None:
                continue
            size = out.numel() * tensor.element_size() if name in ROWS_ALONE else tensor.nbytes
            if size:
                self.read[weight] = self.read.get(weight, 0) + size
            if name == "to_copy":
                self.copies += 2 * out.nbytes
        return out

    @property
    def total(self) -> int:
        """Bytes in all, copies included."""
        return sum(self.read.values()) + self.copies


def least_bytes(model: MixtureOfTransformers, tower: str, num_scored: int) -> int:
    """Return the bytes of weights that one decoding step of one row must read: each weight of the blocks and norms that
    a token of ``tower`` passes, once and as it is kept, one row of the embedding, and ``num_scored`` rows of the head.
    """
    table = "embed" if model.config.tie_embeddings else "head"
    total = 0
    for part, parameter in model.weights():
        if part.tower not in (None, tower) or part.place.component in ("latent_in", "latent_out"):
            continue
        row = parameter.shape[-1] * parameter.element_size()
        is_table = part.place.component in ("embed", "head")
        total += parameter.nbytes if not is_table else 0
        total += row * (part.place.component == "embed") + row * num_scored * (part.place.component == table)
    return total
