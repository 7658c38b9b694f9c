"""Scaling laws: known exponents are found, intervals hold them, and too few sizes are refused."""

import numpy as np
import pytest

from plait.common.errors import DataError
from plait.compare.curves import Curve
from plait.compare.records import Records
from plait.compare.scaling import BEYOND, DRAWS, Law, _savings, fit, fit_families

SIZES = {"small": 1e12, "middle": 4e12, "large": 2.5e13}


def records(laws: dict[str, tuple[float, float]], *, noise=0.0, seeds=2, sizes=SIZES, rng=None) -> Records:
    """Return runs whose final loss follows a law of each family, and ends far from where it began."""
    arms, curves = [], {}
    for family, (a, b) in laws.items():
        for size, flops in sizes.items():
            arms.append({"arm": f"{family}_{size}", "flops_a_step": flops / 100})
            for seed in range(seeds):
                loss = np.exp(a - b * np.log(flops) + (noise * rng.standard_normal() if noise else 0))
                curves[f"{family}_{size}", seed] = {("validation", "image"): Curve([50, 100], [9.0, float(loss)])}
    return Records(arms=arms, curves=curves)


FAMILIES = {name: [f"{name}_{size}" for size in SIZES] for name in ("dense", "mot")}


def test_known_exponents_and_the_saving_they_imply():
    laws = {"dense": (5.0, 0.1), "mot": (4.95, 0.1)}
    found = fit_families(FAMILIES, records(laws))
    assert len(found["points"]) == 12 and {row["flops"] for row in found["points"]} == set(SIZES.values())
    for row in found["fits"]:
        assert row["exponent"] == pytest.approx(0.1) and (row["sizes"], row["points"]) == (3, 6)
        assert row["low"] == pytest.approx(0.1) == row["high"]
    # equal slopes: log C' = log C - 0.05 / 0.1, at every scale
    assert [row["share"] for row in found["savings"]] == pytest.approx([np.exp(-0.5)] * len(BEYOND))
    assert [row["is_extrapolation"] for row in found["savings"]] == [False, True, True]
    assert [row["beyond"] for row in found["savings"]] == [1, 10, 100]
    # a mixture that needs a fortieth: its own operations were run, those of the dense model were not
    much = fit_families(FAMILIES, records({"dense": (5.0, 0.1), "mot": (5.0 - 0.1 * np.log(40), 0.1)}))["savings"]
    assert much[1]["share"] == pytest.approx(1 / 40) and [r["is_extrapolation"] for r in much] == [True, True, True]
    steeper = fit_families(FAMILIES, records({"dense": (5.0, 0.1), "mot": (5.0, 0.11)}))["savings"]
    flops = SIZES["large"] * np.array(BEYOND)
    assert [row["share"] for row in steeper] == pytest.approx(list(flops ** (0.1 / 0.11) / flops))


def test_lines_go_on_beyond_the_runs_and_say_so():
    lines = [r for r in fit_families(FAMILIES, records({"dense": (5, 0.1)}))["lines"] if r["family"] == "dense"]
    assert lines[0]["flops"] == pytest.approx(1e12) and lines[-1]["flops"] == pytest.approx(2.5e14)
    assert all(r["is_extrapolation"] == (r["flops"] > 2.51e13) for r in lines) and not lines[0]["is_extrapolation"]
    assert lines[0]["loss"] == pytest.approx(np.exp(5 - 0.1 * np.log(1e12)))


def test_intervals_hold_the_truth_about_as_often_as_they_say(rng):
    """95 % of intervals of 200 noisy studies: not all, and not much fewer."""
    inside = []
    for _ in range(200):
        found = fit_families({"dense": FAMILIES["dense"]}, records({"dense": (5.0, 0.1)}, noise=0.02, seeds=3, rng=rng))
        (row,) = found["fits"]
        inside.append(row["low"] <= 0.1 <= row["high"])
    assert 0.85 <= np.mean(inside) < 1.0


def test_what_pairs_have_in_common_does_not_blur_the_saving(rng):
    """Noise that both families share by size and seed leaves the saving as it is, in whatever order runs ended."""
    common = records({"dense": (5.0, 0.1)}, noise=0.05, seeds=3, rng=rng)
    both = Records(arms=common.arms + [row | {"arm": row["arm"].replace("dense", "mot")} for row in common.arms])
    for (arm, seed), curves in sorted(common.curves.items(), key=str, reverse=True):
        curve = curves["validation", "image"]
        lower = Curve(curve.steps, [loss * np.exp(-0.05) for loss in curve.losses])
        both.curves[arm.replace("dense", "mot"), seed] = {("validation", "image"): lower}
    both.curves |= common.curves
    first = fit_families(FAMILIES, both)["savings"][0]
    b = fit_families(FAMILIES, both)["fits"][0]["exponent"]
    assert first["share"] == pytest.approx(np.exp(-0.05 / b))
    assert first["high"] - first["low"] < 0.5 * first["share"]  # .3 to 1.1 where they are drawn apart
    del both.curves["mot_small", 0]
    apart = fit_families(FAMILIES, both)["savings"][0]
    assert apart["high"] - apart["low"] > first["high"] - first["low"]


def test_a_law_that_may_not_fall_has_no_upper_end():
    losses = [2.0, 2.1, 1.9, 2.1, 2.0, 1.98]
    dense, flat = fit([1, 1, 2, 2, 4, 4], [2, 2, 1.9, 1.9, 1.8, 1.8]), fit([1, 1, 2, 2, 4, 4], losses)
    assert np.isnan(flat.flops(dense.loss(4.0))[1:]).mean() > 0.05
    assert _savings(dense, flat)[0]["high"] is None


def test_a_law_that_hardly_falls_has_no_upper_end():
    """It gets there with more operations than a number holds."""
    dense = fit([1, 2, 4], [2, 1.9, 1.8])
    draws = np.repeat([[0.7, 0.1], [0.9, 1e-4]], DRAWS // 2, axis=0)
    share = _savings(dense, Law(0.7, 0.1, draws, 1.0, 4.0))[0]
    assert share["low"] is not None and share["high"] is None


def test_fewer_than_three_sizes_are_refused():
    with pytest.raises(DataError, match=r"2 sizes were run, a law needs at least 3"):
        fit([1e12, 1e13, 1e13], [2.0, 1.0, 1.1])
    found = fit_families(FAMILIES, records({"dense": (5.0, 0.1)}, sizes=dict(list(SIZES.items())[:2])))
    assert found["points"] and not found["fits"] and not found["lines"] and not found["savings"]
    with pytest.raises(DataError, match="above 0"):
        fit([1, 2, 3], [1.0, 0.0, 1.0])


def test_a_family_alone_has_a_law_and_no_saving():
    found = fit_families(FAMILIES, records({"dense": (5.0, 0.1)}))
    assert [row["family"] for row in found["fits"]] == ["dense"] and found["savings"] == []
