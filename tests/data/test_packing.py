"""Packing: every document is placed once, bins are full, and documents that are too long follow the policy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.loader import WINDOW_BINS
from plait.data.packing import EDGES, PartSize, cut_document, efficiency, plan_bins

BUDGET = 4096


@given(lengths=st.lists(st.integers(1, 100), max_size=300), look_ahead=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_every_document_is_in_one_bin_and_no_bin_is_too_full(lengths, look_ahead):
    bins = plan_bins(lengths, 100, look_ahead=look_ahead)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in chosen) <= 100 for chosen in bins)
    assert plan_bins(lengths, 100, look_ahead=look_ahead) == bins


@given(seed=st.integers(0, 2**32 - 1), low=st.integers(20, 120), spread=st.integers(1, 150))
@settings(max_examples=15, deadline=None)
def test_scene_like_documents_fill_97_percent(seed, low, spread):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, low + spread + 1, WINDOW_BINS * BUDGET // (low + spread // 2))
    assert efficiency(lengths, plan_bins(lengths, BUDGET), BUDGET) >= 0.97


@given(seed=st.integers(0, 2**32 - 1), long_share=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_lengths_from_20_to_2000_fill_97_percent(seed, long_share):
    rng = np.random.default_rng(seed)
    n = WINDOW_BINS * BUDGET // 1000
    uniform, skewed = rng.integers(20, 2001, n), np.exp(rng.uniform(np.log(20), np.log(2000), n)).astype(int)
    lengths = np.where(rng.random(n) < long_share, uniform, skewed)
    assert efficiency(lengths, plan_bins(lengths, BUDGET), BUDGET) >= 0.97


def test_no_document_waits_for_long():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 2001, 4000)
    for b, chosen in enumerate(plan_bins(lengths, BUDGET)):
        placed_by_now = lengths[: chosen[0]].sum() / BUDGET
        assert b <= placed_by_now + 80  # the look-ahead is worth 256 documents, about 64 bins


def test_a_length_above_the_budget_is_refused():
    with pytest.raises(ValueError, match="above the budget"):
        plan_bins([5, 11], 10)


parts = st.lists(
    st.builds(PartSize, st.integers(1, 90), st.sampled_from([0, 2]), st.booleans()), min_size=1, max_size=8
)


@given(parts=parts, limit=st.integers(EDGES + 3, 60))
@settings(max_examples=300, deadline=None)
def test_splitting_loses_nothing_but_what_no_document_can_hold(parts, limit):
    cut = cut_document(parts, limit, "split")
    covered = [0] * len(parts)
    last = 0
    for piece in cut.pieces:
        assert EDGES + sum(stop - start + parts[k].delimiters for k, start, stop in piece) <= limit
        for k, start, stop in piece:
            assert k >= last and start == covered[k] and stop > start  # in order, without a gap
            last, covered[k] = k, stop
    fits = [EDGES + p.length + p.delimiters <= limit for p in parts]
    for part, done, fit in zip(parts, covered, fits, strict=True):
        assert done == (part.length if fit or not part.whole else 0)
    assert cut.parts_skipped == sum(p.whole and not fit for p, fit in zip(parts, fits, strict=True))


@given(parts=parts, limit=st.integers(EDGES + 3, 60))
@settings(max_examples=200, deadline=None)
def test_splitting_keeps_parts_whole_where_a_document_can_hold_them(parts, limit):
    for piece in cut_document(parts, limit, "split").pieces:
        for k, start, stop in piece:
            if EDGES + parts[k].length + parts[k].delimiters <= limit:
                assert (start, stop) == (0, parts[k].length)


@given(parts=parts, limit=st.integers(EDGES + 3, 60))
@settings(max_examples=200, deadline=None)
def test_truncating_keeps_the_start(parts, limit):
    cut = cut_document(parts, limit, "truncate")
    assert len(cut.pieces) <= 1
    for piece in cut.pieces:
        assert EDGES + sum(stop - start + parts[k].delimiters for k, start, stop in piece) <= limit
        assert [k for k, _, _ in piece] == list(range(len(piece)))
        assert all(start == 0 for _, start, _ in piece)
        assert all(stop == parts[k].length for k, _, stop in piece[:-1])
        k, _, stop = piece[-1]
        assert stop == parts[k].length or not parts[k].whole


def test_skipping_leaves_nothing():
    assert cut_document([PartSize(50, 0, False)], 20, "skip").pieces == []
