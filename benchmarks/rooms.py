"""Generated things in use: rooms of ten, in which a ball rolls and an arm pushes for ten seconds of physics.

    python benchmarks/rooms.py runs/worlds                 (ten rooms of generated things, ten of real ones: minutes)
    python benchmarks/rooms.py runs/worlds --rooms 2 --picture rooms.png

Room k holds what the captions of ten held-out documents of one thing each gave, with the seeds 10k to 10k + 9: none is
chosen. Each thing is a free body of boxes at a place of its own, on a floor with four walls. The same rooms with the
documents' own models stand beside. A room is stable if its simulation stays finite and without a warning of MuJoCo,
nothing leaves it or sinks into its floor, and no energy comes from nowhere.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

import plait
from plait.codecs.boxes import objects_of
from plait.codecs.meshes import FILLED
from plait.codecs.mjcf import TIMESTEP, add_object, text_of, world_of
from plait.codecs.views import view_points
from plait.common.errors import DataError
from plait.data.sources import open_sources, validation_splits
from plait.evaluate.measures import wilson
from plait.generate.pipeline import Pipeline
from plait.prepare.raw import RawDocument, raw_documents
from plait.prepare.raw_sources import opened, remade
from plait.run.load import run_config
from plait.worlds.physics import mujoco_package

PER_ROOM = 10
COLUMNS, ROWS = 4, 3
"""Places of things: a grid along x and y, of which the first ten are taken."""
SIDE, APART = 0.6, 0.8
"""Metres of a thing's cube, and from one place to the next."""
HALF = np.array([COLUMNS * APART / 2 + 0.5, ROWS * APART / 2 + 0.5])
"""Metres from the middle to the walls."""
WALL = 1.0
"""Metres of their height."""
SECONDS = 10.0
CHECKED = 4
"""Steps of the simulation from one check to the next."""
BALL_SPEED = 3.0
"""Metres per second."""
SINK = 0.02
"""Metres that a body may be below the floor."""
GAIN, FASTEST = 0.5, 2 * BALL_SPEED
"""Joules that may come from nowhere, by the errors of the integration, and metres per second of the fastest body: what
falls from a table is slower than that."""


@dataclass
class Room:
    """What came of a room."""

    bodies: int
    empty: int
    """Things without a filled cell: a room that has one is not stable."""
    stable: bool
    finite: bool
    warnings: int
    inside: bool
    sunk: float
    """Metres of the deepest corner below the floor."""
    gained: float
    """Most joules of the room beyond what it began with and what the arm put in."""
    fastest: float
    """Highest speed of a body, in metres per second."""
    moved: float
    """Share of the things whose middle moved by more than a tenth of the cube."""
    simulated_per_second: float
    """Simulated seconds in one of a clock."""


def rooms_of(items: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
    """Return the items of each room, ten by ten; those that fill no room are left out."""
    return [items[start : start + PER_ROOM] for start in range(0, len(items) - PER_ROOM + 1, PER_ROOM)]


def room_xml(items: Sequence[np.ndarray]) -> str:
    """Return the model of a room: up to `COLUMNS` * `ROWS` things, walls, a ball, and an arm: a paddle on rails."""
    root, world = world_of(extent=2 * float(HALF.max()), model="room")
    spots = itertools.product(range(ROWS), range(COLUMNS))
    for number, (item, (row, column)) in enumerate(zip(items, spots, strict=False)):
        place = ((column - (COLUMNS - 1) / 2) * APART, (row - (ROWS - 1) / 2) * APART)
        for part, cells in enumerate(objects_of(item)):
            add_object(world, cells, f"thing{number}.{part}", place=place, side=SIDE)
    for axis, sign in itertools.product((0, 1), (-1, 1)):
        middle, size = np.zeros(2), HALF + 0.2
        middle[axis], size[axis] = sign * (HALF[axis] + 0.1), 0.1
        at, half = (f"{x:g} {y:g} {WALL / 2}" for x, y in (middle, size))
        ET.SubElement(world, "geom", name=f"wall{axis}{sign:+d}", type="box", rgba="0.8 0.8 0.8 0.3", pos=at, size=half)
    ball = ET.SubElement(world, "body", name="ball", pos=f"{-HALF[0] + 0.2:g} 0 0.1")
    ET.SubElement(ball, "freejoint")
    ET.SubElement(ball, "geom", type="sphere", size="0.1", mass="2", rgba="0.9 0.45 0.1 1")
    add_arm(root, world)
    return text_of(root)


def add_arm(root: ET.Element, world: ET.Element) -> None:
    """Add a paddle that two motors of limited force move along x and y, in the corner on the left and in front."""
    corner = -HALF + 0.2
    arm = ET.SubElement(world, "body", name="arm", pos=f"{corner[0]:g} {corner[1]:g} 0.25", gravcomp="1")
    actuators = ET.SubElement(root, "actuator")
    for axis, (name, along) in enumerate((("x", "1 0 0"), ("y", "0 1 0"))):
        ET.SubElement(arm, "joint", name=name, type="slide", axis=along, damping="5", limited="true",
                      range=f"0 {2 * HALF[axis] - 0.4:g}")  # fmt: skip
        ET.SubElement(actuators, "position", joint=name, kp="400", kv="60", forcerange="-60 60")
    ET.SubElement(arm, "geom", type="box", size="0.04 0.15 0.2", mass="2", rgba="0.2 0.25 0.3 1")


def arm_target(seconds: float) -> np.ndarray:
    """Return where the arm is to be at a time: it sweeps through the rows of things, there, back, and there again."""
    wide, deep = 2 * HALF - 0.4
    lanes = [deep / 2 + (row - (ROWS - 1) / 2) * APART for row in range(ROWS)]
    path = np.array([(0, lanes[0]), (wide, lanes[0]), (wide, lanes[1]), (0, lanes[1]), (0, lanes[2]), (wide, lanes[2])])
    times = np.array([0.05, 0.32, 0.37, 0.64, 0.69, 0.96]) * SECONDS
    return np.array([np.interp(seconds, times, path[:, axis]) for axis in range(2)])


def simulate(items: Sequence[np.ndarray]) -> tuple[Room, list[np.ndarray]]:
    """Simulate a room; return what came of it, and images of it before and after."""
    mujoco = mujoco_package()
    model = mujoco.MjModel.from_xml_string(room_xml(items))
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    data = mujoco.MjData(model)
    ball = model.joint(model.body("ball").jntadr[0]).dofadr[0]
    data.qvel[ball] = BALL_SPEED
    mujoco.mj_forward(model, data)
    things = [i for i in range(model.nbody) if model.body(i).name.startswith("thing")]
    free = [*things, model.body("ball").id]
    first, images = data.xpos[things].copy(), [image_of(model, data)]
    begun, work, gained, sunk, fastest = float(data.energy.sum()), 0.0, 0.0, 0.0, 0.0
    finite = inside = True
    started = time.process_time()
    for step in range(round(SECONDS / TIMESTEP)):
        data.ctrl[:] = arm_target(step * TIMESTEP)
        mujoco.mj_step(model, data)
        gained = max(gained, float(data.energy.sum()) - begun - work)  # all from before the step
        work += float(data.actuator_force @ data.actuator_velocity) * TIMESTEP
        if step % CHECKED:
            continue
        finite = bool(np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all())
        if not finite:
            break
        sunk = max(sunk, -lowest(model, data))
        fastest = max(fastest, float(np.linalg.norm(data.cvel[free, 3:], axis=1).max()))
        inside &= bool((np.abs(data.xpos[free, :2]) <= HALF).all() and (data.xpos[free, 2] < WALL + SIDE).all())
    taken, warnings = time.process_time() - started, int(data.warning.number.sum())
    moved = np.linalg.norm(data.xpos[things] - first, axis=1) > SIDE / 10
    empty = sum(not (item[..., 3] >= FILLED).any() for item in items)
    stable = finite and inside and not (warnings or empty or sunk > SINK or gained > GAIN or fastest > FASTEST)
    share = float(moved.mean()) if finite and things else 0.0
    room = Room(len(things), empty, stable, finite, warnings, inside, round(sunk, 4), round(gained, 3),
                round(fastest, 2), round(share, 3), round(SECONDS / taken, 2))  # fmt: skip
    return room, [*images, image_of(model, data)] if finite else images


def lowest(model: Any, data: Any) -> float:
    """Return the height of the lowest corner of all boxes that are no walls, in metres."""
    free = (model.geom_bodyid > 0) & (model.geom_type == mujoco_package().mjtGeom.mjGEOM_BOX)
    reach = (np.abs(data.geom_xmat[free][:, 6:9]) * model.geom_size[free]).sum(axis=1)
    return float((data.geom_xpos[free, 2] - reach).min())


def image_of(model: Any, data: Any, size: int = 640) -> np.ndarray:
    """Return an image uint8 [3/4 size, size, 3] of the boxes and the ball of a room; walls are left out."""
    boxes = mujoco_package().mjtGeom.mjGEOM_BOX
    scale, clouds = 0.62 / HALF.max(), []
    for number in np.flatnonzero(model.geom_bodyid > 0):
        half = model.geom_size[number]
        if model.geom_type[number] == boxes:
            points, normals = box_points(half, 0.4 / (scale * size))
        else:
            normals = np.random.default_rng(0).standard_normal((20_000, 3))
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            points = normals * half[0]
        turn = data.geom_xmat[number].reshape(3, 3).T
        colours = np.tile(255 * model.geom_rgba[number, :3].astype(np.float64), (len(points), 1))
        clouds.append(((points @ turn + data.geom_xpos[number]) * scale, normals @ turn, colours))
    points, normals, colours = (np.concatenate(some) for some in zip(*clouds, strict=True))
    return view_points(points, normals, colours, size, tilt=38)[size // 4 :]


def box_points(half: np.ndarray, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points on the faces of a box of half extents, about so far apart, and their normals."""
    points, normals = [], []
    for axis, sign in itertools.product(range(3), (-1, 1)):
        others = [a for a in range(3) if a != axis]
        lines = [np.linspace(-half[a], half[a], int(2 * half[a] / apart) + 2) for a in others]
        u, v = (grid.ravel() for grid in np.meshgrid(*lines))
        face, normal = np.empty((len(u), 3)), np.zeros(3)
        face[:, others[0]], face[:, others[1]], face[:, axis] = u, v, sign * half[axis]
        normal[axis] = sign
        points.append(face)
        normals.append(np.tile(normal, (len(u), 1)))
    return np.concatenate(points), np.concatenate(normals)


def held_out(run: str, pipeline: Pipeline, scene: str, count: int) -> list[tuple[str, np.ndarray]]:
    """Return caption and cells of held-out documents of one thing, the first that there are. Raises DataError."""
    config, found = run_config(run), []
    key, host = pipeline.codecs[scene].key, pipeline.codecs[pipeline.model.config.layout.host].key
    for split in validation_splits(config):
        for folder in open_sources(config, split)[0:1]:
            place = folder.folder
            source = remade(place, config.prepare, pipeline.codecs) or opened(place, config.prepare, pipeline.codecs)
            if source is None:
                raise DataError(f"rooms: the raw documents of {str(place)!r} are not there")
            for document in _documents(source, split, len(folder)):
                parts = dict(document.parts)
                alone = source.truths is None or source.truths.thing(document.meta)
                if {key, host} <= parts.keys() and alone and (parts[key][..., 3] >= FILLED).any():
                    found.append((parts[host], parts[key]))
                if len(found) == count:
                    return found
    raise DataError(f"rooms: there are {len(found)} held-out documents of one thing, {count} are needed")


def _documents(source: Any, split: str, count: int, at_once: int = 64) -> Iterator[RawDocument]:
    for start in range(0, count, at_once):
        yield from raw_documents(source, split, range(start, min(start + at_once, count)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--rooms", type=int, default=10, help="(default: 10)")
    parser.add_argument("--scene", default="", help="modality of scenes (default: the first of kind scene3d)")
    parser.add_argument("--picture", type=Path, default=Path("rooms.png"), help="image to write (default: rooms.png)")
    chosen = parser.parse_args(arguments)
    pipeline = plait.load(chosen.run)
    scene = chosen.scene or next(name for name, codec in pipeline.codecs.items() if codec.kind == "scene3d")
    documents = held_out(chosen.run, pipeline, scene, PER_ROOM * chosen.rooms)
    made = [pipeline.generate(caption, scene, seed=seed)[0].output[0][1]
            for seed, (caption, _) in enumerate(documents)]  # fmt: skip
    measure({"generated": made, "real": [cells for _, cells in documents]}, chosen.picture)


def measure(sets: dict[str, list[np.ndarray]], picture: Path) -> dict[str, list[Room]]:
    """Simulate the rooms of each set of cells; print a line of JSON for each room and a table, draw the first rooms."""
    from PIL import Image

    found: dict[str, list[Room]] = {}
    strips = []
    for name, items in sets.items():
        for number, room in enumerate(rooms_of(items)):
            result, images = simulate(room)
            found.setdefault(name, []).append(result)
            print(json.dumps({"things": name, "room": number} | asdict(result)), flush=True)
            if number == 0:
                strips.append(np.concatenate([*images, images[-1]][:2], axis=1))
    Image.fromarray(np.concatenate(strips)).save(picture)
    print("| things | rooms | stable | 95% interval | bodies | moved | deepest, m | gained, J | fastest, m/s |")
    print("|---" * 9 + "|")
    for name, rooms in found.items():
        stable = sum(room.stable for room in rooms)
        low, high = wilson(stable / len(rooms), len(rooms))
        print(f"| {name} | {len(rooms)} | {stable / len(rooms):.0%} | {low:.0%} to {high:.0%} "
              f"| {sum(room.bodies for room in rooms)} | {np.mean([room.moved for room in rooms]):.0%} "
              f"| {max(room.sunk for room in rooms):.3f} | {max(room.gained for room in rooms):.2f} "
              f"| {max(room.fastest for room in rooms):.1f} |")  # fmt: skip
    print(f"the first rooms, before and after: {picture}")
    return found


if __name__ == "__main__":
    main()
