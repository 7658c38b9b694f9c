"""benchmarks/rooms.py: rooms of simple things are stable, ones that are inside one another are not."""

import json
import sys

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

mujoco = pytest.importorskip("mujoco")


@pytest.fixture
def rooms(monkeypatch):
    """The script as a module, with simulations of a few seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rooms

    monkeypatch.setattr(rooms, "SECONDS", 2.0)
    yield rooms
    sys.modules.pop("rooms")


def blocks(count: int, size: int = 16) -> list[np.ndarray]:
    """Return things of a slab and a post on it."""
    found = []
    for number in range(count):
        cells = np.zeros((size, size, size, 4), np.uint8)
        cells[2:14, 2:14, :3] = (200, 20 * number % 256, 40, 255)
        cells[6:10, 6:10, 3 : 6 + number % 8] = (40, 60, 200, 255)
        found.append(cells)
    return found


def test_rooms_are_ten_each_and_what_fills_none_is_left_out(rooms):
    items = blocks(23)
    found = rooms.rooms_of(items)
    assert [len(room) for room in found] == [10, 10] and found[1][0] is items[10]
    model = mujoco.MjModel.from_xml_string(rooms.room_xml(found[0]))
    assert sum(model.body(i).name.startswith("thing") for i in range(model.nbody)) == 10
    assert model.nu == 2 and model.body("ball").dofnum == 6


def test_simple_things_are_stable(rooms, tmp_path, capsys):
    found = rooms.measure({"real": blocks(10)}, tmp_path / "rooms.png")
    (room,) = found["real"]
    assert room.stable and room.finite and room.inside and room.bodies == 10 and room.sunk < 0.02
    assert 0.2 <= room.moved <= 1, "the arm and the ball move some of them"
    first, *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(first)["stable"] and "rooms.png" in last
    assert len({line.count("|") for line in table}) == 1 and table[-1].startswith("| real | 1 | 100% |")
    with Image.open(tmp_path / "rooms.png") as image:
        assert image.size == (1280, 480) and len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20


def test_things_inside_one_another_are_not(rooms, monkeypatch):
    monkeypatch.setattr(rooms, "APART", 0.2)
    monkeypatch.setattr(rooms, "SECONDS", 0.5)
    room, _ = rooms.simulate(blocks(10))
    assert not room.stable and (room.fastest > rooms.FASTEST or not room.inside or not room.finite)


def test_a_room_with_nothing_in_a_place_is_not_stable(rooms, monkeypatch):
    monkeypatch.setattr(rooms, "SECONDS", 0.1)
    room, _ = rooms.simulate([*blocks(9), blocks(1)[0] * 0])
    assert not room.stable and (room.bodies, room.empty) == (9, 1)


def test_what_sinks_is_seen(rooms, monkeypatch):
    """On a floor that is lower than it is to be."""
    text = rooms.room_xml
    monkeypatch.setattr(rooms, "SECONDS", 0.5)
    lower = ('type="plane"', 'type="plane" pos="0 0 -0.1"')
    monkeypatch.setattr(rooms, "room_xml", lambda items: text(items).replace(*lower))
    room, _ = rooms.simulate(blocks(10))
    assert not room.stable and 0.08 < room.sunk < 0.12
