"""Meshes as coloured cells, and back: GLB, OBJ, PLY and STL by trimesh, and cells in .npz.

A scene is scaled, in its proportions, to fit the cube, stands on its floor (z = 0), and is centred in x and y; GLB that
plait wrote comes back where it was. Files of formats whose upward axis is y (GLB, glTF, OBJ) are turned to z.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import DataError, ResourceError, first_line

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".npz")
"""Files of scenes."""
Y_UP = (".glb", ".gltf", ".obj")
"""Of these y points up, by their specification or by custom."""
Z_TO_Y = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""Turns what has z up to y up."""
CUBE = "plait_cube"
"""Mark of a mesh that says where in the cube it is: the cube has side 1, stands on the floor, and is centred."""
MOST_TRIANGLES = 500_000
POINTS = 60_000
"""Points on the surface that a mesh is turned into cells by, about."""
FILLED = 128
"""From this on the fourth number of a cell says that it is filled."""
INWARD = 0.01
"""Of a cell: points go so far below the surface, so that a face between two cells belongs to the one behind it."""


def read_scene(value: Any, base: Path, size: int) -> np.ndarray:
    """Return the cells uint8 [size, size, size, 4] of a file; raises DataError with the reason."""
    if not isinstance(value, str):
        raise DataError(f"scene3d: {value!r} is not allowed, it must be the path of a file ({', '.join(SUFFIXES)})")
    path = base / value
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"scene3d: {value!r} is not allowed, its suffix must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"scene3d: {value!r} is not there")
    if suffix == ".npz":
        return read_cells(path, size)
    parts = _parts(path)
    points, normals, colours = surface(path, parts)
    places = points * size + (size / 2, size / 2, 0)
    if all(part.metadata.get(CUBE) for part in parts) and (np.abs(places / size - 0.5) < 0.5 + 1e-3).all():
        return filled_by(places - INWARD * normals, colours, size)
    return voxelised(points, normals, colours, size)


def read_cells(path: Path, size: int) -> np.ndarray:
    """Return the array "cells" of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            cells = file["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"scene3d: {path.name!r} has no array 'cells' that can be read ({first_line(error)})") from None
    if cells.shape != (size, size, size, 4) or cells.dtype != np.uint8:
        raise DataError(
            f"scene3d: the cells of {path.name!r} are {cells.dtype} {list(cells.shape)}, they must be uint8 "
            f"{[size, size, size, 4]} (codec_options.size)"
        )
    return cells


def surface(path: Path, parts: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points on the surface of a mesh file, z upward, their normals and colours (uint8), [N, 3] each.

    ``parts`` are its meshes where they were read already.
    """
    parts = _parts(path) if parts is None else parts
    faces = sum(len(part.faces) for part in parts)
    if not faces:
        raise DataError(f"scene3d: {path.name!r} has no faces, so nothing that could be seen")
    if faces > MOST_TRIANGLES:
        raise DataError(f"scene3d: {path.name!r} has {faces:,} triangles, at most {MOST_TRIANGLES:,} are allowed")
    if not all(np.isfinite(part.vertices).all() for part in parts):
        raise DataError(f"scene3d: {path.name!r} has vertices that are not numbers (NaN or infinite)")
    areas = np.array([part.area for part in parts])
    if not areas.sum() > 0:
        raise DataError(f"scene3d: the faces of {path.name!r} have no area")
    counts = np.ceil(POINTS * areas / areas.sum()).astype(int)
    sampled = [_sampled(part, int(count)) for part, count in zip(parts, counts, strict=True) if count]
    points, normals, colours = (np.concatenate(some) for some in zip(*sampled, strict=True))
    if path.suffix.lower() in Y_UP:
        points, normals = (x[:, [0, 2, 1]] * (1, -1, 1) for x in (points, normals))
    return points, normals, colours


def _parts(path: Path) -> list[Any]:
    """Return the meshes of a file, each where the scene puts it."""
    trimesh = trimesh_package()

    class Resolver(trimesh.resolvers.FilePathResolver):  # type: ignore[name-defined]
        """Finds materials and textures beside the file, and remembers those that are not there."""

        def __init__(self, source: str):
            super().__init__(source)
            self.missing: list[str] = []

        def get(self, name: str) -> Any:
            try:
                return super().get(name)
            except (OSError, ValueError):
                self.missing.append(name)
                raise

    resolver = Resolver(str(path))
    try:
        scene = trimesh.load_scene(path, process=False, resolver=resolver)
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh)]
    except Exception as error:  # files of anything
        raise DataError(f"scene3d: {path.name!r} cannot be read as a mesh ({first_line(error)})") from None
    if resolver.missing:
        raise DataError(f"scene3d: {path.name!r} names the file {resolver.missing[0]!r}, which is not beside it")
    return parts


def _sampled(part: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points on a mesh, their normals, and their colours: of its texture, its material, or its faces."""
    if hasattr(part.visual, "material"):
        material = part.visual.material
        simple = material.to_simple() if hasattr(material, "to_simple") else material
        if part.visual.uv is None or getattr(simple, "image", None) is None:
            colours = np.tile(simple.main_color, (len(part.faces), 1))
            part.visual = trimesh_package().visual.ColorVisuals(part, face_colors=colours)
        else:
            part.visual.material = simple
    points, faces, colours = trimesh_package().sample.sample_surface(part, count, sample_color=True, seed=0)
    return np.asarray(points, float), np.asarray(part.face_normals[faces]), np.asarray(colours)[:, :3].astype(np.uint8)


def voxelised(points: np.ndarray, normals: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """Return the cells uint8 [size, size, size, 4] that points [N, 3] lie in, each of the mean colour of its points."""
    low, high = points.min(0), points.max(0)
    scale = size / max(float((high - low).max()), 1e-9)
    # whole cells on the left and in front, so that cells that were written come back as they were
    around = np.floor((size - (high - low) * scale) / 2 + 1e-6) * (1, 1, 0)
    return filled_by((points - low) * scale + around - INWARD * normals, colours, size)


def filled_by(points: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """Return the cells uint8 [size, size, size, 4] that points [N, 3], in cells, lie in, each of their mean colour."""
    places = np.clip(np.floor(points).astype(int), 0, size - 1)
    numbers = np.ravel_multi_index(places.T, (size, size, size))
    counts = np.bincount(numbers, minlength=size**3)
    cells = np.zeros((size**3, 4), np.uint8)
    filled = counts > 0
    for channel in range(3):
        sums = np.bincount(numbers, weights=colours[:, channel], minlength=size**3)
        cells[filled, channel] = np.round(sums[filled] / counts[filled])
    cells[filled, 3] = 255
    return cells.reshape(size, size, size, 4)


def faces_of(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the outer faces of filled cells: vertices [V, 3] in cells, z upward; quads [Q, 4]; colours [Q, 4]."""
    filled = cells[..., 3] >= FILLED
    corners, colours = [], []
    for axis in range(3):
        for side in (0, 1):
            neighbour = np.zeros_like(filled)
            source = [slice(None)] * 3
            target = [slice(None)] * 3
            source[axis], target[axis] = (
                (slice(1, None), slice(None, -1)) if side else (slice(None, -1), slice(1, None))
            )
            neighbour[tuple(target)] = filled[tuple(source)]
            shown = np.argwhere(filled & ~neighbour)
            u, v = [a for a in range(3) if a != axis]
            square = np.zeros((4, 3), int)
            square[:, axis] = side
            square[[1, 2], u] = 1
            square[[2, 3], v] = 1
            if (axis == 1) == bool(side):  # counter-clockwise as seen from outside
                square = square[::-1]
            corners.append((shown[:, None] + square[None]).reshape(-1, 3))
            colours.append(cells[tuple(shown.T)])
    vertices = np.concatenate(corners)
    quads = np.arange(len(vertices)).reshape(-1, 4)
    return vertices, quads, np.concatenate(colours)


def write_scene(cells: np.ndarray, path: Path) -> None:
    """Write cells as GLB, OBJ, PLY or STL, by the file's suffix, as .npz, or as a model for MuJoCo (.xml)."""
    if path.suffix == ".npz":
        np.savez_compressed(path, cells=cells)
        return
    if path.suffix == ".xml":
        from plait.codecs.mjcf import write_mjcf  # which takes from this file

        return write_mjcf(cells, path)
    mesh_of(cells, y_up=path.suffix in Y_UP, painted=path.suffix == ".glb").export(path)


def mesh_of(cells: np.ndarray, *, y_up: bool, painted: bool = False) -> Any:
    """Return the trimesh of cells' outer faces, as large as a cube of side 1 that stands on the floor.

    ``painted`` gives it a texture, whose colours every viewer of glTF shows as they are, in place of colours of faces,
    and the mark `CUBE`.
    """
    vertices, quads, colours = faces_of(cells)
    size = cells.shape[0]
    points = (vertices - (size / 2, size / 2, 0)) / size
    points = points @ Z_TO_Y.T if y_up else points
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    trimesh = trimesh_package()
    if not len(quads):  # nothing has no colours either, which some formats would ask for
        return trimesh.Trimesh(points, triangles, process=False)
    if painted:
        marked = {CUBE: True}
        return trimesh.Trimesh(points, triangles, visual=_texture(colours), metadata=marked, process=False)
    return trimesh.Trimesh(points, triangles, face_colors=np.concatenate([colours, colours]), process=False)


def _texture(colours: np.ndarray) -> Any:
    """Return a matt texture of four pixels for each colour, and where in it each corner of the quads [Q, 4] is.

    Between four pixels of a colour every reader finds that colour, however it mixes neighbours.
    """
    from PIL import Image

    visual = trimesh_package().visual
    palette, numbers = np.unique(colours[:, :3], axis=0, return_inverse=True)
    side = int(np.ceil(np.sqrt(len(palette))))
    pixels = np.zeros((side * side, 3), np.uint8)
    pixels[: len(palette)] = palette
    rows, columns = np.divmod(numbers.ravel(), side)
    uv = np.stack([(columns + 0.5) / side, 1 - (rows + 0.5) / side], axis=1)
    image = Image.fromarray(pixels.reshape(side, side, 3).repeat(2, axis=0).repeat(2, axis=1))
    material = visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=0.9)
    return visual.TextureVisuals(uv=np.repeat(uv, 4, axis=0), material=material)


def trimesh_package() -> Any:
    """Return the module trimesh; raises ResourceError where it is not installed."""
    try:
        import trimesh
    except ImportError:
        raise ResourceError(
            "scene3d: package 'trimesh' is not installed, install it: pip install 'plait[worlds]'"
        ) from None
    return trimesh
