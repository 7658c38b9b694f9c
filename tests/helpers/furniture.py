"""A small furniture package: catalogues of boxes on legs, as those of Sweet Home 3D are written."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plait.worlds import furniture, world

_NAMES = """
anvil basket candle drum easel ferry globe hat ink jug kettle ladder mast nest oven pump quilt rake sled tub
"""
NAMES = _NAMES.split()
CATEGORIES = ("Kitchen", "Living room", "Office")


@contextlib.contextmanager
def small_package(folder: Path) -> Iterator[None]:
    """Let the world be that of the small package within, and its cache lie in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(furniture.FILE, str(write_package(folder / "package")))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        _forget()
        yield
    _forget()


def _forget() -> None:
    for cached in (furniture.catalogue, furniture.folder, furniture.surface_of, furniture._size_of, world.things,
                   world.can_carry, world._order):  # fmt: skip
        cached.cache_clear()


def write_package(folder: Path, names: list[str] = NAMES) -> Path:
    """Write two catalogues into ``folder`` and return it. The last model names a texture that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(2):
        lines = ["license=CC0"]
        with zipfile.ZipFile(folder / f"Library{k}.sh3f", "w") as file:
            for number, name in enumerate(names[k::2], start=1):
                rng = np.random.default_rng([k, number])
                obj, size = _mesh(rng)
                values = {"id": f"Library{k}#{name}", "name": name.capitalize(), "model": f"/{name}/{name}.obj",
                          "category": CATEGORIES[number % 3], "creator": f"Maker {k}"}  # fmt: skip
                values |= {key: 100 * side for key, side in zip(("width", "depth", "height"), size, strict=True)}
                lines += [f"{key}#{number}={value}" for key, value in values.items()]
                file.writestr(f"{name}/{name}.obj", f"mtllib {name}.mtl\nusemtl paint\n{obj}")
                colour = " ".join(f"{x:.2f}" for x in rng.uniform(0.2, 0.9, 3))
                is_last = k == 1 and number == len(names[k::2])
                texture = "map_Kd lost.png\n" if is_last else ""
                file.writestr(f"{name}/{name}.mtl", f"newmtl paint\nKd {colour}\n{texture}")
            file.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    return folder


def _mesh(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Return an OBJ of a board on a column, y up, and its width, depth and height."""
    import trimesh

    width, depth, height = rng.uniform(0.5, 1.0, 3)
    top = height * rng.uniform(0.2, 0.6)
    thinner = rng.uniform(0.3, 0.9, 2)
    board, column = (
        trimesh.creation.box((width, top, depth)),
        trimesh.creation.box((width * thinner[0], height - top, depth * thinner[1])),
    )
    board.apply_translation((0, height - top / 2, 0))
    column.apply_translation((0, (height - top) / 2, 0))
    mesh = trimesh.util.concatenate([board, column])
    vertices = "\n".join("v " + " ".join(f"{x:.4f}" for x in v) for v in mesh.vertices)
    uvs = "vt 0 0\nvt 1 0\nvt 1 1"
    faces = "\n".join("f " + " ".join(f"{i + 1}/{c}" for c, i in enumerate(f, start=1)) for f in mesh.faces)
    return f"{vertices}\n{uvs}\n{faces}\n", np.array([width, depth, height])
