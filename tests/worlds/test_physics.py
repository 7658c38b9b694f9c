"""The physics of boxes: free fall, friction, momentum, the same again, and overlaps as they are."""

import math
import sys

import numpy as np
import pytest

from plait.codecs.motions import COLOUR, EXTENTS, POSITION, rotations
from plait.common.errors import DataError, ResourceError
from plait.worlds.physics import FRICTION, GRAVITY, Body, again, penetration, simulate

pytest.importorskip("mujoco")
BOX = (0.3, 0.25, 0.2)
SECONDS = np.arange(24) / 20


def still(*bodies: Body) -> np.ndarray:
    """Return a motion in which bodies stay where they are, whether that can be or not."""
    return np.repeat(simulate(bodies, steps=1), 24, axis=0)


def test_bodies_keep_their_colours():
    told = (0.8, 0.1, 0.2)
    motion = simulate([Body(BOX, (0, 0, 0.5), colour=told), Body(BOX, (0.5, 0, 0.1))])
    assert np.allclose(motion[:, 0, COLOUR], told) and np.allclose(motion[:, 1, COLOUR], 0.5)
    assert np.allclose(again(motion)[..., COLOUR], motion[..., COLOUR])


def test_free_fall():
    motion = simulate([Body(BOX, (0.1, -0.2, 8.0))])
    assert motion.shape == (24, 2, 15) and motion.dtype == np.float32 and not motion[:, 1].any()
    # steps of 1/400 s, each by the velocity at its end, fall a little further than the parabola
    assert np.allclose(motion[:, 0, 2], 8 - GRAVITY * SECONDS * (SECONDS + 1 / 400) / 2, atol=1e-5)
    assert np.allclose(motion[:, 0, :2], (0.1, -0.2)) and np.allclose(motion[:, 0, EXTENTS], BOX)
    assert np.allclose(rotations(motion)[:, 0], np.eye(3), atol=1e-6)


@pytest.mark.parametrize("speed", [0.8, 1.5, 2.2])
@pytest.mark.parametrize("way", [(1, 0), (0, -1), (-0.6, 0.8)])
def test_friction_stops_what_slides(speed, way):
    """After v^2 / (2 mu g), whatever its mass."""
    motion = simulate([Body(BOX, (0, 0, 0.1), velocity=(speed * way[0], speed * way[1], 0))])
    length = speed**2 / (2 * FRICTION * GRAVITY)
    assert motion[-1, 0, :2] == pytest.approx(length * np.array(way), rel=0.05, abs=0.01)
    half = simulate([Body(BOX, (0, 0, 0.1), velocity=(speed * way[0], speed * way[1], 0))], steps=3)
    assert np.array_equal(half, motion[:3])


def test_a_spin_stops():
    """On its four corners a box slows down by 3 mu g / r, r half its base's diagonal."""
    motion = simulate([Body(BOX, (0, 0, 0.1), spin=(0, 0, 9))])
    turned = np.unwrap(np.arctan2(motion[:, 0, 4], motion[:, 0, 3]))
    r = math.hypot(*BOX[:2]) / 2
    assert turned[-1] == pytest.approx(81 / (2 * 3 * FRICTION * GRAVITY / r), rel=0.1)
    assert np.allclose(motion[:, 0, :2], 0, atol=0.01)


def test_a_yaw_is_the_first_pose():
    motion = simulate([Body(BOX, (0, 0, 0.1), yaw=0.7)])
    c, s = math.cos(0.7), math.sin(0.7)
    assert np.allclose(rotations(motion)[:, 0], [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=1e-4)


def test_a_hit_keeps_the_momentum():
    """Equal boxes that meet and do not bounce go on together, at half the speed."""
    speed = 2.0
    first, second = Body(BOX, (-0.2, 0, 0.1), velocity=(speed, 0, 0)), Body(BOX, (0.15, 0, 0.1))
    motion = simulate([first, second])
    gap = 0.35 - BOX[0]
    met = math.sqrt(speed**2 - 2 * FRICTION * GRAVITY * gap)
    together = (met / 2) ** 2 / (2 * FRICTION * GRAVITY)
    ways = motion[-1, :, 0] - motion[0, :, 0]
    assert ways.mean() == pytest.approx(gap / 2 + together, rel=0.25) and ways[1] > 0.05
    assert first.mass == second.mass == pytest.approx(200 * 0.3 * 0.25 * 0.2)


def test_a_light_box_is_pushed_further_than_a_heavy_one():
    ways = []
    for side in (0.12, 0.4):
        pushed = Body((side,) * 3, (0.05 + side / 2, 0, side / 2))
        ways.append(simulate([Body(BOX, (-0.2, 0, 0.1), velocity=(2.0, 0, 0)), pushed])[-1, 1, 0] - pushed.position[0])
    assert ways[0] > 2 * ways[1] > 0


def test_the_same_again_bit_for_bit():
    bodies = [Body(BOX, (-0.2, 0.02, 0.3), velocity=(1.6, 0, 1), spin=(1, 2, 3)), Body((0.2, 0.2, 0.4), (0.2, 0, 0.2))]
    motion = simulate(bodies)
    simulate([Body((0.1, 0.4, 0.3), (0, 0, 0.5))])  # another one between
    assert np.array_equal(simulate(bodies), motion)


def test_what_rests_stays_where_it_rests():
    motion = simulate([Body(BOX, (0, 0, 0.1)), Body((0.2, 0.2, 0.2), (0, 0, 0.3))])
    assert np.ptp(motion[..., POSITION], axis=0).max() < 1e-3 and penetration(motion) < 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("depth", [0.01, 0.04])
def test_overlaps_are_as_deep_as_they_are(axis, depth):
    other = np.array([0.0, 0.0, 0.5])
    other[axis] += BOX[axis] - depth
    motion = still(Body(BOX, (0, 0, 0.5)), Body(BOX, tuple(other)))
    assert penetration(motion) == pytest.approx(depth, abs=1e-4)
    sunk = still(Body(BOX, (0, 0, 0.1 - depth)))
    assert penetration(sunk) == pytest.approx(depth, abs=1e-6)
    sunk[1:, 0, 2] = 0.1
    assert penetration(sunk) == pytest.approx(depth, abs=1e-6)  # the worst of all steps


def test_a_turned_box_sinks_in_with_its_corner():
    motion = still(Body(BOX, (0, 0, 0.1)))
    c, s = math.cos(0.4), math.sin(0.4)
    motion[5:, 0, 3:9] = (c, 0, -s, 0, 1, 0)
    assert penetration(motion) == pytest.approx(0.15 * s + 0.1 * c - 0.1, abs=1e-6)


def test_nothing_overlaps_with_nothing():
    assert penetration(np.zeros((24, 2, 15), np.float32)) == 0
    assert penetration(still(Body(BOX, (0, 0, 0.5)), Body(BOX, (0.5, 0, 0.5)))) == 0
    assert not again(np.zeros((24, 2, 15), np.float32)).any()


@pytest.mark.parametrize(
    "body",
    [
        Body(BOX, (0, 0, 0.6)),
        Body(BOX, (-0.2, 0, 0.1), velocity=(0, 1.8, 0)),
        Body(BOX, (-0.2, 0, 0.1), yaw=0.4, velocity=(0, 0, 2.0)),
        Body(BOX, (0, 0, 0.8), velocity=(0.5, 0, 0), spin=(2, 1, 0)),
    ],
)
def test_again_finds_the_velocities(body):
    motion = simulate([body, Body((0.2, 0.2, 0.2), (0.4, 0.4, 0.1))])
    assert abs(again(motion) - motion)[..., POSITION].mean() < 0.01
    changed = motion.copy()
    changed[10:, 0, 0] += 0.3  # what is no physics
    assert abs(again(changed) - changed)[10:, 0, 0].mean() > 0.2


def test_again_bears_what_is_no_motion(capfd):
    rng = np.random.default_rng(0)
    for scale in (0.3, 3, 300):
        motion = (rng.standard_normal((24, 2, 15)) * scale).astype(np.float32)
        motion[..., EXTENTS] = abs(motion[:1, :, EXTENTS])
        assert np.isfinite(again(motion)).all() and penetration(motion) >= 0
    assert "WARNING" not in capfd.readouterr().out


def test_bad_bodies():
    body = Body(BOX, (0, 0, 0.1))
    for bodies, message in [
        ([], "0 bodies are not allowed, there must be 1 or 2"),
        ([body] * 3, "3 bodies are not allowed"),
        ([Body((0.3, 0, 0.2), (0, 0, 0.1))], r"extents \(0.3, 0, 0.2\) is not allowed, they must be above 0"),
        ([Body((0.01, 0.01, 0.01), (0, 0, 0.1))], "0.05 or more on average"),
    ]:
        with pytest.raises(DataError, match=message):
            simulate(bodies)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ResourceError, match=r"'mujoco' is not installed, install it: pip install 'plait\[worlds\]'"):
        simulate([Body(BOX, (0, 0, 0.1))])
