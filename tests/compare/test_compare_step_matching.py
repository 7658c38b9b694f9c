"""Step matching on curves whose answers are known."""

import numpy as np
import pytest

from plait.compare.step_matching import Match, Spread, match

STEPS = np.arange(50, 1001, 50)


def line(steps, speed=1.0):
    """A loss that falls evenly: exact in binary."""
    return 8 - np.asarray(steps, float) * speed / 256


def curve(steps, speed=1.0, noise=0.0, seed=0):
    """A loss that falls as training losses do."""
    steps = np.asarray(steps, float)
    return 2 + 6 * (1 + speed * steps / 40) ** -0.7 + noise * np.random.default_rng(seed).standard_normal(len(steps))


def test_twice_as_fast_is_exactly_half():
    found = match(STEPS, line(STEPS), STEPS, line(STEPS, 2))
    assert found.ratio == 0.5 and found.end_ratio == 0.5
    assert not found.is_bound and not found.end_is_bound and found.censored == 0
    assert found.early == 1 and found.points == len(STEPS) - 1  # 50 is reached at 25, before the first evaluation
    assert found.needed == [t / 2 for t in found.steps] and all(found.reached)


def test_a_step_0_evaluation_loses_no_level():
    steps = np.arange(0, 1001, 50)
    found = match(steps, line(steps), steps, line(steps, 2))
    assert found.ratio == 0.5 and found.early == 0 and found.points == len(steps) - 1


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_identical_runs_are_exactly_1(noise):
    losses = curve(STEPS, noise=noise, seed=3)
    found = match(STEPS, losses, STEPS, losses)
    assert found.ratio == 1 and found.end_ratio == 1 and found.censored == found.early == 0
    assert found.points == len(np.unique(np.minimum.accumulate(losses)))


def test_never_reached_is_censored_and_the_reverse_has_nothing_to_say():
    found = match(STEPS, line(STEPS), STEPS, np.full(len(STEPS), 9.0))
    assert found.censored == found.points == len(STEPS)
    assert found.is_bound and found.end_is_bound and not any(found.reached)
    t = STEPS.astype(float)
    assert found.ratio == pytest.approx((t * 1000).sum() / (t * t).sum()) and found.end_ratio == 1
    reverse = match(STEPS, np.full(len(STEPS), 9.0), STEPS, line(STEPS))
    assert reverse == Match(None, False, None, False, 0, 0, 1)


def test_half_as_fast_is_a_bound_that_the_reverse_match_closes():
    found = match(STEPS, line(STEPS), STEPS, line(STEPS, 0.5))
    assert found.censored == (STEPS > 500).sum() and found.is_bound
    assert 1 < found.ratio < 2 and found.end_ratio == 1 and found.end_is_bound
    assert [u for u, r in zip(found.needed, found.reached, strict=True) if r] == [2.0 * t for t in STEPS if t <= 500]
    assert match(STEPS, line(STEPS, 0.5), STEPS, line(STEPS)).ratio == 0.5


def test_grids_may_differ():
    coarse, fine = np.arange(0, 2001, 100), np.arange(0, 1021, 17)
    assert match(coarse, line(coarse), fine, line(fine, 2)).ratio == pytest.approx(0.5, abs=1e-12)
    assert match(fine, line(fine), coarse, line(coarse, 2)).ratio == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("speed", [1.5, 2, 4])
def test_bent_curves_come_close(speed):
    found = match(STEPS, curve(STEPS), STEPS, curve(STEPS, speed))
    assert found.ratio == pytest.approx(1 / speed, rel=0.02)


def test_noise_moves_it_little():
    ratios = [
        match(STEPS, curve(STEPS, noise=0.01, seed=i), STEPS, curve(STEPS, 2, noise=0.01, seed=100 + i)).ratio
        for i in range(40)
    ]
    assert np.mean(ratios) == pytest.approx(0.5, abs=0.03)
    assert np.std(ratios) < 0.06


def test_warm_up_names_no_level():
    found = match(STEPS, line(STEPS), STEPS, line(STEPS, 2), warmup=200)
    assert found.steps[0] == 250 and found.ratio == 0.5


def test_a_plateau_is_passed_where_it_begins():
    steps = [10, 20, 30, 40]
    found = match(steps, [4.0, 3.0, 3.0, 2.0], steps, [4.0, 3.0, 3.5, 2.0])
    assert found.steps == [10, 20, 40] and found.needed == [10, 20, 40]
    found = match(steps, [4.0, 3.0, 3.0, 2.5], steps, [4.0, 3.0, 3.5, 2.0])
    assert found.needed == [10, 20, 35]  # between 3 at 20, held to 30, and 2 at 40


def test_losses_that_are_not_finite_are_left_out():
    losses = line(STEPS)
    losses[3] = np.nan
    assert match(STEPS, losses, STEPS, losses).points == len(STEPS) - 1
    assert np.isnan(losses[3])


@pytest.mark.parametrize(
    ("steps", "losses", "sentence"),
    [([1, 2], [3.0], "one loss a step"), ([2, 1], [3.0, 2.0], "must increase"), ([1], [np.nan], "finite")],
)
def test_curves_that_are_none_are_refused(steps, losses, sentence):
    with pytest.raises(ValueError, match=sentence):
        match(steps, losses, STEPS, line(STEPS))


def test_spread_over_seeds():
    assert Spread.of([]) is None and Spread.of([None]) is None
    found = Spread.of([0.2, None, 0.4], [False, True, False])
    assert (found.mean, found.low, found.high, found.seeds) == (pytest.approx(0.3), 0.2, 0.4, 2)
    assert found.is_bound and found.times(2).high == 0.8 and found.times(None) is None
