"""Whether the objects of a scene stand, by a second of MuJoCo, and how much of a scene is loose."""

import numpy as np

from plait.codecs.boxes import parts_of
from plait.codecs.meshes import FILLED
from plait.codecs.mjcf import TIMESTEP, mjcf_of
from plait.worlds.physics import mujoco_package

SECONDS = 1.0
"""Simulated time."""
MOST_TURN, MOST_SHIFT = 20.0, 0.1
"""Degrees that the up axis of an object may turn, and cube sides that its middle may move."""
LARGE = 0.05
"""Of the filled cells: a part of so many that does not touch the floor is no loose piece, such as what lies on another
thing by its edges."""


def stands(cells: np.ndarray) -> bool:
    """Return whether each object of cells uint8 [S, S, S, 4], a rigid body of boxes, stands after a second.

    It does if its up axis turned by at most 20 degrees and its middle moved by at most 0.1 of the cube's side. A scene
    without a filled cell does not stand. Raises ResourceError where MuJoCo is not installed.
    """
    mujoco = mujoco_package()
    if not (cells[..., 3] >= FILLED).any():
        return False
    model = mujoco.MjModel.from_xml_string(mjcf_of(cells))
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    before = data.xpos[1:].copy()
    mujoco.mj_step(model, data, round(SECONDS / TIMESTEP))
    mujoco.mj_kinematics(model, data)
    shifts = np.linalg.norm(data.xpos[1:] - before, axis=1)
    upright = data.xmat[1:, 8] >= np.cos(np.radians(MOST_TURN))
    return bool(upright.all() and (shifts <= MOST_SHIFT).all() and not data.warning.number.any())


def loose(cells: np.ndarray) -> float:
    """Return the share of filled cells that are loose: 0 for none, and for a scene without any.

    Cells that touch by a face are a part. A cell is loose if its part neither touches the floor nor has at least 5% of
    the filled cells.
    """
    parts = parts_of(cells)
    counts = np.bincount(parts.ravel())
    counts[0] = 0
    is_loose = counts < LARGE * counts.sum()
    is_loose[np.unique(parts[:, :, 0])] = False
    return float(counts[is_loose].sum() / max(counts.sum(), 1))
