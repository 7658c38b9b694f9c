"""A task of Meta-World as a Gymnasium environment, for a policy that sees and reads.

A policy gets the sentence, an image, and where the hand is; never where the object is, which Meta-World's own
observation says. Its scripted experts see that (`TaskEnv.expert_action`).

The published protocol, LeRobot's, allows 500 steps and ends at the first success. Here it is `MAX_STEPS`: with noise,
experts need 70 steps in the quickstart's tasks (`plait.robots.metaworld_tasks.EASY`), at most 122 in 200 episodes.
"""

import importlib
import warnings
from typing import Any

import numpy as np

from plait.common.errors import ResourceError, require
from plait.robots.camera import LARGEST, Camera, aim_camera, open_camera
from plait.robots.metaworld_tasks import SENTENCES, check_task

try:
    from gymnasium import Env as _Env
except ImportError:  # TaskEnv says so when one is made
    _Env = object  # type: ignore[assignment, misc]

RATE = 80.0
"""Steps per second."""
MAX_STEPS = 200
"""Steps that a policy has, where nothing else is said."""
ACTION = 4
"""Numbers of an action: how far the hand is moved along x, y and z, in centimetres, and how hard the gripper closes."""
STATE = 4
"""Numbers of the state: x, y and z of the hand, in metres, and how far the gripper is open, 0 to 1."""


def metaworld_module(name: str) -> Any:
    """Return a module of Meta-World's, imported when it is first needed. Raises ResourceError without the package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise ResourceError(
            f"robot: package {package!r} is not installed, install it: pip install 'plait[robot]'"
        ) from None


class TaskEnv(_Env):
    """One task. ``reset(seed=...)`` gives the same start for the same seed: places of object and goal, by chance.

    ``task``: a name of `plait.robots.metaworld_tasks.SENTENCES`. ``image_size``: pixels along each side of the image; 0
    makes none, for policies that do not look. ``max_steps``: steps after which an episode is cut off. Observations are
    {"text": str, "image": uint8 [size, size, 3], "state": float32 [4]}. One takes 120 MB: keep few at a time. Raises
    ConfigError for a task that there is not, ResourceError where Meta-World is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}

    def __init__(self, task: str, image_size: int = 64, *, max_steps: int = MAX_STEPS):
        self.task, self.sentence = check_task(task), SENTENCES[task]
        require(0 <= image_size <= LARGEST, "robot.image_size", image_size, f"0 to {LARGEST}")
        require(max_steps >= 1, "robot.max_steps", max_steps, "at least 1")
        self.image_size, self.max_steps, self.render_mode = image_size, max_steps, "rgb_array"
        self._world = metaworld_module("metaworld.env_dict").ENV_CLS_MAP[task]()
        self._world._partially_observable = False  # so that the expert sees the goal
        del self._world.sawyer_observation_space
        self._world._freeze_rand_vec, self._world.seeded_rand_vec, self._world._set_task_called = False, True, True
        self._world.max_path_length = 10**9  # steps are counted here
        self._expert = metaworld_module("metaworld.policies").ENV_POLICY_MAP[task]()
        self._eye = aim_camera(self._world.model)
        self._camera: Camera | None = None  # opened for the first image
        self._full = np.zeros(0)
        self._steps = 0
        self._set_spaces()

    def _set_spaces(self) -> None:
        from gymnasium.spaces import Box, Dict, Text

        spaces: dict[str, Any] = {
            "text": Text(len(self.sentence), charset="".join(sorted(set(self.sentence)))),
            "state": Box(-2.0, 2.0, (STATE,), np.float32),
        }
        if self.image_size:
            spaces["image"] = Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        self.observation_space = Dict(spaces)
        self.action_space = Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin an episode; return the observation and {"success": False}."""
        self.restart(seed)
        return self.observation(), {"success": False}

    def restart(self, seed: int | None = None) -> None:
        """Begin an episode as `reset` does, without an observation."""
        import mujoco

        super().reset(seed=seed)
        self._world.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        mujoco.mj_resetData(self._world.model, self._world.data)  # a start does not depend on what was before
        self._full, _ = self._world.reset()
        mujoco.mj_forward(self._world.model, self._world.data)  # some tasks move their goal's mark last
        self._steps = 0

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Do an action float32 [4], limited to [-1, 1]; return observation, reward, terminated, truncated and info.

        An episode is terminated by success, which info["success"] says. More steps may follow.
        """
        reward, terminated, truncated = self.advance(action)
        return self.observation(), reward, terminated, truncated, {"success": terminated}

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool]:
        """Do an action as `step` does, without an observation; return reward, terminated and truncated."""
        self._full, reward, _, _, info = self._world.step(np.clip(np.asarray(action, np.float32), -1, 1))
        self._steps += 1
        return float(reward), bool(info["success"]), self._steps >= self.max_steps

    def observation(self) -> dict[str, Any]:
        """Return what a policy gets at this moment."""
        image = {"image": self.render(self.image_size)} if self.image_size else {}
        return {"text": self.sentence, **image, "state": self.state()}

    def state(self) -> np.ndarray:
        """Return where the hand is, and how far the gripper is open, float32 [4]."""
        return self._full[:STATE].astype(np.float32)

    def expert_action(self) -> np.ndarray:
        """Return what Meta-World's scripted policy would do now, float32 [4] in [-1, 1]. It sees the object."""
        with warnings.catch_warnings():  # it warns where it asks for more than the limits
            warnings.simplefilter("ignore", UserWarning)
            return np.clip(self._expert.get_action(self._full), -1, 1).astype(np.float32)

    def render(self, size: int = LARGEST) -> np.ndarray:
        """Return an image uint8 [size, size, 3] of this moment."""
        if self._camera is None:
            self._camera = open_camera(self._world.model, self._eye)
        return self._camera.image(self._world.data, size)

    def pose(self) -> np.ndarray:
        """Return what `render_poses` makes an image of this moment from."""
        return self._world.data.qpos.copy()

    def render_poses(self, poses: list[np.ndarray], size: int) -> list[np.ndarray]:
        """Return images of earlier moments of this episode, which is over then: what follows is a `reset`."""
        import mujoco

        images = []
        for pose in poses:
            self._world.data.qpos[:] = pose
            mujoco.mj_forward(self._world.model, self._world.data)
            images.append(self.render(size))
        return images

    def close(self) -> None:
        """Free the images' memory."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        self._world.close()
