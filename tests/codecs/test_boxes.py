"""Cells as boxes, objects and bodies: every filled cell once, and models that MuJoCo loads with the cells' volume."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from plait.codecs.boxes import bodies_of, boxes_of, objects_of, parts_of
from plait.codecs.meshes import write_scene
from plait.codecs.mjcf import DENSITY, mjcf_of
from plait.codecs.motions import EXTENTS, POSITION


def random_cells(seed: int) -> np.ndarray:
    """Return cells of a random size, from nearly empty to nearly full, in lumps or not."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 14))
    cells = np.zeros((size, size, size, 4), np.uint8)
    lumps = np.kron(rng.random((7, 7, 7)), np.ones((2, 2, 2)))[:size, :size, :size]
    filled = (lumps if seed % 2 else rng.random((size, size, size))) < rng.random()
    cells[filled] = np.concatenate([rng.integers(0, 256, (filled.sum(), 3)), np.full((filled.sum(), 1), 255)], axis=1)
    return cells


def block(cells: np.ndarray, low: tuple[int, ...], high: tuple[int, ...], colour=(200, 100, 50)) -> np.ndarray:
    cells[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = (*colour, 255)
    return cells


def empty(size: int = 16) -> np.ndarray:
    return np.zeros((size, size, size, 4), np.uint8)


def filled(cells: np.ndarray) -> np.ndarray:
    return cells[..., 3] > 0


@pytest.mark.parametrize("seed", range(60))
def test_every_filled_cell_is_in_one_box(seed):
    cells = random_cells(seed)
    times = np.zeros(cells.shape[:3], int)
    boxes = boxes_of(cells)
    for box in boxes:
        place = tuple(slice(a, b) for a, b in zip(box.low, box.high, strict=True))
        times[place] += 1
        assert cells[place].size == 4 * box.volume > 0
        assert np.allclose(cells[place][..., :3].reshape(-1, 3).mean(0), box.colour, atol=0.5)
    assert np.array_equal(times, filled(cells))
    assert len(boxes) <= filled(cells).sum()


def test_a_block_is_one_box():
    (box,) = boxes_of(block(empty(), (1, 2, 0), (16, 9, 5)))
    assert (box.low, box.high, box.colour) == ((1, 2, 0), (16, 9, 5), (200, 100, 50))
    assert boxes_of(empty()) == []


def test_parts_touch_by_faces():
    cells = block(block(empty(), (0, 0, 0), (2, 2, 2)), (2, 2, 0), (4, 4, 2))
    parts = parts_of(cells)
    assert parts.max() == 2 and parts[0, 0, 0] == parts[1, 1, 1] != parts[3, 3, 0] and parts[5, 5, 5] == 0
    assert parts_of(block(cells, (1, 2, 0), (2, 3, 1))).max() == 1


def test_small_parts_belong_to_the_nearest_object():
    cells = block(block(empty(), (0, 0, 0), (6, 6, 6)), (10, 0, 0), (16, 6, 6))
    crumbs = block(block(cells.copy(), (7, 0, 0), (8, 1, 1)), (9, 12, 12), (10, 13, 13))
    for objects, extra in ((objects_of(cells), 0), (objects_of(crumbs), 1)):
        assert [int(filled(item).sum()) for item in objects] == [216 + extra, 216 + extra]
    first, second = objects_of(crumbs)
    assert first[7, 0, 0, 3] and second[9, 12, 12, 3]
    assert np.array_equal(first + second, crumbs)
    assert objects_of(empty()) == []


def test_dust_alone_is_one_object():
    """Single cells, of which none has 2% of all."""
    cells = empty()
    cells[::2, ::2, ::2] = (9, 9, 9, 255)
    (item,) = objects_of(cells)
    assert np.array_equal(item, cells)


def test_a_cell_belongs_to_the_body_that_holds_it_or_is_nearest():
    size, motion = 16, np.zeros((3, 2, 15), np.float32)
    quarter = np.sqrt(0.5)
    motion[..., 3:9] = (quarter, quarter, 0, -quarter, quarter, 0)  # turned by 45 degrees about z
    motion[:, 0, POSITION], motion[:, 0, EXTENTS] = (-0.25, 0, 0.25), (0.3, 0.3, 0.5)
    motion[:, 1, POSITION], motion[:, 1, EXTENTS] = (0.25, 0, 0.25), (0.3, 0.3, 0.5)
    motion[1:, 0, 0] += 1  # later steps do not count
    cells = block(empty(size), (0, 0, 0), (size, size, size))
    left, right = bodies_of(cells, motion)
    assert np.array_equal(left + right, cells) and not (filled(left) & filled(right)).any()
    assert filled(left)[:8].all() and filled(right)[8:].all()
    motion[:, 1, EXTENTS] = (0.9, 0.9, 0.5)
    left, right = bodies_of(cells, motion)
    assert np.array_equal(left + right, cells) and right[6, 8, 2, 3], "the larger box reaches there"
    motion[:, 1] = 0
    left, absent = bodies_of(cells, motion)
    assert np.array_equal(left, cells) and not absent.any()
    assert not np.any(bodies_of(cells, motion * 0))


def test_mujoco_loads_the_model(tmp_path):
    mujoco = pytest.importorskip("mujoco")
    cells = block(block(empty(), (0, 0, 0), (6, 6, 6)), (10, 0, 3), (16, 6, 6), (10, 20, 30))
    block(block(cells, (6, 0, 0), (8, 2, 1)), (9, 9, 9), (10, 10, 10))
    write_scene(cells, tmp_path / "scene.xml")
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "scene.xml"))
    assert [model.body(i).name for i in range(model.nbody)] == ["world", "object0", "object1"] and model.nq == 14
    volume = filled(cells).sum() / 16**3
    assert 8 * np.prod(model.geom_size[1:], axis=1).sum() == pytest.approx(volume, rel=1e-4)
    assert model.body_mass.sum() == pytest.approx(DENSITY * volume, rel=1e-4)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    lowest = data.geom_xpos[1:, 2] - model.geom_size[1:, 2]
    assert lowest.min() == pytest.approx(0, abs=1e-6) and model.ncam == model.nlight == 1
    assert np.allclose(sorted({tuple(c) for c in model.geom_rgba[1:, :3]})[0], np.array((10, 20, 30)) / 255, atol=1e-4)
    places = np.argwhere(filled(cells))
    middle = ((places + 0.5).mean(0) - (8, 8, 0)) / 16
    assert np.allclose(data.subtree_com[0], middle, atol=1e-5)


def test_every_random_scene_is_a_model():
    mujoco = pytest.importorskip("mujoco")
    for seed in range(12):
        cells = random_cells(seed)
        model = mujoco.MjModel.from_xml_string(mjcf_of(cells))
        volume = filled(cells).sum() / len(cells) ** 3
        assert 8 * np.prod(model.geom_size[1:], axis=1).sum() == pytest.approx(volume, rel=1e-3), seed
        names = [body.get("name") for body in ET.fromstring(mjcf_of(cells)).iter("body")]
        assert names == [f"object{i}" for i in range(len(objects_of(cells)))]
