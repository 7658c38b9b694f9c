"""Rigid boxes under gravity, by MuJoCo: what happens to up to two bodies on a floor, and how far poses overlap.

A side of the scene's cube is 1 m. The floor is z = 0 and has no end. Boxes slide with `FRICTION` and do not bounce.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.codecs.motions import (
    COLOUR,
    COLUMN_1,
    COLUMN_2,
    EXTENTS,
    LEAST_EXTENT,
    NUMBERS,
    POSITION,
    STEPS_PER_SECOND,
    corners,
    gaps,
    present,
    rotations,
)
from plait.common.errors import DataError, ResourceError

GRAVITY = 9.81
"""Sides of the cube per second squared."""
FRICTION = 0.4
"""Of boxes with the floor and with each other: one that slides slows down by FRICTION * GRAVITY."""
DENSITY = 200.0
MOST_BODIES = 2
STEPS = 24
"""Time steps of a motion."""
_FINE = 20  # MuJoCo's steps in one time step

_REST = 1e-3, 0.05  # velocities and accelerations below which nothing moves any more

# a motion that is none may say any speed, spin, place and extent, which would break the simulation
_FASTEST, _FARTHEST = (20.0, 40.0), 3.0
_THINNEST = 0.02  # the same of extents

# contacts are stiffer than MuJoCo's own, so that what lands sinks in by millimetres, and still smooth at this step
_WORLD = """<mujoco><option timestep="{step}" gravity="0 0 -{gravity}" integrator="implicit" cone="elliptic"
impratio="10"/><default><geom friction="{friction} 0 0" solref=".01 1" density="{density}"/></default>
<worldbody><geom type="plane" size="9 9 1"/>{bodies}</worldbody></mujoco>"""
_BODY = '<body><freejoint/><geom type="box" size="{}"/></body>'


@dataclass
class Body:
    """A box and how it moves at time 0. Lengths are in sides of the cube, times in seconds, angles in radians."""

    extents: Sequence[float]
    """Full extents along its own axes [3]."""
    position: Sequence[float]
    """Of its centre [3]: x to the right, y away, z up."""
    yaw: float = 0.0
    """How far it is turned about the vertical, counterclockwise as seen from above."""
    velocity: Sequence[float] = (0.0, 0.0, 0.0)
    """Of its centre [3]."""
    spin: Sequence[float] = (0.0, 0.0, 0.0)
    """Angular velocity about the axes of the cube [3]."""
    colour: Sequence[float] = (0.5, 0.5, 0.5)
    """Red, green and blue, 0 to 1."""

    @property
    def mass(self) -> float:
        """By its volume, in kilograms."""
        return DENSITY * math.prod(self.extents)

    @property
    def columns(self) -> list[float]:
        """The first two columns of its rotation matrix [6]."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return [c, s, 0.0, -s, c, 0.0]


def simulate(bodies: Sequence[Body], steps: int = STEPS) -> np.ndarray:
    """Return the motion float32 [steps, 2, 15] of one or two bodies, `STEPS_PER_SECOND`; the first step is time 0.

    Raises DataError for another number of bodies, and for boxes that are not there (`LEAST_EXTENT`).
    """
    if not 1 <= len(bodies) <= MOST_BODIES:
        raise DataError(f"worlds: {len(bodies)} bodies are not allowed, there must be 1 or {MOST_BODIES}")
    for body in bodies:
        if min(body.extents) <= 0 or np.mean(body.extents) < LEAST_EXTENT:
            raise DataError(
                f"worlds: a box of extents {tuple(body.extents)} is not allowed, they must be above 0, "
                f"and {LEAST_EXTENT} or more on average"
            )
    first = np.zeros((1, MOST_BODIES, NUMBERS))
    for pose, body in zip(first[0], bodies, strict=False):
        pose[:] = [*body.position, *body.columns, *body.extents, *body.colour]
    return _simulated(first, [b.velocity for b in bodies], [b.spin for b in bodies], steps)


def again(motion: np.ndarray) -> np.ndarray:
    """Return the simulation from the first pose and the first velocity of a motion [T, B, 15]: what physics would do.

    The velocity at time 0 is that of the parabola through the first three steps, exact for what slides or falls. A
    first pose that is below the floor is lifted onto it; places, extents and speeds without sense are limited.
    """
    there = present(motion)
    first = motion[:1].astype(np.float64)
    first[:, there] = first[:, there].clip(-_FARTHEST, _FARTHEST)
    sunk = corners(first)[0, ..., 2].min(-1).clip(max=0)
    first[0, there, 2] -= sunk[there]
    rates = [-1.5 * STEPS_PER_SECOND, 2.0 * STEPS_PER_SECOND, -0.5 * STEPS_PER_SECOND]
    velocities = np.einsum("t,tbi->bi", rates, motion[:3, :, POSITION].astype(np.float64))
    turns = rotations(motion[:3])
    spins = np.einsum("t,tbi->bi", rates, _rotation_vectors(turns @ turns[0].swapaxes(-1, -2)))
    velocities, spins = (
        values[there].clip(-most, most) for values, most in ((velocities, _FASTEST[0]), (spins, _FASTEST[1]))
    )
    return _simulated(first, velocities, spins, len(motion))


def penetration(motion: np.ndarray) -> float:
    """Return how deep boxes overlap with each other or the floor at worst, in sides of the cube; 0 where none does.

    Not by MuJoCo's contacts, which say half of the depth where faces meet.
    """
    there = present(motion)
    depths = -corners(motion[:, there])[..., 2]
    deepest = float(depths.max()) if there else 0.0
    if there[:2] == [0, 1]:
        deepest = max(deepest, float(-gaps(motion).min()))
    return max(deepest, 0.0)


def _simulated(first: np.ndarray, velocities: Sequence, spins: Sequence, steps: int) -> np.ndarray:
    """Return the motion from a first pose [1, B, 15]; velocities and spins [n, 3] are those of the bodies there."""
    there = present(first)
    motion = np.zeros((steps, *first.shape[1:]), np.float32)
    if not there:
        return motion
    mujoco = mujoco_package()
    extents, turned = first[0, there, EXTENTS], rotations(first[:, there])
    model, data = _world(extents)
    data.qpos[:] = np.concatenate([first[0, there, POSITION], _quaternions(turned)[0]], axis=-1).ravel()
    # MuJoCo has the angular velocity of a free joint in the axes of the body
    local = np.einsum("bij,bi->bj", turned[0], np.asarray(spins, float))
    data.qvel[:] = np.concatenate([velocities, local], axis=-1).ravel()
    for same in (EXTENTS, COLOUR):
        motion[:, there, same] = first[0, there, same]
    for step in range(steps):
        # where the bodies are, not where MuJoCo's last step found them
        mujoco.mj_kinematics(model, data)
        motion[step, there, POSITION] = data.xpos[1:]
        matrices = data.xmat[1:].reshape(-1, 3, 3)
        motion[step, there, COLUMN_1], motion[step, there, COLUMN_2] = matrices[..., 0], matrices[..., 1]
        if step and abs(data.qvel).max() < _REST[0] and abs(data.qacc).max() < _REST[1]:
            motion[step + 1 :] = motion[step]
            break
        mujoco.mj_step(model, data, nstep=_FINE)
    return motion


def _world(extents: np.ndarray) -> tuple[Any, Any]:
    """Return MuJoCo's model and data of boxes [n, 3] on the floor. Compiling takes 0.3 ms: a tenth of a simulation."""
    mujoco = mujoco_package()
    bodies = "".join(_BODY.format(" ".join(f"{max(e, _THINNEST) / 2:.9g}" for e in box)) for box in extents)
    step = 1 / (STEPS_PER_SECOND * _FINE)
    text = _WORLD.format(step=step, gravity=GRAVITY, friction=FRICTION, density=DENSITY, bodies=bodies)
    model = mujoco.MjModel.from_xml_string(text)
    return model, mujoco.MjData(model)


def _quaternions(matrices: np.ndarray) -> np.ndarray:
    """Return the unit quaternions [..., 4] (w first) of rotation matrices [..., 3, 3]."""
    vectors = _rotation_vectors(matrices)
    angles = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # sinc(x) = sin(pi x) / (pi x): defined at 0 too
    return np.concatenate([np.cos(angles / 2), vectors / 2 * np.sinc(angles / (2 * np.pi))], axis=-1)


def _rotation_vectors(matrices: np.ndarray) -> np.ndarray:
    """Return axis times angle [..., 3], the angle from 0 to pi, of rotation matrices [..., 3, 3]."""
    mujoco = mujoco_package()
    flat, vectors, quaternion = matrices.reshape(-1, 9), np.empty((matrices[..., 0, 0].size, 3)), np.empty(4)
    for matrix, vector in zip(flat, vectors, strict=True):
        mujoco.mju_mat2Quat(quaternion, matrix)
        mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vectors.reshape(*matrices.shape[:-2], 3)


def mujoco_package() -> Any:
    """Return the module mujoco; raises ResourceError where it is not installed."""
    try:
        import mujoco
    except ImportError:
        raise ResourceError(
            "worlds: package 'mujoco' is not installed, install it: pip install 'plait[worlds]'"
        ) from None
    return mujoco
