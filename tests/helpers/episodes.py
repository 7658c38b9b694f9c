"""Episodes of a small robot, and datasets of them."""

import numpy as np

from plait.config.run import PrepareConfig
from plait.prepare.episodes import Episode
from plait.prepare.lerobot import LeRobotSource

TASKS = ("pick up the red block", "open the drawer")
KEYS = ("text", "front", "wrist", "state", "actions")
HEIGHT, WIDTH = 64, 96


def made_episode(number: int, length: int, cameras=("front", "wrist")) -> Episode:
    """Return an episode whose images are each unlike those of all other steps and episodes."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    images = {}
    for k, key in enumerate(cameras):
        frames = []
        for t in range(length):
            level = (37 * t + 53 * number + 100 * k) % 256
            frames.append(np.stack([(2 * x + level) % 256, (3 * y + level) % 256, np.full_like(x, level)], axis=-1))
        images[key] = np.array(frames, np.uint8)
    state = rng.normal(size=(length, 5)).astype(np.float32)
    actions = rng.normal(size=(length, 4)).astype(np.float32)
    return Episode(TASKS[number % 2], images, state, actions, 10.0, {"episode": number})


def made_episodes(**settings) -> list[Episode]:
    """Return five episodes of two tasks, one of them of a single step."""
    return [made_episode(i, length, **settings) for i, length in enumerate((10, 7, 23, 1, 12))]


def source_of(folder, keys=KEYS, codecs=None, **settings) -> LeRobotSource:
    """Open a dataset."""
    return LeRobotSource(folder, PrepareConfig(**settings), 0, codecs or {}, keys)
