"""How near is a set of scenes to real ones? By the distances of their shapes, whatever the colours.

- mmd: the mean distance of a real scene to the nearest made one (minimum matching distance, arXiv 1707.02392).
- coverage: the share of real scenes that are the nearest one of some made scene (arXiv 1707.02392).
- one_nna: how often the nearest scene of both sets says whether a scene is made or real (arXiv 1906.12320): 50% where
  they cannot be told apart, 100% where they have nothing in common.

Each by two distances: chamfer, the mean distance from the outer cells of one scene to the nearest of the other, and
back, in sides of the cube; iou, 1 less the overlap. Row i of both sets is of one document, which the made scene was
asked to be like: the two are never compared with each other, else they would count as near without any merit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from plait.evaluate.measures import Measure, mean_of, package

LEAST, MOST = 10, 100
"""Scenes that a set needs, and how many of it are compared, the first ones."""
FARTHEST = 3**0.5
"""From a scene without a filled cell to any other, in sides of the cube: its diagonal."""


class Shapes(NamedTuple):
    """Scenes as rows of V cells, float32 [N, V] each."""

    filled: np.ndarray
    outer: np.ndarray
    """1 where a filled cell has an empty one, or nothing, beside a face."""
    distance: np.ndarray
    """From each cell to the nearest outer one, in sides of the cube."""


def set_figures(sets: Mapping[str, np.ndarray], target: np.ndarray) -> tuple[dict[str, Measure], dict[str, float]]:
    """Return the figures of sets of scenes, bool [N, S, S, S] each, against the set ``target``.

    Of the set "" as FIGURE_DISTANCE, with intervals, and of the others as FIGURE_DISTANCE_SET.
    """
    measures: dict[str, Measure] = {}
    beside: dict[str, float] = {}
    real = shapes_of(target[:MOST])
    among_real = {kind: apart(distance(real, real)) for kind, distance in DISTANCES.items()}
    for name, scenes in sets.items():
        for figure, values in _figures(shapes_of(scenes[:MOST]), real, among_real):
            if name:
                beside[f"{figure}_{name}"] = float(values.mean())
            else:  # figures of the set alone: no item has a part in them that could be compared
                measures[figure] = replace(mean_of(values.tolist()), items=None)
    return measures, beside


def _figures(made: Shapes, real: Shapes, among_real: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the figures of one set, and what each is the mean of; of as many scenes as both sets have."""
    n = min(len(made.filled), len(real.filled))
    made, real = (Shapes(*(rows[:n] for rows in shapes)) for shapes in (made, real))
    for kind, distance in DISTANCES.items():
        across, of_made, of_real = apart(distance(made, real)), apart(distance(made, made)), among_real[kind][:n, :n]
        yield f"mmd_{kind}", across.min(0)
        yield f"coverage_{kind}", np.isin(np.arange(n), across.argmin(1)).astype(float)
        nearer = [(of_made.min(1), across.min(1)), (of_real.min(1), across.min(0))]
        yield f"one_nna_{kind}", np.concatenate([(own < other) + 0.5 * (own == other) for own, other in nearer])


def apart(distances: np.ndarray) -> np.ndarray:
    """Return distances [N, N] of which those of a row with itself are infinite."""
    return distances + np.diag(np.full(len(distances), np.inf)) if len(distances) else distances


def shapes_of(scenes: np.ndarray) -> Shapes:
    """Return what scenes, bool [N, S, S, S], are compared by."""
    ndimage, size = package("scipy.ndimage"), scenes.shape[1]
    outer = np.stack([scene & ~ndimage.binary_erosion(scene) for scene in scenes])
    farthest = np.full(scenes.shape[1:], FARTHEST * size)
    distance = np.stack([ndimage.distance_transform_edt(~o) if o.any() else farthest for o in outer]) / size
    return Shapes(*(x.reshape(len(scenes), -1).astype(np.float32) for x in (scenes, outer, distance)))


def chamfer(shapes: Shapes, others: Shapes) -> np.ndarray:
    """Return [N, M]: the mean distance of outer cells to the nearest one of the other scene, of both directions.

    Of all outer cells, not of points drawn from them: with the distance of every cell of the cube to the nearest outer
    cell at hand, the sum over a scene's cells is a product of matrices.
    """

    def one_way(a: Shapes, b: Shapes) -> np.ndarray:
        counts = a.outer.sum(1)[:, None]
        beyond = np.where(b.outer.any(1), FARTHEST, 0.0)  # of a scene without cells to one that has some
        return np.where(counts > 0, a.outer @ b.distance.T / np.maximum(counts, 1), beyond)

    return (one_way(shapes, others) + one_way(others, shapes).T) / 2


def overlap(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return [N, M]: the cells that both fill, of those that one fills, of rows [N, V] and [M, V]; 1 for two empty."""
    a, b = (rows.reshape(len(rows), -1).astype(np.float32) for rows in (shapes, others))
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _one_less_overlap(shapes: Shapes, others: Shapes) -> np.ndarray:
    return 1 - overlap(shapes.filled, others.filled)


DISTANCES: dict[str, Callable[[Shapes, Shapes], np.ndarray]] = {"chamfer": chamfer, "iou": _one_less_overlap}
"""Distances [N, M] of shapes, by what figures call them."""
