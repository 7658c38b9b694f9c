"""Several ids of one item from one forward pass, and still the model's own distribution.

Plain decoding draws id x_i of an item from p(. | x_<i). Here it is x_i = f(x_<i, E_i): the id v with the greatest
p(v | x_<i) / E_iv, where the E_iv are exponential numbers, fixed for the request, the place i and the id v, whatever
the pass. A pass feeds the last id known and W - 1 guesses y behind it, and its W scores give z_i = f(y_<i, E_i) for W
places at once. What comes before the first guess is known, so z_1 = x_1; and where y_1 .. y_i are x_1 .. x_i, z_(i+1)
is x_(i+1). So ids are taken up to the first one that differs from its guess, that one included. The others are the
guesses of the next pass, and the last one again stands in for those that are new.

Why that is exact. E_iv / p(v) is exponential with rate p(v), and the least of independent exponential numbers is v's
with the probability that v's rate has among all: f draws from p. The E_i of different places are independent, hence
x_1, x_2, .. follow the model's distribution. x is a function of E alone: guesses, the window W and the batch decide
how many passes it takes to find, never what is found (but for rounding, where two ids come out as good as equal). With
W = 1 that is decoding one by one.

This is the fixed-point iteration of predictive sampling (arXiv 2002.09928, algorithm 1) over a window, and speculative
Jacobi decoding (arXiv 2410.01699) with its passes coupled by shared noise (Gumbel coupling, arXiv 2510.24211). It needs
no distribution of the pass before, and p may be any: tempered, cut by top_k and top_p, guided. Greedy draws, which
have no noise, are taken in the same way. Inverting p at a fixed number would be as exact, but a small change of p
moves most of its ids: few guesses would hold.

Shapes: B draws, V ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STEP = 0x9E3779B97F4A7C15 - (1 << 64)
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""Constants of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", and its
reference code), as 64-bit integers with a sign: products wrap."""


def exponentials(keys: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Return the exponential numbers [B, high - low] of ids low .. high - 1 under 64-bit keys [B].

    A number depends on its key and id alone, on every device, and not on which ids stand beside it.
    """
    x = keys[:, None] + STEP * torch.arange(low, high, device=keys.device)
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    x = _shifted(x ^ _shifted(x, 31), 11) + 1  # in [1, 2^53]
    below_one = 1 - torch.finfo(dtype).eps / 2
    return -torch.log1p(-(x.to(dtype) * 2.0**-53).clamp_max(below_one))


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift to the right without the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def race(probability: Tensor, keys: Tensor, low: int) -> Tensor:
    """Draw one id per row of probabilities [B, V], which need not add up to 1, as a place from ``low`` on; [B]."""
    return (probability / exponentials(keys, low, low + probability.shape[1], probability.dtype)).argmax(-1)


def num_right(guesses: Sequence[int], drawn: Sequence[int]) -> int:
    """Return how many of the W ids that were drawn are final, given the W - 1 guesses that were fed."""
    count = 1
    for guess, token in zip(guesses, drawn, strict=False):
        if guess != token:
            break
        count += 1
    return count
