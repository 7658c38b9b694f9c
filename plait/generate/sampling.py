"""How the next id is drawn, without ever sorting what need not be sorted and without asking the device.

Shapes: B rows to draw for, V ids.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.config.generation import SamplingConfig


@dataclass
class Limits:
    """The settings of B rows as numbers, and what the host knows of them."""

    numbers: np.ndarray
    """[6, B] uniform number, 1 / temperature, top_k (0: all), top_p, guidance, media guidance."""
    keep: int
    """Largest top_k where every row that limits its ids does so by one; 0 where none does, -1 where some top_p has
    no top_k beside it."""

    @classmethod
    def of(cls, settings: list[SamplingConfig], uniform: list[float]) -> "Limits":
        """Collect settings; a greedy row (temperature 0) keeps one id, the first one of several likeliest."""
        rows, keep = [], 0
        for s, number in zip(settings, uniform, strict=True):
            greedy = s.temperature == 0
            k = 1 if greedy else s.top_k
            if k == 0 and s.top_p < 1:
                keep = -1
            elif keep >= 0:
                keep = max(keep, k)
            rows.append((0.0 if greedy else number, 1.0 if greedy else 1 / max(s.temperature, 1e-6), k,
                         1.0 if greedy else s.top_p, s.guidance, s.media_guidance))  # fmt: skip
        return cls(np.array(rows, np.float64).T, keep)


def sample(
    logits: Tensor, blocked: Tensor, uniform: Tensor, scale: Tensor, top_k: Tensor, top_p: Tensor, *, keep: int
) -> Tensor:
    """Draw one id per row by inverting the distribution at ``uniform`` [B]; returns [B].

    The other arguments are those of `weights_of`. A row's draw depends on its own logits and number alone, not on the
    batch.
    """
    return invert(weights_of(logits, blocked, scale, top_k, top_p, keep=keep), uniform)


def weights_of(logits: Tensor, blocked: Tensor, scale: Tensor, top_k: Tensor, top_p: Tensor, *, keep: int) -> Tensor:
    """Return the probabilities [B, V] of the ids that are kept, and 0 for the others: their sum may be below 1.

    logits [B, V]; ``blocked`` [B, V] is 0 for ids that may follow and -inf for others; the settings are [B], ``keep``
    as in `Limits`. A row keeps its top_k likeliest ids, those that make up top_p of the probability, and what is
    exactly as likely as the last one kept.
    """
    probability = torch.addcmul(blocked, logits, scale[:, None]).softmax(-1)
    if keep:
        probability = probability * (probability >= _least_kept(probability, top_k, top_p, keep)[:, None])
    return probability


def invert(probability: Tensor, uniform: Tensor) -> Tensor:
    """Draw one id per row of probabilities [B, V], which need not add up to 1, at ``uniform`` [B]; returns [B]."""
    cumulative = probability.cumsum(-1)
    total = cumulative[:, -1:]
    # a number that rounds to 1 still lands before the end
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_max(probability.shape[1] - 1)
    # a parallel sum may step up at an id that has no probability: then the likeliest is taken
    likeliest = probability.argmax(-1, keepdim=True)
    return torch.where(probability.gather(1, ids) > 0, ids, likeliest).squeeze(1)


def _least_kept(probability: Tensor, top_k: Tensor, top_p: Tensor, keep: int) -> Tensor:
    """Return the probability [B] of the last id that each row keeps, 0 where it keeps all."""
    num_ids = probability.shape[1]
    if 0 < keep < num_ids:
        best = probability.topk(keep).values
    elif probability.device.type == "cpu":  # NumPy sorts with vector instructions, much faster than torch here
        best = torch.from_numpy(np.sort(probability.numpy(), axis=-1)[:, ::-1].copy())
    else:
        best = probability.sort(dim=-1, descending=True).values
    before = best.cumsum(-1) - best
    count = torch.minimum((before < top_p[:, None]).sum(-1), torch.where(top_k > 0, top_k, num_ids).long())
    least = best.gather(1, (count.clamp(1, best.shape[1]) - 1)[:, None]).squeeze(1)
    return torch.where((top_k > 0) | (top_p < 1), least, 0.0)
