"""Things in three dimensions on a page: a still image, which a script makes into a view to turn with the mouse.

The script draws by three.js (MIT), which trimesh ships with a viewer; where trimesh is missing, or ships it otherwise,
pages show the still image alone.
"""

import base64
import functools
import html
import importlib.util
import re
import zipfile
from pathlib import Path

import numpy as np

from plait.codecs.boxes import bodies_of
from plait.codecs.images import image_html
from plait.codecs.meshes import FILLED
from plait.codecs.motions import STEPS_PER_SECOND, paths_svg
from plait.codecs.views import view_cells

SCRIPT = Path(__file__).parent / "templates" / "viewer.js"
STILL = 128
"""Pixels along each side of the still image."""
_THREE = re.compile(r"<script>\s*(/\*\*\s*\* @license\s[^/]*Three\.js Authors[^/]*\*/\n[^\n]+)\n")
"""three.js in trimesh's page: a note of its licence, and one line."""


def viewer_scripts() -> tuple[str, ...]:
    """Return three.js and the script of views, for `Codec.page_scripts`; nothing where there is no three.js."""
    three = _three()
    return (three, SCRIPT.read_text("utf-8")) if three else ()


@functools.cache
def _three() -> str:
    """Return three.js out of trimesh's viewer, "" where there is none."""
    package = importlib.util.find_spec("trimesh")
    for folder in package.submodule_search_locations or () if package else ():
        try:
            with zipfile.ZipFile(Path(folder) / "resources" / "templates" / "viewer.zip") as file:
                page = file.read("viewer.html.template").decode("utf-8")
        except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError):
            continue
        found = _THREE.search(page)
        if found and "InstancedMesh" in found[1] and "</script" not in found[1].lower():
            return found[1]
    return ""


def scene_html(cells: np.ndarray) -> str:
    """Return HTML of a scene, cells uint8 [S, S, S, 4]."""
    owners = np.where(cells[..., 3] >= FILLED, 0, -1)
    return _host(_still(cells), cells_label(cells), cells=_rows(cells, owners)[:, :6], side=len(cells))


def motion_html(motion: np.ndarray, cells: np.ndarray | None = None) -> str:
    """Return HTML of a motion float32 [T, B, 15] that plays: of the cells of its first moment, or of boxes."""
    label = f"{len(motion)} steps, {len(motion) / STEPS_PER_SECOND:.1f} s"
    data = {"motion": motion.astype("<f4"), "bodies": motion.shape[1], "rate": STEPS_PER_SECOND}
    if cells is None:
        return _host(paths_svg(motion), label, **data)
    owners = np.full(cells.shape[:3], -1)
    for body, some in enumerate(bodies_of(cells, motion)):
        owners[some[..., 3] >= FILLED] = body
    return _host(_still(cells), f"{cells_label(cells)}; {label}", **data, cells=_rows(cells, owners), side=len(cells))


def cells_label(cells: np.ndarray) -> str:
    """Return how many cells there are, and how many are filled."""
    return f"{' × '.join(map(str, cells.shape[:3]))} cells, {int((cells[..., 3] >= FILLED).sum()):,} filled"


def _still(cells: np.ndarray) -> str:
    return image_html(view_cells(cells, STILL)).replace('alt=""', f'alt="{cells_label(cells)}"', 1)


def _host(still: str, label: str, **data: np.ndarray | int) -> str:
    """Return an element that holds a still image, and what the script shows in its place."""
    values = {k: base64.b64encode(v.tobytes()).decode() if isinstance(v, np.ndarray) else v for k, v in data.items()}
    attributes = "".join(f' data-{name}="{value}"' for name, value in values.items())
    return f'<div class="plait-3d" data-label="{html.escape(label)}"{attributes}>{still}</div>'


def _rows(cells: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return x, y, z, red, green, blue and owner, uint8 [N, 7], of the cells that touch one of another owner."""
    padded = np.pad(owners, 1, constant_values=-1)
    covered = np.ones(owners.shape, bool)
    for axis in range(3):
        for shift in (1, -1):
            covered &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1] == owners
    places = np.argwhere((owners >= 0) & ~covered)
    shown = tuple(places.T)
    return np.column_stack([places, cells[shown][:, :3], owners[shown]]).astype(np.uint8)
