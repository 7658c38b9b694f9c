"""Next-token prediction: cross-entropy that never holds all logits.

Shapes: n targets of a batch, V ids, M modalities.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from plait.batch.batch import Batch
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import Ranks, local
from plait.model.routing import merged

MAX_LOGITS = 1 << 24
"""Most logits held at once (64 MiB in float32); more targets are scored piece by piece, in the backward again."""


def loss_sums(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, *, z_loss: float = 0.0) -> Tensor:
    """Return the summed cross-entropy plus ``z_loss * log^2 Z`` (Chameleon, arXiv 2405.09818) of each modality [M]."""
    loss, log_z = target_losses(model, hidden, batch)
    if z_loss:
        loss = loss + z_loss * log_z.square()
    sums = loss.new_zeros(len(model.config.modalities))
    return sums.index_add(0, batch.targets.modality, loss * batch.targets.weight.to(loss.dtype))


def target_losses(
    model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, *, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood [n] and log Z [n] of every target, in the order of ``batch.targets``."""
    heads, ranks = model.head_weights(), model.ranks
    hidden = ranks.gather(hidden)
    rows = [h.index_select(0, r) for h, r in zip(hidden, batch.targets.rows, strict=True)]
    ids = list(batch.targets.ids.split([len(r) for r in batch.targets.rows]))
    weights = [module.weight for module in heads.values()]
    if heads.is_shared:
        rows, ids = merged(rows), merged(ids)
    pieces = [
        linear_cross_entropy(x, weight, target, max_logits=max_logits, ranks=ranks)
        for x, weight, target in zip(rows, weights, ids, strict=True)
    ]
    loss, log_z = zip(*pieces, strict=True)
    return torch.cat(loss), torch.cat(log_z)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, *, max_logits: int = MAX_LOGITS, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Score targets [n] with hidden states x [n, D] and a head's weight [V, D]: loss [n] and log Z [n].

    The logits are a product in the precision of autocast, the rest is float32 at least. At most ``max_logits`` of them
    are held at once. (torch 2.13 has a function of this name; it returns no log Z, and it makes gradients in the
    forward pass for one sum of all targets, where modalities have factors that only the backward pass brings.)

    Tensor ranks hold a part of the head each and get the same result, from one exchange of two numbers a target.
    """
    device, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    cut = ranks if ranks is not None and ranks.tensor > 1 else None
    target = target - cut.first_id(len(weight)) if cut else target
    part = local(weight)
    rows = max(1, max_logits // len(part))
    score = _LinearCrossEntropy.apply
    losses: tuple[Tensor, Tensor] = score(x, part, target, dtype, rows, cut)  # type: ignore[no-untyped-call]  # torch's
    return losses


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
            log_zs.append(logits.logsumexp(-1))
            picked.append(logits.gather(1, target_r[:, None]).squeeze(1))
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
            g = torch.sub(logits, log_z_r[:, None], out=logits if saved_logits is None else None)
            g = g.exp_().mul_(all_r[:, None]).scatter_add_(1, target_r[:, None], score_r[:, None])
            g = g.to(ctx.dtype)
            for_x_r.copy_(g @ head)
            if for_weight is None:
                continue
            if for_weight.dtype == g.dtype:
                for_weight.addmm_(g.T, x_r.to(g.dtype))
            else:
                for_weight.add_(g.T @ x_r.to(g.dtype))
        return for_x, for_weight, None, None, None, None


def _logits(x: Tensor, head: Tensor) -> Tensor:
    logits = F.linear(x.to(head.dtype), head)
    return logits if logits.dtype == torch.float64 else logits.float()
