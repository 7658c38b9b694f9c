"""Meshes, objects and their physics, and what reads the files of furniture."""

from pathlib import Path

import debian.debfile  # noqa: F401
import javaproperties  # noqa: F401
import numpy as np
import platformdirs  # noqa: F401

from plait.codecs.boxes import objects_of
from plait.codecs.meshes import read_scene, write_scene
from plait.worlds.physics import Body, simulate

motion = simulate([Body((0.3, 0.25, 0.2), (0, 0, 1.0))])
assert motion[-1, 0, 2] < motion[0, 0, 2]
cells = np.zeros((8, 8, 8, 4), np.uint8)
cells[:3, :3, :2] = cells[5:, 5:, :4] = 255
write_scene(cells, Path("scene.ply"))
assert len(objects_of(read_scene("scene.ply", Path(), 8))) == 2
