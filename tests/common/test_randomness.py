"""Draws for many items at once, and random orders that are looked up by place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.common.randomness import permuted, uniforms


def test_uniforms_depend_on_each_key_and_nothing_else():
    items = np.arange(1000)
    whole = uniforms(3, "task", item=items, epoch=2)
    assert (uniforms(3, "task", item=items[::-1], epoch=2)[::-1] == whole).all()
    assert uniforms(3, "task", item=np.array([700]), epoch=np.array([2]))[0] == whole[700]
    for other in (
        uniforms(4, "task", item=items, epoch=2),
        uniforms(3, "drop", item=items, epoch=2),
        uniforms(3, "task", item=items, epoch=3),
        uniforms(3, "task", item=items, epoch=2, stream=1),
    ):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.1 and not (whole == other).any()


def test_uniforms_are_uniform():
    """Over items and over epochs: mean, variance, and how many fall into each of a hundred bins."""
    many = np.arange(200_000)
    for drawn in (uniforms(0, "a", item=many), uniforms(0, "a", item=np.zeros_like(many), epoch=many)):
        assert drawn.min() >= 0 and drawn.max() < 1
        assert drawn.mean() == pytest.approx(0.5, abs=0.004) and drawn.var() == pytest.approx(1 / 12, abs=0.001)
        counts = np.bincount((drawn * 100).astype(int), minlength=100)
        assert ((counts - 2000) ** 2 / 2000).sum() < 160  # 99 degrees of freedom: one in ten thousand lies above
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.01


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_orders_are_permutations(size, seed, epoch):
    order = permuted(np.arange(size), size, seed, "order", epoch=epoch)
    assert sorted(order) == list(range(size))
    some = np.random.default_rng(0).integers(0, size, 10)
    assert (permuted(some, size, seed, "order", epoch=epoch) == order[some]).all()


def test_a_place_of_a_long_order_takes_no_time():
    places = permuted(np.arange(10**15, 10**15 + 1000), 10**16, 0, "order")
    assert len(set(places.tolist())) == 1000 and places.min() >= 0 and places.max() < 10**16
    assert np.abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("size", [2, 3, 5, 12, 100])
def test_every_document_comes_to_every_place_equally_often(size):
    trials = 4000
    counts, follows = np.zeros((size, size)), np.zeros((size, size))
    for epoch in range(trials):
        order = permuted(np.arange(size), size, 1, "order", epoch=epoch)
        counts[np.arange(size), order] += 1
        follows[order[:-1], order[1:]] += 1
    expected = trials / size
    freedom = (size - 1) ** 2
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom) + 5
    pairs = follows[~np.eye(size, dtype=bool)]
    expected = trials * (size - 1) / len(pairs)
    assert ((pairs - expected) ** 2 / expected).sum() < len(pairs) + 6 * np.sqrt(2 * len(pairs)) + 6
