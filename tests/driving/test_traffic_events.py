"""What happens in traffic: hand-made scenes, simulated and read; and sentences, which come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.codecs.traffic import SPEED
from plait.driving.events import (
    AHEAD,
    CUT_INS,
    DENSITIES,
    SIDES,
    Happening,
    clear_happening,
    happening,
    read_sentence,
    sentence,
)
from plait.driving.simulate import watch
from plait.driving.world import vehicle

pytest.importorskip("highway_env")


def scene(*others: np.ndarray, lane: int = 1, speed: float = 25) -> np.ndarray:
    rows = np.zeros((16, 8), np.float32)
    rows[: 1 + len(others)] = [vehicle("car", 0, lane, speed), *others]
    return rows


def row_of(x: float, speed: float, count: int = 10) -> list[np.ndarray]:
    """Return vehicles in the rightmost lane."""
    return [vehicle("car", x + 14 * k, 3, speed) for k in range(count)]


SCENES = {
    "an empty road": (scene(), Happening("empty", 1)),
    "alone in the left lane": (scene(lane=0), Happening("empty", 0)),
    "a lorry far off": (scene(vehicle("lorry", 112, 1, 25)), Happening("light", 1)),
    "a car": (scene(vehicle("car", 45, 1, 25)), Happening("light", 1, "car")),
    "a lorry": (scene(vehicle("lorry", 50, 1, 23)), Happening("light", 1, "lorry")),
    "a slow lorry": (scene(vehicle("lorry", 80, 1, 12)), Happening("light", 1, "slow lorry")),
    "a slow car beside a car": (
        scene(vehicle("car", 70, 2, 12), vehicle("car", 30, 1, 22), lane=2), Happening("light", 2, "slow car")),
    "a braking car": (scene(vehicle("car", 40, 1, 25, goes_for=4)), Happening("light", 1, "braking car")),
    "a stopped lorry": (scene(vehicle("lorry", 95, 1, 0), speed=20), Happening("light", 1, "stopped lorry")),
    "a cut-in from the left": (
        scene(vehicle("car", 25, 0, 20, into=1)), Happening("light", 1, "", ("car left",))),
    "a cut-in from the right": (
        scene(vehicle("lorry", 25, 2, 20, into=1)), Happening("light", 1, "", ("lorry right",))),
    "cut-ins from both sides": (
        scene(vehicle("car", 22, 0, 20, into=1), vehicle("lorry", 45, 2, 22, into=1)),
        Happening("light", 1, "", ("car left", "lorry right"))),
    "one that comes in behind": (scene(vehicle("car", -30, 0, 25, into=1)), Happening("light", 1)),
    "one that leaves": (scene(vehicle("car", 30, 1, 25, into=2)), Happening("light", 1, "car")),
    "overtaken on the left": (
        scene(vehicle("car", -15, 0, 29), speed=20), Happening("light", 1, "", (), ("left",))),
    "overtaken on the right": (
        scene(vehicle("car", -15, 3, 29), speed=20), Happening("light", 1, "", (), ("right",))),
    "dense traffic": (scene(*row_of(-55, 25)), Happening("dense", 1)),
    "a jam": (scene(*row_of(-60, 4), speed=5), Happening("jam", 1)),
    "a slow car at the end of a jam": (
        scene(*row_of(-60, 4), vehicle("car", 60, 1, 5), speed=20), Happening("jam", 1, "slow car")),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_what_happens(name):
    item, what = SCENES[name]
    track = watch(item)
    assert happening(item, track) == what and clear_happening(item, track) == what
    assert read_sentence(sentence(what)) == what
    assert what.is_hard == any(word in name for word in ("slow", "braking", "stopped", "cut-in"))


@pytest.mark.parametrize(
    "item",
    [
        scene(vehicle("car", 100, 1, 25)),  # ahead, or too far off
        scene(vehicle("car", 60, 1, 19)),  # slow or not
        scene(vehicle("car", 60, 1, 1, goes_for=1), speed=5),  # stopped or slow
        scene(vehicle("car", 50, 0.5, 25, into=0)),  # in the lane or not
        scene(vehicle("car", 3, 0, 24, into=1)),  # beside, not ahead
        scene(vehicle("car", -24, 0, 29), speed=25),  # has just come up
        scene(*row_of(-55, 25, 6)),  # light or dense
        scene(*row_of(-60, 10), speed=10),  # a jam or not
    ],
)
def test_what_is_near_a_threshold_is_not_clear(item):
    assert clear_happening(item, watch(item)) is None


def test_order_and_small_errors_change_nothing():
    rng = np.random.default_rng(0)
    for name, (item, what) in SCENES.items():
        noisy = item.copy()
        there = noisy[:, 4] > 0
        noisy[there, :3] += rng.normal(0, (0.2, 0.05, 0.2), (there.sum(), 3))
        noisy[0, 0] = 0
        noisy[there, SPEED] = noisy[there, SPEED].clip(0)
        noisy[1:] = noisy[1:][::-1]
        assert happening(noisy, watch(noisy)) == what, name


def ordered_tuples(values: tuple[str, ...]):
    return st.lists(st.sampled_from(values), unique=True).map(lambda found: tuple(v for v in values if v in found))


@settings(max_examples=300, deadline=None)
@given(st.builds(Happening, st.sampled_from(DENSITIES), st.integers(0, 3), st.sampled_from(AHEAD),
                 ordered_tuples(CUT_INS), ordered_tuples(SIDES)))  # fmt: skip
def test_sentences_come_back(what):
    assert read_sentence(sentence(what)) == what
    assert read_sentence(f"  {sentence(what)} ") == what


def test_sentences():
    what = Happening("dense", 1, "slow lorry", ("car left",), ("right",))
    said = (
        "dense traffic, ego in the second lane, a slow lorry ahead, a car cuts in from the left, overtaken on the right"
    )
    assert sentence(what) == said and read_sentence(said) == what
    assert sentence(Happening("empty", 0)) == "an empty road, ego in the left lane, nothing ahead"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dense traffic",
        "dense traffic, ego in the second lane",
        "ego in the second lane, nothing ahead, light traffic",
        "light traffic, ego in the second lane, a slow bus ahead",
        "light traffic, light traffic, ego in the left lane, nothing ahead",
        "light traffic, ego in the left lane, nothing ahead, nothing ahead",
    ],
)
def test_what_is_no_such_sentence(text):
    assert read_sentence(text) is None
