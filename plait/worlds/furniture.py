"""Real things in three dimensions: the furniture of Debian's package `sweethome3d-furniture`, with names and makers.

The package is taken from where it is installed, from a file that was downloaded, or once by apt, and kept in the user's
cache. Each of its catalogues (.sh3f, a zip) names models in OBJ, their size and who made them.
"""

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs.meshes import surface
from plait.common.errors import DataError, ResourceError, first_line
from plait.common.files import atomic_file, atomic_folder

PACKAGE = "sweethome3d-furniture"
INSTALLED = Path("/usr/share/sweethome3d/furniture")
FILE = "PLAIT_FURNITURE"
"""Environment variable that names the package's file (.deb), or a folder with its catalogues."""
POINTS = 32_000
"""Points that are kept of each model's surface."""
CREDIT = (
    "Models by the makers named in Sweet Home 3D's furniture libraries (Scopia, Kator Legaz, Reallusion, Blend Swap's "
    "contributors and eTeks; https://www.sweethome3d.com), licences CC BY 3.0 "
    "(https://creativecommons.org/licenses/by/3.0/) and CC0; recoloured, and simplified to cells."
)
"""The line that a page which shows them has to carry."""


@dataclass(frozen=True)
class Model:
    """A model of a catalogue."""

    key: str
    """Its id, such as "Scopia#sofa"."""
    name: str
    """In English, in lower case."""
    category: str
    creator: str
    licence: str
    library: str
    """File name of its catalogue."""
    path: str
    """Of its mesh, in the catalogue."""
    size: tuple[float, float, float]
    """Width, depth and height in cm."""
    rotation: tuple[float, ...]
    """Nine numbers of a matrix, row by row, that sets the mesh upright (y up)."""


@dataclass(frozen=True)
class Surface:
    """Points on a model: in its box, which is 1 long where it is longest, stands on z = 0 and is centred; z upward."""

    points: np.ndarray
    """float32 [N, 3]"""
    normals: np.ndarray
    """float32 [N, 3]"""
    colours: np.ndarray
    """uint8 [N, 3]"""
    extents: tuple[float, float, float]
    """Of its box."""


@functools.cache
def catalogue() -> tuple[Model, ...]:
    """Return every model, in the order of the catalogues. Raises ResourceError where the package cannot be had."""
    properties = _package("javaproperties")
    models = []
    for path in sorted(folder().glob("*.sh3f")):
        try:
            with zipfile.ZipFile(path) as file:
                values = properties.loads(file.read("PluginFurnitureCatalog.properties"))
            numbers = [name.partition("#")[2] for name in values if name.startswith("id#")]
            models += [_model(values, number, path.name) for number in numbers]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            what = f"{str(path)!r} cannot be read as a catalogue ({first_line(error)})"
            raise ResourceError(f"furniture: {what}") from None
    return tuple(models)


def _model(values: dict[str, str], number: str, library: str) -> Model:
    def of(name: str, otherwise: str = "") -> str:
        return values.get(f"{name}#{number}", otherwise)

    size = (float(of("width")), float(of("depth")), float(of("height")))
    rotation = tuple(float(x) for x in of("modelRotation", "1 0 0 0 1 0 0 0 1").split())
    licence = of("license") or values.get("license", "")
    return Model(of("id"), of("name").lower(), of("category"), of("creator"), licence, library, of("model").lstrip("/"),
                 size, rotation)  # fmt: skip


@functools.lru_cache(maxsize=256)
def surface_of(model: Model) -> Surface:
    """Return points on a model's surface: read once, then kept. Raises DataError where its mesh cannot be read."""
    path = _kept(model)
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in ("points", "normals", "colours")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        kept = _read_surface(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, points=kept["points"], normals=kept["normals"], colours=kept["colours"])
    points = kept["points"].astype(np.float32)
    x, y, z = np.ptp(points, axis=0).tolist()
    return Surface(points, kept["normals"].astype(np.float32), kept["colours"], (x, y, z))


def is_readable(model: Model) -> bool:
    """Return whether a model's mesh can be read: a few name textures that the package lacks."""
    try:
        return _kept(model).is_file() or bool(surface_of(model))
    except DataError:
        return False


def _kept(model: Model) -> Path:
    """Return the file in the cache that keeps a model's surface; another package has other ones."""
    library = f"{Path(model.library).stem}-{_size_of(model.library)}"
    return _cache() / "surfaces" / library / (re.sub(r"\W+", "-", model.key) + ".npz")


@functools.cache
def _size_of(library: str) -> int:
    return (folder() / library).stat().st_size


def _read_surface(model: Model) -> dict[str, np.ndarray]:
    """Return points, normals (float16) and colours of a model, read from its mesh."""
    with tempfile.TemporaryDirectory(prefix="plait-") as temporary:
        with zipfile.ZipFile(folder() / model.library) as file:
            beside = model.path.rpartition("/")[0] + "/"
            file.extractall(temporary, [name for name in file.namelist() if name.startswith(beside)])
        points, normals, colours = surface(Path(temporary) / model.path)
    chosen = np.random.default_rng(0).permutation(len(points))[:POINTS]
    matrix = _upright(model.rotation)
    points, normals = (x[chosen] @ matrix.T for x in (points, normals))
    low, high = points.min(0), points.max(0)
    stretch = np.array(model.size) / np.maximum(high - low, 1e-9)
    points = (points - (low + high) / 2) * stretch
    normals = normals / stretch
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    points = points / max(model.size)
    points[:, 2] -= points[:, 2].min()
    return {"points": points.astype(np.float16), "normals": normals.astype(np.float16), "colours": colours[chosen]}


def _upright(rotation: tuple[float, ...]) -> np.ndarray:
    """Return a rotation that is meant for y up as one for z up."""
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)  # (x, y, z) with y up to (x, -z, y)
    return turn @ np.array(rotation).reshape(3, 3) @ turn.T


@functools.cache
def folder() -> Path:
    """Return the folder of the catalogues. Raises ResourceError where the package cannot be had."""
    given = os.environ.get(FILE, "")
    if given and Path(given).is_dir():
        return _with_catalogues(Path(given))
    if given:
        return _with_catalogues(_unpacked(Path(given)))
    if any(INSTALLED.glob("*.sh3f")):
        return INSTALLED
    kept = _cache() / "catalogues"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(prefix="plait-") as temporary:
            _unpacked(_downloaded(Path(temporary)))
    return _with_catalogues(kept)


def _with_catalogues(path: Path) -> Path:
    if not any(path.glob("*.sh3f")):
        raise ResourceError(f"furniture: {str(path)!r} has no catalogue (.sh3f), set {FILE} to a folder that has some")
    return path


def _downloaded(into: Path) -> Path:
    """Let apt fetch the package, 120 MB, and return its file."""
    apt = shutil.which("apt-get")
    said = "apt is not on this machine"
    if apt:
        print(f"furniture: fetching the Debian package {PACKAGE} (120 MB), once", file=sys.stderr, flush=True)
        done = subprocess.run([apt, "download", PACKAGE], cwd=into, capture_output=True, text=True, check=False)
        found = list(into.glob("*.deb"))
        if done.returncode == 0 and found:
            return found[0]
        reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
        said = f"apt-get download failed: {reason}"
    raise ResourceError(
        f"furniture: the Debian package {PACKAGE!r} (120 MB) cannot be fetched ({said}); install it, or download "
        f"its .deb from https://packages.debian.org/{PACKAGE} and set {FILE} to that file"
    )


def _unpacked(package: Path) -> Path:
    """Take the catalogues of a package's file into the cache, once, and return their folder."""
    kept = _cache() / "catalogues"
    if any(kept.glob("*.sh3f")):
        return kept
    debfile = _package("debian.debfile")
    try:
        data = debfile.DebFile(str(package)).data
        names = [str(name) for name in data if str(name).endswith(".sh3f")]
        with atomic_folder(kept) as temporary:
            for name in names:
                (temporary / Path(name).name).write_bytes(data.get_content(name))
    except Exception as error:  # a file of anything
        raise ResourceError(
            f"furniture: {str(package)!r} cannot be read as a Debian package ({first_line(error)})"
        ) from None
    return kept


def _cache() -> Path:
    return Path(_package("platformdirs").user_cache_path("plait")) / "furniture"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ResourceError(
            f"furniture: package {name.partition('.')[0]!r} is not installed, install it: pip install 'plait[worlds]'"
        ) from None
