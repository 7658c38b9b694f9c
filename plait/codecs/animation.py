"""Motions as files that move: an animated GLB, and an animated GIF.

Bodies look as the scene's cells do that belong to them (`plait.codecs.boxes.bodies_of`) where the scene is known, and
as boxes of their colours where it is not.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs.boxes import bodies_of
from plait.codecs.meshes import FILLED, Z_TO_Y, mesh_of, trimesh_package
from plait.codecs.motions import EXTENTS, POSITION, STEPS_PER_SECOND, colour_of, present, rotations
from plait.codecs.views import face_points, view_points

GIF_SIZE = 256
"""Pixels along each side."""
PAUSE = 1.0
"""Seconds that a GIF stays at its end."""
_FLOAT = 5126
"""glTF's number for float32."""


@dataclass
class Shape:
    """How a body looks: cells uint8 [S, S, S, 4] of a cube, and how points of the cube lie in the body's frame.

    A point p of the cube is at (p - middle) * scale, turned by ``rotation`` from the frame of the cube to the body's.
    """

    body: int
    cells: np.ndarray
    middle: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return points [N, 3] of the cube in the body's frame."""
        return (points - self.middle) @ self.rotation * self.scale


def shapes_of(motion: np.ndarray, scene: np.ndarray | None) -> list[Shape]:
    """Return the shapes of the bodies of a motion [T, B, 15] that are there."""
    split = [None] * motion.shape[1] if scene is None else bodies_of(scene, motion)
    turns, shapes = rotations(motion)[0], []
    for body in present(motion):
        cells = split[body]
        if cells is not None and (cells[..., 3] >= FILLED).any():
            middle = motion[0, body, POSITION].astype(np.float64)
            shapes.append(Shape(body, cells, middle, turns[body], np.ones(3)))
        else:
            cube = np.array([*colour_of(motion, body), 255], np.uint8).reshape(1, 1, 1, 4)
            extents = motion[0, body, EXTENTS].astype(np.float64)
            shapes.append(Shape(body, cube, np.array([0, 0, 0.5]), np.eye(3), extents))
    return shapes


def write_animated_glb(motion: np.ndarray, path: Path, scene: np.ndarray | None = None) -> None:
    """Write a motion as GLB, y up: a node for each body, with keyframes of its translation and rotation."""
    shapes, trimesh = shapes_of(motion, scene), trimesh_package()
    parts = trimesh.Scene()
    for shape in shapes:
        mesh = mesh_of(shape.cells, y_up=False, painted=True)
        mesh.vertices = shape.local(mesh.vertices) @ Z_TO_Y.T
        parts.add_geometry(mesh, node_name=_name(shape), geom_name=_name(shape))
    poses = {_name(shape): _poses(motion, shape.body) for shape in shapes}
    path.write_bytes(
        trimesh.exchange.gltf.export_glb(parts, buffer_postprocessor=lambda items, tree: _animate(items, tree, poses))
    )


def _name(shape: Shape) -> str:
    return f"body{shape.body}"


def _poses(motion: np.ndarray, body: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the translations [T, 3] and quaternions xyzw [T, 4] of a body, float32, y up."""
    turned = Z_TO_Y @ rotations(motion)[:, body] @ Z_TO_Y.T
    quaternion = trimesh_package().transformations.quaternion_from_matrix
    quaternions = np.array([quaternion(matrix) for matrix in turned])[:, [1, 2, 3, 0]]
    for before, now in itertools.pairwise(quaternions):
        now *= -1 if before @ now < 0 else 1  # the shorter way, for viewers that blend numbers
    return (motion[:, body, POSITION] @ Z_TO_Y.T).astype(np.float32), quaternions.astype(np.float32)


def _animate(items: Any, tree: dict[str, Any], poses: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Add keyframes to a glTF that is being written: its buffers and its tree (trimesh's ordered maps)."""

    def added(name: str, values: np.ndarray) -> int:
        items[name] = values.astype("<f4").tobytes()
        columns = values.reshape(len(values), -1)
        tree["accessors"][name] = {
            "bufferView": len(items) - 1, "componentType": _FLOAT, "count": len(values),
            "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[columns.shape[1]],
            "min": columns.min(0).tolist(), "max": columns.max(0).tolist(),
        }  # fmt: skip
        return len(tree["accessors"]) - 1

    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []
    for number, node in enumerate(tree["nodes"]):
        if node["name"] not in poses:
            continue
        for target, values in zip(("translation", "rotation"), poses[node["name"]], strict=True):
            node[target] = values[0].tolist()
            times = (np.arange(len(values)) / STEPS_PER_SECOND).astype(np.float32)
            output = added(f"{node['name']} {target}", values)
            samplers.append({"input": added("times", times) if not samplers else samplers[0]["input"],
                             "interpolation": "LINEAR", "output": output})  # fmt: skip
            channels.append({"sampler": len(samplers) - 1, "target": {"node": number, "path": target}})
    if channels:
        tree["animations"] = [{"name": "motion", "samplers": samplers, "channels": channels}]


def frames_of(motion: np.ndarray, scene: np.ndarray | None = None, size: int = GIF_SIZE) -> list[np.ndarray]:
    """Return an image uint8 [size, size, 3] of each step."""
    turns, parts = rotations(motion), []
    for shape in shapes_of(motion, scene):
        points, normals, colours = face_points(shape.cells, int(np.ceil(size * shape.scale.max())))
        parts.append((shape.body, shape.local(points), normals @ shape.rotation, colours))
    if not parts:
        return [view_points(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)), size)] * len(motion)
    frames = []
    for step in range(len(motion)):
        moved = [(points @ turns[step, body].T + motion[step, body, POSITION], normals @ turns[step, body].T, colours)
                 for body, points, normals, colours in parts]  # fmt: skip
        points, normals, colours = (np.concatenate(some) for some in zip(*moved, strict=True))
        frames.append(view_points(points, normals, colours, size))
    return frames


def write_gif(motion: np.ndarray, path: Path, scene: np.ndarray | None = None) -> None:
    """Write a motion as an animated GIF that repeats, at its own speed, with a pause at its end."""
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in frames_of(motion, scene)]
    step = round(1000 / STEPS_PER_SECOND)
    durations = [step] * (len(frames) - 1) + [round(1000 * PAUSE)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def scene_among(others: Sequence[tuple[str, Any]]) -> np.ndarray | None:
    """Return the last scene among parts of a document, each its kind and the item; None where there is none."""
    scenes = [item for kind, item in others if kind == "scene3d"]
    return scenes[-1] if scenes else None
