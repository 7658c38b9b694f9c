"""Cells as a model for MuJoCo (MJCF): each object a free body of boxes, on a floor, with a light and a camera.

Lengths are in cube sides, as metres: the cube has side 1 and stands on the floor z = 0, its middle above the origin.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from plait.codecs.boxes import boxes_of, objects_of

TIMESTEP = 0.005
"""Seconds of a step of the simulation."""
DENSITY = 300
"""kg per cubic metre, about that of furniture's wood."""
FRICTION = "0.6 0.005 0.0001"
"""Sliding, spinning and rolling."""
CONTACT = "0.01 1"
"""Time constant of contacts, twice the step: as hard as is stable. And their damping ratio."""


def write_mjcf(cells: np.ndarray, path: Path) -> None:
    """Write cells uint8 [S, S, S, 4] as a model that `python -m mujoco.viewer --mjcf=FILE` opens."""
    path.write_text(mjcf_of(cells), encoding="utf-8")


def mjcf_of(cells: np.ndarray) -> str:
    """Return the XML of a scene: a free body for each object, named object0, object1, ..., on a floor."""
    root, world = world_of(extent=1.0)
    for number, item in enumerate(objects_of(cells)):
        add_object(world, item, f"object{number}")
    return text_of(root)


def world_of(*, extent: float, model: str = "plait") -> tuple[ET.Element, ET.Element]:
    """Return the root of a model and its worldbody: a floor, a light and a camera for things of such an extent."""
    root = ET.Element("mujoco", model=model)
    ET.SubElement(root, "option", timestep=f"{TIMESTEP:g}", integrator="implicitfast")
    ET.SubElement(root, "statistic", center=f"0 0 {0.4 * min(extent, 1):g}", extent=f"{1.4 * extent:g}")
    visual = ET.SubElement(root, "visual")
    ET.SubElement(visual, "global", azimuth="118", elevation="-24")
    ET.SubElement(visual, "headlight", ambient="0.35 0.35 0.35", diffuse="0.35 0.35 0.35", specular="0 0 0")
    ET.SubElement(ET.SubElement(root, "default"), "geom", density=f"{DENSITY}", friction=FRICTION,
                  solref=CONTACT)  # fmt: skip
    asset = ET.SubElement(root, "asset")
    ET.SubElement(asset, "texture", type="skybox", builtin="gradient", rgb1="0.92 0.95 1", rgb2="0.6 0.7 0.85",
                  width="64", height="64")  # fmt: skip
    ET.SubElement(asset, "texture", name="tiles", type="2d", builtin="checker", rgb1="0.86 0.86 0.84",
                  rgb2="0.8 0.8 0.78", width="64", height="64")  # fmt: skip
    ET.SubElement(asset, "material", name="floor", texture="tiles", texrepeat="4 4", texuniform="true")
    world = ET.SubElement(root, "worldbody")
    ET.SubElement(world, "light", name="sun", pos=f"{extent:g} {-extent:g} {2 * extent:g}", dir="-0.4 0.45 -0.8",
                  directional="true", diffuse="0.6 0.6 0.6")  # fmt: skip
    ET.SubElement(world, "camera", name="front", pos=f"{0.9 * extent:g} {-1.7 * extent:g} {1.25 * extent:g}",
                  xyaxes="0.883 0.469 0 -0.191 0.359 0.914")  # fmt: skip
    ET.SubElement(world, "geom", name="floor", type="plane", size="0 0 0.1", material="floor")
    return root, world


def add_object(
    world: ET.Element, cells: np.ndarray, name: str, *, place: Sequence[float] = (0.0, 0.0), side: float = 1.0
) -> ET.Element:
    """Add a free body of the boxes of cells, its cube of such a side standing at ``place``; return it.

    The body's origin is the middle of the box around its cells.
    """
    boxes, size = boxes_of(cells), cells.shape[0]
    corners = np.array([(box.low, box.high) for box in boxes], float).reshape(-1, 2, 3)
    corners = (corners - (size / 2, size / 2, 0)) * (side / size) + (*place, 0)
    middle = (corners[:, 0].min(0) + corners[:, 1].max(0)) / 2
    body = ET.SubElement(world, "body", name=name, pos=_numbers(middle))
    ET.SubElement(body, "freejoint")
    for box, (low, high) in zip(boxes, corners, strict=True):
        ET.SubElement(body, "geom", type="box", pos=_numbers((low + high) / 2 - middle),
                      size=_numbers((high - low) / 2), rgba=_numbers([*np.array(box.colour) / 255, 1]))  # fmt: skip
    return body


def text_of(root: ET.Element) -> str:
    """Return the XML of a model, a line for each element."""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.6g}" for value in values)
