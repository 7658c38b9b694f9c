"""What happened is read from poses: of motions built by hand, of noisy ones, and of sentences, which come back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.worlds.events import (
    _PHRASES,
    EVENTS,
    SIZES,
    STAYS,
    WAYS,
    Event,
    Happening,
    clear_happening,
    event_of,
    happening,
    is_clear,
    read_sentence,
    sentence,
)

SIDE = 0.2
TIMES = np.linspace(0, 1, 24)
SETTLED = (2 * TIMES).clip(0, 1)
"""From 0 to 1 in half of the time, and then at rest."""
NAMES = ("a red chair", "a blue lamp")


def turned(axis: int, angles: np.ndarray) -> np.ndarray:
    """Return rotations [T, 3, 3] about an axis of the cube."""
    c, s, matrices = np.cos(angles), np.sin(angles), np.tile(np.eye(3), (len(angles), 1, 1))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrices[:, i, i], matrices[:, i, j], matrices[:, j, i], matrices[:, j, j] = c, -s, s, c
    return matrices


def body(x=0.0, y=0.0, low=0.0, turns=None) -> np.ndarray:
    """Return the numbers [T, 15] of a cube; ``low`` is the height of its lowest corner."""
    turns = np.tile(np.eye(3), (24, 1, 1)) if turns is None else turns
    numbers = np.zeros((24, 15), np.float32)
    numbers[:, 3:9], numbers[:, 9:12] = turns[:, :, :2].swapaxes(1, 2).reshape(24, 6), SIDE
    numbers[:, 0], numbers[:, 1] = x, y
    numbers[:, 2] = low + SIDE / 2 * abs(turns[:, 2]).sum(-1)
    return numbers


def motion(*bodies: np.ndarray) -> np.ndarray:
    return np.stack([*bodies, *[np.zeros((24, 15), np.float32)] * (2 - len(bodies))], axis=1)


def tipping(way: str, slide: float = 0.0) -> np.ndarray:
    """Return a cube that slides some way and then turns about its lower edge."""
    first, angle = (4 * TIMES).clip(0, 1), np.pi / 2 * (3 * TIMES - 0.9).clip(0, 1)
    turns = turned(1 if way in ("left", "right") else 0, angle if way in ("right", "front") else -angle)
    r = SIDE / np.sqrt(2)
    along = slide * first + SIDE / 2 - r * np.cos(angle + np.pi / 4)
    x, y = ({"left": -1, "right": 1}.get(way, 0) * along, {"front": -1, "back": 1}.get(way, 0) * along)
    return body(x, y, turns=turns)


def jumping(height: float) -> np.ndarray:
    return 4 * height * SETTLED * (1 - SETTLED)


ALONE = {
    "stays": (body(), (STAYS,)),
    "slides left": (body(x=-0.3 * SETTLED), (Event("slides", "left"),)),
    "slides right": (body(x=0.14 * SETTLED), (Event("slides", "right", "a little"),)),
    "slides back": (body(y=0.5 * SETTLED), (Event("slides", "back", "far"),)),
    "slides front": (body(y=-0.5 * SETTLED), (Event("slides", "front", "far"),)),
    **{f"tips {way}": (tipping(way), (Event("tips", way),)) for way in WAYS},
    "slides and tips": (tipping("right", 0.3), (Event("slides", "right"), Event("tips", "right"))),
    "spins left": (body(turns=turned(2, np.pi / 2 * SETTLED)), (Event("spins", "left", "a quarter turn"),)),
    "spins right": (body(turns=turned(2, -np.pi * SETTLED)), (Event("spins", "right", "half a turn"),)),
    "jumps": (body(low=jumping(0.15)), (Event("jumps"),)),
    "jumps high": (body(low=jumping(0.4)), (Event("jumps", "", "high"),)),
    "jumps and tips": (
        body(low=jumping(0.15), turns=turned(1, np.pi / 2 * SETTLED)), (Event("jumps"), Event("tips", "right"))),
    "falls": (body(low=0.4 * (1 - SETTLED)), (Event("falls"),)),
    "falls and slides": (body(x=0.3 * SETTLED, low=0.4 * (1 - SETTLED)), (Event("falls"), Event("slides", "right"))),
    "falls and tips": (
        body(low=0.4 * (1 - SETTLED), turns=turned(0, -np.pi / 2 * SETTLED)), (Event("falls"), Event("tips", "back"))),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_one_body(name):
    numbers, events = ALONE[name]
    assert happening(motion(numbers)) == Happening(events)
    assert is_clear(motion(numbers)) and event_of(Happening(events)) == name.removesuffix(" high")
    beside = body(x=0.6 if "left" in name else -0.6)
    assert clear_happening(motion(numbers, beside)) == Happening(events, False, (STAYS,))


def test_two_bodies():
    pushed, arrives = body(x=0.3 + 0.3 * (2 * SETTLED - 1).clip(0)), body(x=-0.2 + 0.3 * SETTLED)
    slides = (Event("slides", "right"),)
    assert clear_happening(motion(arrives, pushed)) == Happening(slides, True, slides)
    assert clear_happening(motion(arrives, body(x=0.3))) == Happening(slides, True, (STAYS,))
    assert clear_happening(motion(arrives, body(x=0.45))) == Happening(slides, False, (STAYS,))
    over = tipping("right")
    over[:, 0] += 0.3
    assert clear_happening(motion(arrives, over)) == Happening(slides, True, (Event("tips", "right"),))
    assert not is_clear(motion(body(low=0.6 - 0.3 * SETTLED), body()))  # it hangs in the air
    lands = body(low=0.5 - 0.3 * SETTLED)
    assert clear_happening(motion(lands, body())) == Happening((Event("lands"),), False, (STAYS,))
    assert event_of(happening(motion(lands, body()))) == "falls onto"


@pytest.mark.parametrize(
    "numbers",
    [
        body(x=0.07 * SETTLED),  # a slide or none
        body(x=0.21 * SETTLED),  # a little, or more
        body(x=0.3 * SETTLED, y=0.25 * SETTLED),  # to the right or to the back
        body(x=0.5 * TIMES),  # at rest at last?
        body(turns=turned(2, 1.1 * SETTLED)),
        body(turns=turned(2, 2.3 * SETTLED)),
        body(turns=turned(1, 1.0 * SETTLED)),  # on its edge
        body(turns=turned(1, np.pi * SETTLED)),  # upside down
        body(low=jumping(0.09)),
        body(low=0.4 - 0.2 * SETTLED),  # in the air at last
    ],
)
def test_what_is_near_a_threshold_is_not_clear(numbers):
    assert not is_clear(motion(numbers))


def test_a_gap_between_a_hit_and_none_is_not_clear():
    arrives = body(x=-0.2 + 0.3 * SETTLED)
    assert not is_clear(motion(arrives, body(x=0.335)))
    assert not is_clear(motion(body(), body(x=0.5 + 0.2 * SETTLED)))  # moved by nothing


def test_nothing_and_noise_are_read():
    assert happening(np.zeros((24, 2, 15), np.float32)) == Happening((STAYS,))
    assert not is_clear(np.zeros((24, 2, 15), np.float32)) and not is_clear(motion(np.zeros((24, 15)), body()))
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 100):
        what = happening((rng.standard_normal((24, 2, 15)) * scale).astype(np.float32))
        assert isinstance(event_of(what), str) and sentence(what, NAMES)


def test_small_errors_change_nothing():
    rng = np.random.default_rng(0)
    for name, (numbers, events) in ALONE.items():
        for _ in range(5):
            noisy = numbers.copy()
            noisy[:, :3] += rng.normal(0, 0.005, (24, 3))
            noisy[:, 3:9] += rng.normal(0, 0.015, (24, 6))
            assert happening(motion(noisy)).first == events, name


SENTENCES = {
    "a red chair stays": Happening((STAYS,)),
    "a red chair slides far to the left and hits a blue lamp, which tips over to the left": Happening(
        (Event("slides", "left", "far"),), True, (Event("tips", "left"),)),
    "a red chair falls to the floor and tips over to the back": Happening((Event("falls"), Event("tips", "back"))),
    "a red chair falls onto a blue lamp": Happening((Event("lands"),), False, (STAYS,)),
    "a red chair spins half a turn to the right, and a blue lamp stays": Happening(
        (Event("spins", "right", "half a turn"),), False, (STAYS,)),
    "a red chair jumps high": Happening((Event("jumps", "", "high"),)),
}  # fmt: skip


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences(text):
    names = NAMES[: len(SENTENCES[text].second) + 1]
    assert sentence(SENTENCES[text], names) == text and read_sentence(text) == (SENTENCES[text], names)


PHRASES = st.lists(st.sampled_from(list(_PHRASES)), min_size=1, max_size=2).map(tuple)
WORDS = st.lists(st.sampled_from(["red", "chair", "table and chairs", "which", "hits", "far", "left-hand"]), min_size=1)
HAPPENINGS = st.one_of(
    PHRASES.map(Happening),
    st.builds(Happening, PHRASES, st.booleans(), PHRASES),
    st.builds(lambda then, second: Happening((Event("lands"), *then[:1]), False, second), PHRASES, PHRASES),
    PHRASES.map(lambda second: Happening((Event("lands"),), False, second)),
)


@settings(max_examples=300, deadline=None)
@given(HAPPENINGS, WORDS, WORDS)
def test_sentences_come_back(what, a, b):
    names = (f"a {' '.join(a)}", f"an {' '.join(b)}")[: 2 if what.second else 1]
    assert read_sentence(sentence(what, names)) == (what, names)
    assert Happening.from_dict(json.loads(json.dumps(what.as_dict()))) == what
    assert {what} == {Happening.from_dict(what.as_dict())}


@pytest.mark.parametrize("text", ["", "a red chair", "a red chair slides", "a red chair flies away", "hits a lamp"])
def test_what_is_no_such_sentence(text):
    assert read_sentence(text) == (None, ())


def test_classes():
    assert len(set(EVENTS)) == len(EVENTS) == 21
    assert {e.size for e in _PHRASES} == {size for sizes in SIZES.values() for size in sizes} | {""}
    assert len(set(_PHRASES.values())) == len(_PHRASES)
