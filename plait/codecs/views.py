"""Images of things in three dimensions: points, painted from the farthest to the nearest, by a parallel projection.

The cube of a scene has side 1, stands on the floor (z = 0) and is centred in x and y. The eye looks down on it from the
front, a little from the right.
"""

import numpy as np

from plait.codecs.meshes import faces_of

TURN, TILT = 28.0, 24.0
"""Degrees by which the eye is to the right, and above."""
BACKGROUND = (255, 255, 255)
FLOOR = (226, 226, 224)
"""Colour of the disc that things stand on."""
SHADOW = 0.82
"""Share of the floor's light below a thing."""
AMBIENT = 0.62
"""Share of the light that comes from everywhere."""
SUN = np.array([0.35, -0.55, 0.76])
"""Direction to the rest of the light."""
MARGIN = 1.52
"""Cube sides that the image is wide."""
FINER = 2
"""Pixels are painted so many times finer along each side, and averaged."""


def view_cells(cells: np.ndarray, size: int, *, turn: float = TURN, tilt: float = TILT) -> np.ndarray:
    """Return an image uint8 [size, size, 3] of cells uint8 [S, S, S, 4]."""
    return view_points(*face_points(cells, size), size, turn=turn, tilt=tilt)


def face_points(cells: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points on the outer faces of cells, dense enough for an image ``size`` wide; normals and colours."""
    corners, quads, colours = faces_of(cells)
    side = cells.shape[0]
    steps = int(np.ceil(1.5 * FINER * size / (MARGIN * side))) + 1
    u, v = (grid.ravel() for grid in np.meshgrid(*[(np.arange(steps) + 0.5) / steps] * 2))
    first, second, last = (corners[quads[:, k]].astype(np.float64) for k in (0, 1, 3))
    along, across = second - first, last - first
    points = first[:, None] + along[:, None] * u[:, None] + across[:, None] * v[:, None]
    normals = np.repeat(np.cross(along, across), steps**2, axis=0)
    placed = (points.reshape(-1, 3) - (side / 2, side / 2, 0)) / side
    return placed, normals, np.repeat(colours[:, :3], steps**2, axis=0)


def view_points(
    points: np.ndarray, normals: np.ndarray, colours: np.ndarray, size: int, *, turn: float = TURN, tilt: float = TILT
) -> np.ndarray:
    """Return an image uint8 [size, size, 3] of points [N, 3] in cube sides, with normals and colours 0 to 255."""
    light = AMBIENT + (1 - AMBIENT) * np.clip(normals @ SUN, 0, None)
    ground = _floor(size, points)
    painted = np.clip(colours * light[:, None], 0, 255)
    wide = FINER * size
    canvas = np.empty((wide * wide, 3), np.float32)
    canvas[:] = BACKGROUND
    for some, paint in ((ground[0], ground[1]), (points, painted)):
        places, depth = _projected(some, wide, turn, tilt)
        order = np.argsort(-depth, kind="stable")
        canvas[places[order]] = paint[order]
    return canvas.reshape(size, FINER, size, FINER, 3).mean((1, 3)).round().astype(np.uint8)


def _projected(points: np.ndarray, wide: int, turn: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel of each point, as a number, and how far away it is."""
    t, s = np.radians(turn), np.radians(tilt)
    right = np.array([np.cos(t), np.sin(t), 0])
    away = np.array([-np.sin(t) * np.cos(s), np.cos(t) * np.cos(s), -np.sin(s)])
    up = np.cross(right, away)
    centred = points - (0, 0, 0.42)
    x, y = (np.clip(((a / MARGIN) + 0.5) * wide, 0, wide - 1).astype(int) for a in (centred @ right, centred @ -up))
    return y * wide + x, centred @ away


def _floor(size: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the disc that things stand on, and their colours: darker below things."""
    steps = int(2 * FINER * size / MARGIN) + 1
    line = np.linspace(-0.72, 0.72, steps)
    x, y = (grid.ravel() for grid in np.meshgrid(line, line))
    disc = np.hypot(x, y) <= 0.72
    shade = np.zeros((steps, steps), bool)
    low = points[points[:, 2] < 0.6]
    i, j = (np.clip(((low[:, k] + 0.72) / 1.44 * (steps - 1)).round().astype(int), 0, steps - 1) for k in (0, 1))
    shade[j, i] = True
    colours = np.where(shade.ravel()[:, None], SHADOW, 1.0) * np.array(FLOOR, np.float32)
    flat = np.stack([x, y, np.zeros_like(x)], 1)[disc]
    return flat, colours[disc]
