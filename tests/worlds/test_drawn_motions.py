"""Drawn motions: within the cube at first, clear, of all classes about equally, the same again, and learnable."""

import collections

import numpy as np
import pytest

from plait.codecs.motions import EXTENTS, POSITION, corners, present
from plait.common.errors import DataError
from plait.common.randomness import generator
from plait.worlds.events import EVENTS, event_of, happening, is_clear
from plait.worlds.motions import CELLS, REACH, attempt, draw, needs_two, snapped
from plait.worlds.physics import penetration, simulate

pytest.importorskip("mujoco")


def boxes(rng: np.random.Generator) -> list[list[float]]:
    """Return two boxes: of furniture, some are tall, some flat."""
    return [(rng.choice([9, 11, 13]) * np.array(shape) / 32).tolist() for shape in rng.choice(SHAPES, 2)]


SHAPES = np.array(
    [[1, 1, 1], [1, 0.6, 0.5], [0.5, 0.5, 1], [0.4, 0.3, 1], [0.7, 0.5, 1], [1, 0.5, 0.8], [0.8, 0.8, 0.3]]
)


@pytest.fixture(scope="module")
def drawn() -> list:
    rngs = [generator(0, "test motions", item=i) for i in range(250)]
    return [draw(rng, boxes(rng)) for rng in rngs]


def test_what_was_drawn_is_clear_and_within_the_cube(drawn):
    for bodies, motion, what in drawn:
        assert is_clear(motion) and happening(motion) == what and event_of(what) in EVENTS
        assert present(motion) == [0, 1][: len(bodies)] and (len(what.second) > 0) == (len(bodies) == 2)
        ends = corners(motion)[:, present(motion)]
        assert abs(ends[..., :2]).max() <= REACH
        first = ends[0] * CELLS
        assert abs(first - first.round()).max() < 1e-4, "boxes start on the borders of cells"
        assert abs(first[..., :2]).max() <= CELLS / 2 + 1e-4 and first[..., 2].min() > -1e-4
        assert first[..., 2].max() <= CELLS + 1e-4 and penetration(motion[:1]) < 1e-6
        assert all(body.yaw == 0 for body in bodies)


def test_classes_are_about_as_frequent(drawn):
    counts = collections.Counter(event_of(what) for _, _, what in drawn)
    expected = len(drawn) / len(EVENTS)
    assert set(counts) == set(EVENTS)
    assert sum((counts[e] - expected) ** 2 / expected for e in EVENTS) < 80  # of 20 degrees of freedom
    assert 0.4 < np.mean([len(bodies) == 2 for bodies, _, _ in drawn]) < 0.8


def test_the_same_again(drawn):
    rng = generator(0, "test motions", item=7)
    bodies, motion, what = draw(rng, boxes(rng))
    assert np.array_equal(motion, drawn[7][1]) and what == drawn[7][2]
    assert np.array_equal(simulate(bodies), motion)


def test_the_words_tell_the_motion(drawn):
    """The mean of the other motions of the same sentence is far nearer than guesses that all stays or goes on."""
    groups, errors = collections.defaultdict(list), []
    for bodies, motion, what in drawn:
        groups[what].append(motion[:, : len(bodies), POSITION] - motion[:1, : len(bodies), POSITION])
    for motions in (np.stack(m) for m in groups.values() if len(m) > 1):
        for i, motion in enumerate(motions):
            straight = motion[1] * np.arange(24)[:, None, None]
            guesses = (np.delete(motions, i, axis=0).mean(0), 0 * motion, straight)
            errors.append([np.linalg.norm(motion - guess, axis=-1).mean() for guess in guesses])
    same, stays, constant = np.mean(errors, axis=0)
    assert len(errors) > 150 and same < stays / 3 and same < constant / 3


def test_one_box_alone():
    rng = generator(0, "test one box")
    seen = {event_of(draw(rng, [(0.3, 0.3, 0.35)])[2]) for _ in range(40)}
    assert len(seen) > 10 and not any(map(needs_two, seen))
    assert attempt(rng, [(0.3, 0.3, 0.35)], "hits: slides") is None


def test_a_class_that_these_boxes_do_not_allow():
    assert attempt(generator(0, "test flat"), [(0.4, 0.4, 0.05)], "tips left") is None  # it would turn over and over
    bodies, motion, what = attempt(generator(0, "test tall"), [(0.2, 0.2, 0.4)], "tips left")
    assert what.first[0].way == "left" and motion[-1, 0, 0] < motion[0, 0, 0] and len(bodies) == 1


def test_extents_become_whole_cells():
    assert snapped((0.3, 0.01, 0.11)) == (10 / 32, 1 / 32, 4 / 32)
    _, motion, _ = draw(generator(0, "test cells"), [(0.3, 0.21, 0.11), (0.4, 0.2, 0.3)])
    assert motion[0, 0, EXTENTS].tolist() == [10 / 32, 7 / 32, 4 / 32]


@pytest.mark.parametrize(
    ("extents", "message"),
    [
        ([], "0 boxes are not allowed, there must be 1 or 2"),
        ([(0.3, 0.3, 0.3)] * 3, "3 boxes are not allowed"),
        ([(0.3, 0.3, 0.7)], r"extents \[0.3, 0.3, 0.7\] is not allowed, .* at most 0.48"),
        ([(0.3, 0, 0.3)], "three numbers above 0"),
        ([(0.3, 0.3)], "three numbers above 0"),
    ],
)
def test_bad_boxes(extents, message):
    with pytest.raises(DataError, match=message):
        draw(generator(0, "test bad"), extents)
