"""Memory of a forward and backward pass, found by running the model's own code on tensors without values.

Nothing here restates what the model keeps for its backward pass: blocks run under torch's FakeTensorMode, where every
tensor has a shape and a device and no values, and the bytes of all storages that are alive are counted. So a plan is
right for every kind of tower, and stays right when the model changes. Models of a few blocks are traced; one more
block always costs the same, so any depth follows from two of them.
"""

import contextlib
import functools
import importlib.util
import math
import sys
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.batch.documents import Document
from plait.batch.share import share_of
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.model import mot
from plait.model.attention import AttentionPlan
from plait.model.frozen import is_frozen
from plait.model.mask import varlen_calls
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast
from plait.objectives import next_token, weighted_loss
from plait.objectives.diffusion import corrupt
from plait.plan.exchange import PlannedRanks, made_up_ranks

DEPTHS = (2, 3)
"""Blocks of the models that are traced: the first and last ones may differ from those between."""


@dataclass(frozen=True)
class Pass:
    """Bytes of one forward and backward pass of one rank, without parameters and their gradients."""

    kept: float
    """What the forward pass leaves for the backward one: the activations."""
    casts: float
    """Weights in the precision of the products, kept for the backward pass where the forward pass makes them."""
    loss: float
    """Most beyond ``kept`` while the losses and their gradients are computed: the logits, mostly."""
    backward: float
    """Most beyond ``kept`` while the blocks' gradients are computed."""
    tensor: float
    """Sent to other tensor ranks."""
    context: float
    """Sent to other context ranks."""


def trace_pass(
    config: RunConfig, documents: Sequence[Document], *, device: str, tensor: int = 1, context: int = 1
) -> Pass:
    """Return the memory and the messages of a pass over a batch of documents.

    ``device`` is "cpu" or "cuda" (which need not be there); ``tensor`` and ``context`` ranks share the batch.
    """
    pad = math.lcm(config.data.pad_rows_to, tensor * context)
    batch = corrupt(pack(documents, config.model, pad_rows_to=pad), config.diffusion, config.seed)
    batch = share_of(batch, PlannedRanks.of_sizes(context=context, tensor=tensor))
    low, high = (
        _trace(config, of_rank(_of_depth(config.model, n), tensor), batch, (context, tensor), device) for n in DEPTHS
    )
    steps = (config.model.num_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    values = {f.name: (getattr(low, f.name), getattr(high, f.name)) for f in fields(Pass)}
    return Pass(**{name: max(0.0, a + steps * (b - a)) for name, (a, b) in values.items()})


def _of_depth(model: ModelConfig, num_layers: int) -> ModelConfig:
    """Return a model of some blocks like the last one of ``model``."""
    return replace(model, num_layers=num_layers, untied=tuple(sorted(model.untied_at(model.num_layers - 1))))


def of_rank(model: ModelConfig, tensor: int) -> ModelConfig:
    """Return the model that one of ``tensor`` ranks computes: its heads, its part of each network and of the ids."""
    if tensor == 1:
        return model
    heads, kv_heads = model.num_heads // tensor, model.num_kv_heads // tensor
    towers = {name: replace(t, ffn_width=t.ffn_width // tensor) for name, t in model.towers.items()}
    modalities = {name: replace(m, vocab_size=-(-m.vocab_size // tensor)) for name, m in model.modalities.items()}
    return replace(
        model, num_heads=heads, num_kv_heads=kv_heads, head_dim=model.head_dim, towers=towers, modalities=modalities
    )


def _trace(config: RunConfig, model: ModelConfig, batch: Batch, sizes: tuple[int, int], device: str) -> Pass:
    ranks = PlannedRanks.of_sizes(context=sizes[0], tensor=sizes[1])
    precision = config.train.precision
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_tensor_is_kept())
        stack.enter_context(made_up_ranks(ranks))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_operations_of(device))
        model = _without_values(model)
        model.recompute_blocks, model.ranks = config.train.checkpoint_activations, ranks
        _keep_no_gradients(model, config.frozen_towers)
        alive = stack.enter_context(Alive(model))
        with _precision(precision):
            hidden = model(batch)
        activations, casts = alive.bytes, alive.casts
        alive.peak = 0
        ends = [h.detach().requires_grad_(h.requires_grad) for h in hidden]
        with _precision(precision):
            total, _ = weighted_loss(model, ends, batch, torch.ones(len(model.config.modalities)), z_loss=1.0)
        total.backward()
        del total
        loss = alive.peak - activations
        alive.peak = 0
        pairs = [(h, e.grad) for h, e in zip(hidden, ends, strict=True) if h.requires_grad]
        del hidden, ends
        torch.autograd.backward(*zip(*pairs, strict=True))
        return Pass(
            activations, casts, loss, max(0, alive.peak - activations), ranks.sent["tensor"], ranks.sent["context"]
        )


def _without_values(config: ModelConfig) -> MixtureOfTransformers:
    """Return a model whose parameters have no values; on "meta" first, where no random number is drawn."""
    with torch.device("meta"):
        model = MixtureOfTransformers(config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = parameter if parameter is None else Parameter(_empty(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = _empty(buffer)
    return model


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


@contextlib.contextmanager
def _operations_of(device: str) -> Iterator[None]:
    """Let the model call what it calls on a device, on tensors of the CPU: torch without CUDA knows no others.

    On a GPU these are variable-length attention, the fused RMSNorm, and plait's kernel for heads where Triton is
    installed. Their results have shapes and no values.
    """
    if device == "cpu":
        yield
        return

    def plan(cls, segments, num_tokens, place, dtype=torch.float32):
        return cls.by_varlen(segments, varlen_calls(segments), ("cpu", False))

    def rms_norm(x, shape, weight, eps):
        return torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]

    most = next_token.MAX_LOGITS["cuda"]
    stand_ins = [(AttentionPlan, "of", classmethod(plan)), (torch.nn.functional, "rms_norm", rms_norm),
                 (next_token, "MAX_LOGITS", {"cpu": most})]  # fmt: skip
    if importlib.util.find_spec("triton") is not None:
        from plait.model import kernels

        stand_ins.append((mot, "heads_kernel", lambda device, config: kernels.heads_to_sequence))
    before = [vars(owner)[name] for owner, name, _ in stand_ins]
    for owner, name, value in stand_ins:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(stand_ins, before, strict=True):
            setattr(owner, name, value)


def _keep_no_gradients(model: MixtureOfTransformers, frozen: Collection[str]) -> None:
    """Let every gradient go as soon as it is there, and make none for frozen towers."""
    for part, parameter in model.weights():
        if is_frozen(part, model.config, frozen):
            parameter.requires_grad_(False)
        else:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


def _precision(precision: str) -> contextlib.AbstractContextManager:
    """Return the precision of products; what is float8 beside bfloat16 is short-lived."""
    return autocast(precision if precision == "float32" else "bfloat16", torch.device("cpu"))


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that are still alive, and the most there ever were.

    A model's own parameters and buffers are not counted, and casts of them apart.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.bytes = self.peak = self.casts = 0
        self._storages: dict[int, weakref.ref] = {}
        own = [*model.parameters(), *model.buffers()]
        self._own = {_key(t) for t in own}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = _grouped_product(func, args) if _is_grouped(func) else func(*args, **(kwargs or {}))
        casts = func is torch.ops.aten._to_copy.default and _key(args[0]) in self._own
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor, casts)
        return out

    def _count(self, tensor: Tensor, is_cast: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._own or key in self._storages:
            return
        self._storages[key] = weakref.ref(storage, functools.partial(self._gone, key, storage.nbytes(), is_cast))
        self._add(storage.nbytes(), is_cast)

    def _gone(self, key: int, size: int, is_cast: bool, _: weakref.ref) -> None:
        del self._storages[key]
        self._add(-size, is_cast)

    def _add(self, size: int, is_cast: bool) -> None:
        if is_cast:
            self.casts += size
        else:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_grouped(func: Any) -> bool:
    return func is getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)


def _grouped_product(func: Any, args: tuple) -> Tensor:
    """Return the result of torch's grouped product, whose shapes it knows for bfloat16 alone."""
    left, right = args[:2]
    if left.ndim == right.ndim == 2:  # [K, n] by [n, N] in E groups
        return left.new_empty(args[2].shape[0], left.shape[0], right.shape[1])
    return left.new_empty(left.shape[0], right.shape[-1])


@contextlib.contextmanager
def no_tensor_is_kept() -> Iterator[None]:
    """Empty plait's caches afterwards: what they kept has no values."""
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if name.startswith(("plait.model", "plait.objectives")):
                for value in vars(module).values():
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()
