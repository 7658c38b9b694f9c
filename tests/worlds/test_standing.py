"""What stands: tables and pairs do, what leans or floats does not; and what is loose, by hand."""

import sys

import numpy as np
import pytest

from plait.common.errors import ResourceError
from plait.worlds.standing import loose, stands

SIZE = 32


def scene(*blocks: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """Return cells with blocks filled, each its range of x, y and z."""
    cells = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    for block in blocks:
        cells[tuple(slice(*span) for span in block)] = (120, 80, 40, 255)
    return cells


TOP = ((4, 28), (4, 28), (16, 19))
LEGS = [((x, x + 2), (y, y + 2), (0, 16)) for x in (4, 26) for y in (4, 26)]
SLAB = ((2, 12), (10, 20), (0, 3))


def test_what_stands():
    pytest.importorskip("mujoco")
    table = scene(TOP, *LEGS)
    assert stands(table)
    assert stands(scene(((2, 10), (10, 20), (0, 8)), ((20, 30), (10, 20), (0, 3)))), "two things"
    assert stands(scene(SLAB, ((4, 9), (12, 17), (3, 12)))), "one on the other"


def test_what_does_not():
    pytest.importorskip("mujoco")
    assert not stands(scene(TOP, LEGS[0], LEGS[1])), "two legs on one side"
    assert not stands(scene(SLAB, ((2, 12), (10, 20), (12, 16)))), "the second falls"
    assert not stands(scene(((14, 16), (14, 16), (0, 20)), ((14, 30), (14, 16), (20, 22)))), "it leans"
    assert not stands(scene(((10, 20), (10, 20), (10, 20)))), "it floats"
    assert not stands(scene())


def test_loose_by_hand():
    slab = scene(SLAB)  # 300 cells on the floor
    assert loose(scene()) == loose(slab) == 0.0
    assert loose(scene(SLAB, ((20, 21), (20, 21), (20, 30)))) == pytest.approx(10 / 310), "a splinter in the air"
    assert loose(scene(SLAB, ((20, 21), (20, 21), (0, 1)))) == 0.0, "it lies on the floor"
    assert loose(scene(SLAB, ((20, 24), (20, 24), (20, 22)))) == 0.0, "more than a twentieth"
    assert loose(scene(SLAB, ((12, 13), (20, 21), (3, 4)))) == pytest.approx(1 / 301), "it touches by an edge"


def test_without_mujoco(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ResourceError, match=r"package 'mujoco' is not installed, install it: pip install 'plait\[worl"):
        stands(scene(SLAB))
