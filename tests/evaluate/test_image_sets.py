"""How near sets of images are: in closed form, by hand, and for a set that copies and one that is noise."""

import numpy as np
import pytest
import torch

from plait.evaluate.image_judge import frechet_distance
from plait.evaluate.image_sets import among, kid, likeness, set_figures

pytest.importorskip("torchmetrics")


def gaussian(rng, mean, std, count=40_000):
    return torch.from_numpy(rng.normal(mean, std, (count, len(mean))))


def test_the_distance_of_two_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 where both have independent numbers."""
    rng = np.random.default_rng(1)
    a, b = gaussian(rng, [0, 1, 2], [1, 2, 3]), gaussian(rng, [1, 1, 0], [2, 2, 1])
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=0.02)


def test_kid_by_hand():
    """k(x, y) = (x y / 3 + 1)^3 in three dimensions; the mean over other pairs of one set, and all pairs of two."""
    a = torch.tensor([[3.0, 0, 0], [0, 3.0, 0]])
    b = torch.tensor([[3.0, 0, 0], [0, 0, 3.0]])
    own_a = own_b = 1.0  # of different ones: products of 0
    between = (4**3 + 1 + 1 + 1) / 4
    assert kid(a, b) == pytest.approx(1000 * (own_a + own_b - 2 * between))
    rng = np.random.default_rng(2)
    same = [kid(*(torch.from_numpy(rng.normal(size=(40, 5))) for _ in range(2))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5, "it has no bias"


def test_who_is_among_whom_by_hand():
    """On a line 0, 1, 2, 3, 10: the third neighbours are 3, 2, 2, 3 and 9 away."""
    others = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    asked = torch.tensor([[-3.0], [-3.1], [6.0], [1.5], [19.0], [19.5]])
    assert among(asked, others) == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]


def test_likeness_by_hand():
    """The mean of the others is (1, 1): what is left is (2, 0) and (0, 3), at a right angle; then (2, 2), at half."""
    others = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    features, nearest = (
        torch.tensor([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]]),
        torch.tensor([[1.0, 4.0], [3.0, 3.0], [9.0, 1.0]]),
    )
    assert likeness(features, nearest, others) == pytest.approx([0.0, 0.5**0.5, 1.0])


def test_a_copy_is_the_ceiling_and_noise_the_floor():
    rng = np.random.default_rng(3)
    real, more = (torch.from_numpy(rng.normal(size=(60, 8))).float() for _ in range(2))
    narrow = more[:1] + 0.01 * torch.randn(60, 8)
    found = set_figures({"": more, "copy": real, "noise": 30 + 9 * torch.randn(60, 8), "narrow": narrow}, real)
    assert (
        found["frechet_copy"] == pytest.approx(0, abs=1e-3) and found["precision_copy"] == found["recall_copy"] == 1.0
    )
    assert found["frechet_copy"] < found["frechet"] < found["frechet_narrow"] < found["frechet_noise"]
    assert found["precision_noise"] == 0.0 and found["recall_narrow"] < 0.2 < found["recall"]
    assert abs(found["kid"]) < found["kid_narrow"] < found["kid_noise"]
    assert found["precision_low"] < found["precision"] < found["precision_high"] and found["precision_count"] == 60
