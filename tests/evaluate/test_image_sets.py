"""How near sets of images are: in closed form, by hand, and for a set that copies and one that is noise."""

import numpy as np
import pytest
import torch

from plait.evaluate.image_sets import among, frechet_distance, kid, set_figures
from plait.evaluate.neighbours import cosines, nearest_cosines, neighbours

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
    """Less the mean (1, 1) what is left is (2, 0) and (0, 3), at a right angle; then (2, 2), at half; then (8, 0)."""
    mean = torch.tensor([1.0, 1.0])
    features, others = torch.tensor([[3.0, 1.0]] * 3), torch.tensor([[1.0, 4.0], [3.0, 3.0], [9.0, 1.0]])
    assert cosines(features, others, mean).tolist() == pytest.approx([0.0, 0.5**0.5, 1.0])
    training = torch.tensor([[1.0, 4.0], [3.0, 3.0], [-1.0, -4.0]])  # of mean (1, 1)
    assert nearest_cosines(features[:1], training).tolist() == pytest.approx([0.5**0.5])


def test_a_model_that_copies_is_found_out():
    """Of a set that repeats training's all is copied, of other draws of the same kind 1 in 20."""
    rng = np.random.default_rng(4)
    training, real, fresh = (torch.from_numpy(rng.normal(size=(n, 12))).float() for n in (300, 400, 400))
    copy = training[:100] + 0.01 * torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    measures, beside = neighbours({"": copy, "real": real}, training)
    assert measures["copied"].value == 1.0 and measures["neighbour"].value > 0.999
    assert beside["copied_real"] == pytest.approx(0.05, abs=0.01) and beside["neighbour_real"] < 0.9
    assert beside["neighbour_among"] == 300
    measures, beside = neighbours({"": fresh, "real": real}, training)
    assert measures["copied"].low <= 0.05 <= measures["copied"].high
    assert measures["neighbour"].low <= beside["neighbour_real"] <= measures["neighbour"].high


def test_a_copy_is_the_ceiling_and_noise_the_floor():
    rng = np.random.default_rng(3)
    real, more = (torch.from_numpy(rng.normal(size=(60, 8))).float() for _ in range(2))
    narrow = more[:1] + 0.01 * torch.randn(60, 8)
    sets = {"": more, "copy": real, "noise": 30 + 9 * torch.randn(60, 8), "narrow": narrow}
    measures, beside = set_figures(sets, real)
    found = {name: measure.value for name, measure in measures.items()} | beside
    assert (
        found["frechet_copy"] == pytest.approx(0, abs=1e-3) and found["precision_copy"] == found["recall_copy"] == 1.0
    )
    assert found["frechet_copy"] < found["frechet"] < found["frechet_narrow"] < found["frechet_noise"]
    assert found["precision_noise"] == 0.0 and found["recall_narrow"] < 0.2 < found["recall"]
    assert abs(found["kid"]) < found["kid_narrow"] < found["kid_noise"]
    for measure in measures.values():
        assert measure.low < measure.value < measure.high and measure.count == 60


def test_the_interval_of_a_distance_is_as_wide_as_distances_of_other_draws_spread():
    rng = np.random.default_rng(5)
    draws = [[torch.from_numpy(rng.normal(size=(80, 6))) for _ in range(2)] for _ in range(40)]
    spread = np.std([frechet_distance(*pair) for pair in draws])
    measures, _ = set_figures({"": draws[0][0]}, draws[0][1])
    assert 0.5 < (measures["frechet"].high - measures["frechet"].low) / (4 * spread) < 2
