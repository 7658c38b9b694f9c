"""Next-token prediction: cross-entropy that never holds all logits.

Shapes: n targets of a batch, V ids, M modalities.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.batch.batch import Batch
from plait.model.block import has_triton
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import Ranks, local
from plait.model.routing import merged

MAX_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Most logits held at once (64 and 512 MiB in float32), by device, elsewhere as on a CPU; more targets are scored piece
by piece, in the backward again. On a GPU small pieces would spend their time adding up gradients of the weight."""


def loss_sums(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, *, z_loss: float = 0.0) -> Tensor:
    """Return the summed cross-entropy plus ``z_loss * log^2 Z`` (Chameleon, arXiv 2405.09818) of each modality [M]."""
    loss, log_z = target_losses(model, hidden, batch)
    if z_loss:
        loss = loss + z_loss * log_z.square()
    return _by_modality(model, batch, loss)


def weighted_loss(
    model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, factors: Tensor, *, z_loss: float = 0.0,
    max_logits: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum [] of `loss_sums` times ``factors`` [M], and the sums [M] themselves, which have no gradient.

    Since the factors are known, the gradients are made with the loss, and no logits are made again or kept.
    """
    targets = batch.targets
    factors = factors.to(torch.promote_types(hidden[0].dtype, torch.float32))
    scale = factors.index_select(0, targets.modality) * targets.weight.to(factors.dtype)
    if model.ranks.tensor > 1:  # log Z is known once all ranks have scored
        loss, log_z = target_losses(model, hidden, batch, max_logits=max_logits)
        loss = loss + z_loss * log_z.square() if z_loss else loss
        return (loss * scale.to(loss.dtype)).sum(), _by_modality(model, batch, loss.detach())
    rows, ids, weights = _head_inputs(model, hidden, batch)
    scales = scale.split([len(i) for i in ids])
    pieces = [
        weighted_cross_entropy(x, weight, target, own, z_loss=z_loss, max_logits=max_logits)
        for x, weight, target, own in zip(rows, weights, ids, scales, strict=True)
    ]
    totals, losses = zip(*pieces, strict=True)
    return torch.stack(totals).sum(), _by_modality(model, batch, torch.cat(losses))


def target_losses(
    model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, *, max_logits: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood [n] and log Z [n] of every target, in the order of ``batch.targets``.

    ``max_logits`` is as in `linear_cross_entropy`.
    """
    rows, ids, weights = _head_inputs(model, hidden, batch)
    pieces = [
        linear_cross_entropy(x, weight, target, max_logits=max_logits, ranks=model.ranks)
        for x, weight, target in zip(rows, weights, ids, strict=True)
    ]
    loss, log_z = zip(*pieces, strict=True)
    return torch.cat(loss), torch.cat(log_z)


def _head_inputs(
    model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return for each head the hidden states [n, D] of its targets, their ids [n], and its weight [V, D]."""
    heads = model.head_weights()
    hidden = model.ranks.gather(hidden)
    rows = [h.index_select(0, r) for h, r in zip(hidden, batch.targets.rows, strict=True)]
    ids = list(batch.targets.ids.split([len(r) for r in batch.targets.rows]))
    if heads.is_shared:
        rows, ids = merged(rows), merged(ids)
    return rows, ids, [module.weight for module in heads.values()]


def _by_modality(model: MixtureOfTransformers, batch: Batch, loss: Tensor) -> Tensor:
    """Return the sums [M] of targets' losses [n], each with its weight."""
    sums = loss.new_zeros(len(model.config.modalities))
    return sums.index_add(0, batch.targets.modality, loss * batch.targets.weight.to(loss.dtype))


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, *, max_logits: int = 0, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Score targets [n] with hidden states x [n, D] and a head's weight [V, D]: loss [n] and log Z [n].

    The logits are a product in the precision of autocast, the rest is float32 at least. At most ``max_logits`` of them
    (0: `MAX_LOGITS`) are held at once. (torch 2.13 has a function of this name; it returns no log Z.)

    Tensor ranks hold a part of the head each and get the same result, from one exchange of two numbers a target.
    """
    cut = ranks if ranks is not None and ranks.tensor > 1 else None
    target = target - cut.first_id(len(weight)) if cut else target
    dtype, rows = _product(x, weight, max_logits)
    score = _LinearCrossEntropy.apply
    losses: tuple[Tensor, Tensor] = score(x, local(weight), target, dtype, rows, cut)  # type: ignore[no-untyped-call]
    return losses


def _product(x: Tensor, weight: Tensor, max_logits: int) -> tuple[torch.dtype, int]:
    """Return the precision of the logits, and how many targets are scored at once."""
    device, dtype = x.device.type, torch.promote_types(weight.dtype, x.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    most = max_logits or MAX_LOGITS.get(device, MAX_LOGITS["cpu"])
    return dtype, max(1, most // len(local(weight)))


def weighted_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, scale: Tensor, *, z_loss: float = 0.0, max_logits: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the sum [] of each target's loss (`linear_cross_entropy`) plus ``z_loss * log^2 Z``, times its ``scale``
    [n], and the losses [n], which have no gradient. The gradients of the sum are made with it."""
    dtype, rows = _product(x, weight, max_logits)
    scale = scale.to(torch.promote_types(x.dtype, torch.float32))
    score = _WeightedCrossEntropy.apply
    made: tuple[Tensor, Tensor] = score(x, local(weight), target, scale, z_loss, dtype, rows)  # type: ignore[no-untyped-call]
    return made


class _WeightedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head with what each target counts: its gradients are made piece by piece as it is.

    Three products for each piece, as of all logits at once; where the loss alone is made first, the backward pass
    needs a fourth one, of the same logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, target: Tensor, scale: Tensor, z_loss: float, dtype: torch.dtype, rows: int
    ) -> tuple[Tensor, Tensor]:
        head, losses = weight.to(dtype), []
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i in range(0, max(1, len(x)), rows):
            x_r, target_r, scale_r = (t[i : i + rows] for t in (x, target, scale))
            logits = _logits(x_r, head)
            if _fuses(x):
                log_z, score = _fused(_scores)(logits, target_r)
                all_r = scale_r * (1 + 2 * z_loss * log_z)
                g = _fused(_for_logits)(logits, log_z, all_r, target_r, -scale_r)
            else:  # the logits become their own gradient, so that one copy of them is all there is
                score, most = logits.gather(1, target_r[:, None]).squeeze(1), logits.amax(-1)
                z = logits.sub_(most[:, None]).exp_().sum(-1)
                log_z = most + z.log()
                all_r = scale_r * (1 + 2 * z_loss * log_z)
                g = logits.mul_((all_r / z)[:, None]).scatter_add_(1, target_r[:, None], -scale_r[:, None])
            losses.append(log_z - score + z_loss * log_z.square())
            _add_products(g.to(dtype), head, x_r, None if for_x is None else for_x[i : i + rows], for_weight)
        loss = torch.cat(losses)
        ctx.mark_non_differentiable(loss)
        ctx.gradients = for_x, for_weight
        return (loss * scale).sum(), loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_total: Tensor, for_loss: Tensor) -> tuple[Tensor | None, ...]:
        for_x, for_weight = ctx.gradients  # used up: what follows changes them
        ctx.gradients = None
        for gradient in (for_x, for_weight):
            if gradient is not None:
                gradient.mul_(for_total)
        return for_x, for_weight, None, None, None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head, ``rows`` targets at a time, for the loss and again for its gradients.

    Where one piece holds all targets, its logits are kept instead. The gradient of the weight is summed in the
    weight's own precision, whatever the product's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype, rows: int, cut: Ranks | None
    ) -> tuple[Tensor, Tensor]:
        head, picked, log_zs = weight.to(dtype), [], []
        if cut is not None:  # targets of other ranks are outside
            ctx.inside = (target >= 0) & (target < len(weight))
            target = target.clamp(0, len(weight) - 1)
        for x_r, target_r in zip(x.split(rows), target.split(rows), strict=True):
            logits = _logits(x_r, head)
            log_z_r, score_r = _fused(_scores)(logits, target_r) if _fuses(x) else _scores(logits, target_r)
            log_zs.append(log_z_r)
            picked.append(score_r)
        score, log_z = torch.cat(picked), torch.cat(log_zs)
        if cut is not None:
            scores, log_z_of_parts = cut.stacked(torch.stack([score * ctx.inside, log_z])).unbind(1)
            score, log_z = scores.sum(0), log_z_of_parts.logsumexp(0)
        ctx.save_for_backward(x, weight, target, log_z, logits if len(picked) == 1 else None)
        ctx.dtype, ctx.rows, ctx.cut = dtype, rows, cut
        return log_z - score, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_loss: Tensor, for_log_z: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a row of logits is (for_loss + for_log_z) softmax - for_loss onehot(target)."""
        x, weight, target, log_z, saved_logits = ctx.saved_tensors
        for_score = -for_loss
        if ctx.cut is not None:  # each rank was given a part of the gradient of what all of them computed
            for_loss, for_log_z = ctx.cut.summed(torch.stack([for_loss, for_log_z]))
            for_score = -for_loss * ctx.inside
        head, for_x = weight.to(ctx.dtype), torch.empty_like(x)
        for_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        each = (x, target, log_z, for_loss + for_log_z, for_score, for_x)
        for x_r, target_r, log_z_r, all_r, score_r, for_x_r in zip(*(t.split(ctx.rows) for t in each), strict=True):
            logits = _logits(x_r, head) if saved_logits is None else saved_logits
            if _fuses(x):
                g = _fused(_for_logits)(logits, log_z_r, all_r, target_r, score_r)
            else:
                g = torch.sub(logits, log_z_r[:, None], out=logits if saved_logits is None else None)
                g = g.exp_().mul_(all_r[:, None]).scatter_add_(1, target_r[:, None], score_r[:, None])
            _add_products(g.to(ctx.dtype), head, x_r, for_x_r, for_weight)
        return for_x, for_weight, None, None, None, None


def _add_products(g: Tensor, head: Tensor, x: Tensor, for_x: Tensor | None, for_weight: Tensor | None) -> None:
    """Set the gradients of hidden states [n, D] and add to those of the weight [V, D], from those of logits [n, V]."""
    if for_x is not None:
        for_x.copy_(g @ head)
    if for_weight is None:
        return
    if for_weight.dtype == g.dtype:
        for_weight.addmm_(g.T, x.to(g.dtype))
    else:
        for_weight.add_(g.T @ x.to(g.dtype))


def _logits(x: Tensor, head: Tensor) -> Tensor:
    """Return the product, on a CPU in float32 at least; on a GPU what reads it does that on the way."""
    logits = F.linear(x.to(head.dtype), head)
    return logits if _fuses(logits) else _wide(logits)


def _fuses(x: Tensor) -> bool:
    """Whether what reads logits is one kernel, which needs no copy of them in a wider precision."""
    return x.is_cuda


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scores(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log Z [n] of logits [n, V], and the targets' own logits [n]."""
    wide = _wide(logits)
    return wide.logsumexp(-1), wide.gather(1, target[:, None]).squeeze(1)


def _for_logits(logits: Tensor, log_z: Tensor, for_all: Tensor, target: Tensor, for_score: Tensor) -> Tensor:
    """Return the gradient of logits [n, V], in their precision, without a copy in a wider one once it is compiled."""
    g = (_wide(logits) - log_z[:, None]).exp() * for_all[:, None]
    is_target = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    return torch.where(is_target, g + for_score[:, None], g).to(logits.dtype)


@functools.cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as one kernel, where kernels can be compiled: it reads and writes logits once."""
    return torch.compile(function, dynamic=True) if has_triton() else function
