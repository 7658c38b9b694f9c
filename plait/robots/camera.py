"""Images of a simulated scene, by OpenGL where there is one and by casting rays where there is none.

`MUJOCO_GL` (egl, osmesa, glfw, disabled) chooses, as everywhere with MuJoCo. Where it is not set: EGL with a GPU, then
OSMesa (Debian's libosmesa6), then EGL without a GPU, then rays. `renderer_name` says which it is: images of one and of
another differ in shades, so a policy should be tried with what it was trained on.

Shadows, reflections and multisampling are off: without a GPU they take most of the time (10 images of 64 x 64 pixels a
second with them, 185 without; 150 by rays, on one core).
"""

import ctypes.util
import functools
import importlib
import os
import weakref
from typing import Any, Protocol

import numpy as np

from plait.common.errors import ResourceError, first_line

CAMERA = "corner2"
"""LeRobot's camera. From its place the view is narrower here, aimed at where hands work, and upright (LeRobot turns the
image), so that objects are large enough at 64 x 64 pixels."""
POSITION = (0.75, 0.075, 0.7)
AIM = (0.0, 0.68, 0.12)
FIELD_OF_VIEW = 46.0
"""Degrees. While experts do all 50 tasks, hands and objects are in view 99% of the time, and every goal."""

LARGEST = 256
"""Pixels along each side of the largest image."""

_GROUPS = 3  # MuJoCo shows the groups 0, 1 and 2 of geoms and sites
_SKY = (0.5, 0.495, 0.48)
_DEFAULT = (0.5, 0.5, 0.5, 1.0)  # a geom of this colour has that of its material
_OFF = ("disable", "disabled", "off", "false", "0")


class Camera(Protocol):
    """Makes images of a scene."""

    def image(self, data: Any, size: int) -> np.ndarray:
        """Return an upright image uint8 [size, size, 3] of MuJoCo's data."""

    def close(self) -> None:
        """Free what it holds."""


@functools.cache
def renderer_name() -> str:
    """Return what makes images in this process: "egl", "osmesa", "glfw", or "rays" where no OpenGL works.

    Raises ResourceError where `MUJOCO_GL` names one that does not work.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in _OFF:
        return "rays"
    if asked in ("egl", "osmesa", "glfw", "glx"):
        name = "glfw" if asked == "glx" else asked
        try:
            _context(name).free()
        except Exception as error:
            raise ResourceError(
                f"robot: MUJOCO_GL={asked} does not work here ({first_line(error)}), unset it or set it to disabled"
            ) from None
        return name
    # PyOpenGL is bound to the first that it is imported for, so only one can be tried
    has_gpu = any(map(os.path.exists, ("/dev/nvidia0", "/dev/dri/renderD128")))
    libraries = {"egl": "EGL", "osmesa": "OSMesa"}
    names = [name for name in (("egl", "osmesa") if has_gpu else ("osmesa", "egl"))
             if ctypes.util.find_library(libraries[name])]  # fmt: skip
    try:
        _context(names[0]).free()
    except Exception:  # drivers fail in many ways, and rays always work
        return "rays"
    return names[0]


def _context(name: str) -> Any:
    """Return a new OpenGL context, the current one."""
    context = importlib.import_module(f"mujoco.{name}").GLContext(1, 1)
    context.make_current()
    return context


def aim_camera(model: Any) -> int:
    """Aim the camera of a MuJoCo model; return its number. The model's next forward pass takes it over."""
    import mujoco

    camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)
    away = np.subtract(POSITION, AIM)
    away /= np.linalg.norm(away)
    right = np.cross((0, 0, 1), away)
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(away, right), away], axis=1)
    mujoco.mju_mat2Quat(model.cam_quat[camera], turn.ravel())
    model.cam_pos[camera], model.cam_fovy[camera] = POSITION, FIELD_OF_VIEW
    return camera


def open_camera(model: Any, camera: int) -> Camera:
    """Return what makes images of a MuJoCo model, by the name of `renderer_name`."""
    name = renderer_name()
    return RayCamera(model, camera) if name == "rays" else GlCamera(model, camera, name)


class GlCamera:
    """A camera by OpenGL. A context with the model's meshes and textures takes 60 MB and half a second."""

    def __init__(self, model: Any, camera: int, name: str):
        import mujoco

        self._mujoco, self._model = mujoco, model
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = LARGEST
        self._gl = _context(name)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        # also at the end of the process, when MuJoCo's own way would fail
        self._free = weakref.finalize(self, _free, self._gl, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene, self._option = mujoco.MjvScene(model, 1000), mujoco.MjvOption()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera

    def image(self, data: Any, size: int) -> np.ndarray:
        """Return an upright image uint8 [size, size, 3] of MuJoCo's data."""
        mujoco, view = self._mujoco, self._mujoco.MjrRect(0, 0, size, size)
        self._gl.make_current()
        all_of_it = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, all_of_it, self._scene)
        mujoco.mjr_render(view, self._scene, self._context)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the context."""
        self._free()


def _free(gl: Any, context: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
    gl.free = lambda: None  # it calls this again when it goes, and fails at the end of the process


class RayCamera:
    """A camera by casting a ray for each pixel: colours without textures, shaded by how a surface is turned.

    Sites, which show goals, are drawn as balls.
    """

    def __init__(self, model: Any, camera: int):
        import mujoco

        self._mujoco, self._model, self._camera = mujoco, model, camera
        self._colours = _colours(model)
        shown = (model.site_group < _GROUPS) & (model.site_rgba[:, 3] > 0)
        self._sites = np.flatnonzero(shown)

    def image(self, data: Any, size: int) -> np.ndarray:
        """Return an upright image uint8 [size, size, 3] of MuJoCo's data."""
        origin, turn = data.cam_xpos[self._camera], data.cam_xmat[self._camera].reshape(3, 3)
        side = np.tan(np.radians(self._model.cam_fovy[self._camera]) / 2)
        x = ((np.arange(size) + 0.5) / size * 2 - 1) * side
        right, up = np.meshgrid(x, -x)
        rays = np.stack([right, up, -np.ones_like(right)], axis=-1).reshape(-1, 3) @ turn.T
        geoms, distances = np.empty(len(rays), np.int32), np.empty(len(rays))
        groups = np.array([1] * _GROUPS + [0] * (6 - _GROUPS), np.uint8)
        self._mujoco.mj_multiRay(
            self._model, data, origin, rays.ravel(), groups, 1, -1, geoms, distances, len(rays), 100.0
        )
        hit = geoms >= 0
        colours = np.where(hit[:, None], self._colours[geoms], _SKY)
        points = (rays * np.where(hit, distances, 10.0)[:, None]).reshape(size, size, 3)
        colours *= np.where(hit, _shades(points).ravel(), 1.0)[:, None]
        for site in self._sites:
            near = _balls(rays, data.site_xpos[site] - origin, self._model.site_size[site, 0])
            colours[near < np.where(hit, distances, np.inf)] = self._model.site_rgba[site, :3]
        return (colours.reshape(size, size, 3) * 255).clip(0, 255).astype(np.uint8)

    def close(self) -> None:
        """There is nothing to free."""


def _colours(model: Any) -> np.ndarray:
    """Return a colour [geoms, 3] in 0 to 1 for each geom: its own or its material's, times the mean of its texture."""
    colours = np.zeros((model.ngeom, 3))
    for geom, (own, material) in enumerate(zip(model.geom_rgba, model.geom_matid, strict=True)):
        colours[geom] = own[:3]
        if material < 0:
            continue
        if np.allclose(own, _DEFAULT):
            colours[geom] = model.mat_rgba[material, :3]
        texture = max(model.mat_texid[material])  # -1 for each role that it has no texture in
        if texture >= 0:
            start, channels = model.tex_adr[texture], model.tex_nchannel[texture]
            count = model.tex_height[texture] * model.tex_width[texture] * channels
            pixels = model.tex_data[start : start + count].reshape(-1, channels)
            colours[geom] *= pixels[:, :3].mean(axis=0) / 255
    return colours


def _shades(points: np.ndarray) -> np.ndarray:
    """Return the brightness [H, W] of surface points [H, W, 3] as seen from 0, by the normals of their neighbours."""
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    lengths = np.linalg.norm(normals, axis=-1) * np.linalg.norm(points, axis=-1)
    facing = np.abs((normals * points).sum(-1)) / np.maximum(lengths, 1e-12)
    upward = np.abs(normals[..., 2]) / np.maximum(np.linalg.norm(normals, axis=-1), 1e-12)
    return 0.7 + 0.15 * facing + 0.25 * upward


def _balls(rays: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return how far along each ray [n, 3] from 0 a ball begins, in lengths of the ray; infinite where it misses."""
    a, b = (rays**2).sum(-1), rays @ centre
    inside = b**2 - a * (centre @ centre - radius**2)
    return np.where((inside > 0) & (b > 0), (b - np.sqrt(inside.clip(min=0))) / a, np.inf)
