"""Cells as boxes, and whose they are: boxes of equal filling, the parts that touch, the objects, and a motion's bodies.

Cells are uint8 [S, S, S, 4] along x, y and z (up), as `plait.codecs.meshes` has them. In space they are a cube of side
1 that stands on the floor z = 0, its middle above the origin.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.codecs.meshes import FILLED
from plait.codecs.motions import EXTENTS, POSITION, present, rotations
from plait.common.errors import ResourceError

Corner = tuple[int, int, int]
OBJECT_SHARE = 0.02
"""Of the filled cells: a part of so many is an object, a smaller one belongs to the object nearest to it."""


@dataclass(frozen=True)
class Box:
    """A box of cells: from ``low`` to below ``high``, and the mean of their colours."""

    low: Corner
    high: Corner
    colour: Corner

    @property
    def volume(self) -> int:
        """Number of its cells."""
        return int(np.prod(np.subtract(self.high, self.low)))


def boxes_of(cells: np.ndarray) -> list[Box]:
    """Return boxes that hold every filled cell once, and no empty one: each as long, then deep, then high as it can.

    Greedy: not the fewest boxes that there are.
    """
    left = _bits(cells[..., 3] >= FILLED)
    corners = []
    for z, layer in enumerate(left):
        for y in range(len(layer)):
            while layer[y]:
                start = (layer[y] & -layer[y]).bit_length() - 1
                run = layer[y] >> start
                length = (~run & (run + 1)).bit_length() - 1
                depth, height = _taken(left, z, y, ((1 << length) - 1) << start)
                corners.append(((start, y, z), (start + length, y + depth, z + height)))
    return [Box(low, high, colour) for (low, high), colour in zip(corners, _means(cells, corners), strict=True)]


def _bits(filled: np.ndarray) -> list[list[int]]:
    """Return a number for each row of cells along x, at [z][y]: bit x says that the cell is filled."""
    packed = np.packbits(filled.transpose(2, 1, 0), axis=-1, bitorder="little")
    return [[int.from_bytes(row.tobytes(), "little") for row in layer] for layer in packed]


def _taken(left: list[list[int]], z: int, y: int, mask: int) -> tuple[int, int]:
    """Take the largest box that starts with the cells of a mask, in y first; return its depth and height."""
    layer, end = left[z], y + 1
    while end < len(layer) and layer[end] & mask == mask:
        end += 1
    top = z + 1
    while top < len(left) and all(row & mask == mask for row in left[top][y:end]):
        top += 1
    for some in left[z:top]:
        some[y:end] = [row & ~mask for row in some[y:end]]
    return end - y, top - z


def _means(cells: np.ndarray, corners: list[tuple[Corner, Corner]]) -> list[Corner]:
    """Return the mean colour of the cells of each box."""
    owner = np.full(cells.shape[:3], len(corners))
    for number, (low, high) in enumerate(corners):
        owner[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = number
    inside = owner < len(corners)
    numbers, colours = owner[inside], cells[inside][:, :3]
    counts = np.bincount(numbers, minlength=len(corners))
    sums = np.stack([np.bincount(numbers, weights=c, minlength=len(corners)) for c in colours.T], axis=1)
    return [(r, g, b) for r, g, b in np.round(sums / np.maximum(counts, 1)[:, None]).astype(int).tolist()]


def parts_of(cells: np.ndarray) -> np.ndarray:
    """Return the parts of a scene, int32 [S, S, S]: 0 where empty, else 1, 2, ... of cells that touch by a face."""
    return _ndimage().label(cells[..., 3] >= FILLED)[0]


def objects_of(cells: np.ndarray) -> list[np.ndarray]:
    """Return the scene split by objects: parts of at least `OBJECT_SHARE`, each with the small ones nearest to it.

    Every filled cell is in one object; none where no cell is filled.
    """
    parts = parts_of(cells)
    counts = np.bincount(parts.ravel())[1:]
    is_object = counts >= max(OBJECT_SHARE * counts.sum(), 1)
    if counts.size and not is_object.any():  # dust: the largest part stands for the object
        is_object[counts.argmax()] = True
    owners = np.arange(len(counts) + 1)
    if not is_object.all():
        held = np.isin(parts, 1 + np.flatnonzero(is_object))
        distances, nearest = _ndimage().distance_transform_edt(~held, return_indices=True)
        for number in 1 + np.flatnonzero(~is_object):
            places = np.argwhere(parts == number)
            closest = places[distances[tuple(places.T)].argmin()]
            owners[number] = parts[tuple(nearest[:, *closest])]
    owner = owners[parts]
    return [_only(cells, owner == number) for number in 1 + np.flatnonzero(is_object)]


def bodies_of(cells: np.ndarray, motion: np.ndarray) -> list[np.ndarray]:
    """Return the scene split by the bodies of a motion [T, B, 15], one item for each of the B.

    A filled cell belongs to the body whose box of the first step is nearest to it: the one that holds it, or the one
    in which it lies deeper. Bodies that are absent have no cells.
    """
    size = cells.shape[0]
    places = np.argwhere(cells[..., 3] >= FILLED)
    points = (places + 0.5) / size - (0.5, 0.5, 0)
    first, turns, there = motion[0], rotations(motion)[0], present(motion)
    distances = np.full((len(first), len(places)), np.inf)
    for body in there:
        beyond = np.abs((points - first[body, POSITION]) @ turns[body]) - first[body, EXTENTS] / 2
        distances[body] = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
    owners = np.full(cells.shape[:3], -1)
    if there:
        owners[tuple(places.T)] = distances.argmin(axis=0)
    return [_only(cells, owners == body) for body in range(len(first))]


def _only(cells: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the cells of a mask, and nothing else."""
    return cells * mask[..., None]


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise ResourceError(
            "scene3d: package 'scipy' is not installed, install it: pip install 'plait[worlds]'"
        ) from None
    return ndimage
