"""Next-token prediction: cross-entropy that never holds all logits, and the token sampler.

Shapes: n targets of a batch, V ids, M modalities, B rows to sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plait.batch import Batch
from plait.model.mot import MixtureOfTransformers
from plait.model.routing import merged

MAX_LOGITS = 1 << 24
"""Most logits held at once (64 MiB in float32); more targets are scored in chunks that the backward recomputes."""


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
    heads = model.head_weights()
    rows = [h.index_select(0, r) for h, r in zip(hidden, batch.targets.rows, strict=True)]
    ids = list(batch.targets.ids.split([len(r) for r in batch.targets.rows]))
    weights = [module.weight for module in heads.values()]
    if heads.is_shared:
        rows, ids = merged(rows), merged(ids)
    pieces = [
        _score(x, weight, target)
        if x.shape[0] * weight.shape[0] <= max_logits
        else _score_in_chunks(x, weight, target, max(1, max_logits // weight.shape[0]))
        for x, weight, target in zip(rows, weights, ids, strict=True)
    ]
    loss, log_z = zip(*pieces, strict=True)
    return torch.cat(loss), torch.cat(log_z)


def _score(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, D], weight [V, D], target [n]: negative log-likelihood and log Z, in float32 at least."""
    logits = F.linear(x, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    at_target = target[:, None]
    loss = -logits.log_softmax(-1).gather(1, at_target).squeeze(1)
    return loss, loss + logits.gather(1, at_target).squeeze(1)


def _score_in_chunks(x: Tensor, weight: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    pieces = [
        checkpoint(_score, a, weight, b, use_reentrant=False)
        for a, b in zip(x.split(size), target.split(size), strict=True)
    ]
    loss, log_z = zip(*pieces, strict=True)
    return torch.cat(loss), torch.cat(log_z)


def sample(
    logits: Tensor, uniform: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, allowed: Tensor
) -> Tensor:
    """Draw one id per row by inverting the distribution at ``uniform`` [B]; the rows' settings are all [B].

    logits [B, V], allowed [B, V] booleans. temperature 0 is greedy, top_k 0 and top_p 1 keep everything. The draw of a
    row depends on its own logits and number alone, so that it does not change with the batch.
    """
    logits = logits.masked_fill(~allowed, float("-inf"))
    scaled = logits / temperature.clamp_min(1e-6)[:, None]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    rank = torch.arange(logits.shape[1], device=logits.device)
    keep = (before < top_p[:, None]) & ((rank < top_k[:, None]) | (top_k[:, None] == 0))
    keep = keep & ((rank == 0) | (temperature[:, None] > 0))
    probability = probability * keep
    cumulative = probability.cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    # the first place whose cumulative probability exceeds the threshold; masked ids have no width, so are never hit
    place = (cumulative <= threshold).sum(-1, keepdim=True)
    place = torch.minimum(place, keep.sum(-1, keepdim=True) - 1)
    return order.gather(1, place).squeeze(1)
