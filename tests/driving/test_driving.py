"""Scenes in highway-env: they are loaded as they are, they drive as highway-env's own, and drivers differ in them."""

import sys

import numpy as np
import pytest

from plait.codecs.traffic import TARGET_SPEED, ordered, present
from plait.common.errors import ResourceError
from plait.driving.drivers import DRIVERS, FASTER, IDLE, LEFT, RIGHT, SLOWER, expert, idle, lane_keeper, told
from plait.driving.simulate import ACTIONS, LANES, Run, drive, highway, kept_lane, measures, observe, overlaps, watch
from plait.driving.world import vehicle

pytest.importorskip("highway_env")


def scene(*others: np.ndarray, lane: int = 1, speed: float = 25) -> np.ndarray:
    rows = np.zeros((16, 8), np.float32)
    rows[: 1 + len(others)] = [vehicle("car", 0, lane, speed), *others]
    return rows


def crowd() -> np.ndarray:
    """Return a scene of cars in all lanes, some of which change lanes."""
    rows = [vehicle("car", x + 3 * lane, lane, 20 + lane, goes_for=24 - 2 * lane + k)
            for k, x in enumerate((0, -45, 30, 65)) for lane in range(4)]  # fmt: skip
    rows[8][7], rows[11][7], rows[5][3] = 4, 8, 0.05
    return scene(*rows[1:], lane=0, speed=20)


SLOW = scene(vehicle("lorry", 60, 1, 10))


def test_a_scene_is_loaded_as_it_is():
    item = ordered(crowd())
    assert abs(watch(item, 0)[0] - item[:, [0, 1, 2, 3]]).max() < 1e-4
    assert abs(observe(highway().driven_ego(item, LANES)[0], 16) - item)[:, :6].max() < 1e-4
    few = ordered(scene(vehicle("lorry", 30, 2, 15, into=1)))
    seen = observe(highway().driven_ego(few, LANES)[0], 16)
    assert np.allclose(seen, few, atol=1e-4) and present(seen).sum() == 2
    assert observe(highway().driven_ego(item, LANES)[0], 5).shape == (5, 8)


def test_it_drives_as_highway_env_does():
    """The same track as of highway-env's own road, network and IDM vehicles, to rounding."""
    from highway_env.road.road import Road, RoadNetwork
    from highway_env.vehicle.behavior import IDMVehicle

    item = crowd()
    road = Road(RoadNetwork.straight_road_network(LANES, speed_limit=30), np_random=np.random.RandomState(0))
    for k, row in enumerate(item.astype(float)):
        road.vehicles.append(
            IDMVehicle(road, (1000 + row[0], row[1]), row[3], row[2], ("0", "1", round(row[7] / 4)), row[6],
                       enable_lane_change=False))  # fmt: skip
        road.vehicles[-1].check_collisions = k == 0
    for _ in range(30):
        road.act()
        road.step(0.1)
    theirs = np.array([(*v.position, v.speed, v.heading) for v in road.vehicles]) - (1000, 0, 0, 0)
    assert abs(watch(item, 3.0)[-1] - theirs).max() < 1e-4


def test_what_is_absent_stays_so_and_vehicles_move():
    track = watch(SLOW)
    assert track.shape == (61, 16, 4) and not track[:, 2:].any() and track.dtype == np.float32
    assert track[-1, 1, 0] == pytest.approx(60 + 10 * 6, abs=0.5) and track[-1, 0, 2] < 12  # ego has braked
    assert np.array_equal(watch(SLOW), track)


def test_idm_does_not_crash_where_keeping_on_does():
    (kept_on,), (idm,), (by_expert,), (in_lane,) = (
        drive([SLOW], driver) for driver in (idle, "idm", expert, lane_keeper)
    )
    assert kept_on.crashed and 3 < len(kept_on.track) / 10 < 5 and kept_on.actions == [IDLE] * len(kept_on.actions)
    assert not idm.crashed and not kept_lane(idm) and idm.speed > 20
    assert not by_expert.crashed and not kept_lane(by_expert) and {LEFT, RIGHT} & {*by_expert.actions}
    assert not in_lane.crashed and kept_lane(in_lane) and 8 < in_lane.speed < 14 and SLOWER in in_lane.actions
    assert in_lane.distance == pytest.approx(in_lane.speed * 10)
    figures = measures([kept_on, idm])
    assert figures["crash_rate"].value == 0.5 and figures["crash_rate"].count == 2
    assert measures([idm] * 20)["crash_rate"].high == pytest.approx(0.161, abs=1e-3)  # Wilson's


def test_meta_actions_do_what_they_say():
    for action, (speed, y) in {LEFT: (25, 0), RIGHT: (25, 8), FASTER: (30, 4), SLOWER: (20, 4), IDLE: (25, 4)}.items():
        run = Run(scene(), is_driven=True)
        run.go(action)
        for _ in range(7):
            run.go(IDLE)
        seen = run.observed()[0]
        assert seen[TARGET_SPEED] == speed and seen[2] == pytest.approx(speed, abs=0.2)
        assert seen[1] == pytest.approx(y, abs=0.2)


def test_the_gymnasium_environment_is_the_same():
    env = highway().SceneEnv()
    env.reset(seed=0, options={"config": {"scene": SLOW}})
    assert env.action_type.actions == dict(enumerate(ACTIONS))
    actions = [RIGHT, IDLE, SLOWER, IDLE, FASTER, LEFT]
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        assert not terminated and not truncated
    (driven,) = drive([SLOW], lambda seen: [actions], seconds=3.0)
    assert driven.actions == actions
    assert driven.track[-1, 0, :2] == pytest.approx(env.vehicle.position - (1000, 0), abs=1e-3)
    observation, _ = env.reset(options={"config": {"scene": None}})
    assert (observation[1:, 0] == 0).all()  # alone


def test_drivers_see_all_scenes_that_are_under_way():
    counts = []

    def driver(seen):
        counts.append(len(seen))
        return [[IDLE, IDLE]] * len(seen)

    ends = drive([SLOW, scene(), SLOW], driver)
    assert [d.crashed for d in ends] == [True, False, True]
    assert counts[0] == 3 and counts[-1] == 1 and len(counts) == 10
    assert len(ends[1].track) == 101 and len(ends[1].actions) == 20
    again = drive([SLOW, scene(), SLOW], DRIVERS["random"], seconds=2.0)
    assert len({tuple(d.actions) for d in again}) > 1


def test_a_model_drives():
    asked = []

    def act(observations):
        asked.extend(observations)
        return [np.array([SLOWER, SLOWER, LEFT, LEFT])] * len(observations)

    (driven,) = drive([SLOW], told(act, "keep the lane"), seconds=3.0)
    assert driven.actions == [SLOWER] * 6 and not driven.crashed
    assert asked[0][0]["text"] == "keep the lane" and asked[0][0]["traffic"].startswith("[[0.0, 4.0, 25.0")


def test_overlaps():
    beside, on = scene(vehicle("car", 3, 2, 25)), scene(vehicle("lorry", 7, 1, 25))
    assert not overlaps(beside, watch(beside, 0)).any() and overlaps(on, watch(on, 0)).all()
    assert not overlaps(scene(), watch(scene(), 0)).any()


def test_noise_is_driven_too():
    from plait.codecs.base import Encoded
    from plait.codecs.traffic import TrafficCodec

    codec, rng = TrafficCodec.from_options({}), np.random.default_rng(0)
    noise = [Encoded(latents=rng.standard_normal((16, 8)).astype(np.float32) * s, grid=(16,)) for s in (0, 1, 1, 9)]
    for item in codec.decode(noise):
        assert np.isfinite(watch(item)).all()
        for name in ("idm", "idle", "expert"):
            assert np.isfinite(drive([item], DRIVERS[name], seconds=2.0)[0].speed)


def test_without_highway_env(monkeypatch):
    monkeypatch.delitem(sys.modules, "plait.driving.roads", raising=False)
    monkeypatch.delattr("plait.driving.roads", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == "highway_env"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "highway_env", None)
    with pytest.raises(ResourceError, match=r"driving: package 'highway-env' is not installed, install it: pip install "
                                            r"'plait\[driving\]'"):  # fmt: skip
        watch(SLOW)
