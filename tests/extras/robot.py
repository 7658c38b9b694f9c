"""A task of Meta-World, and a film."""

from pathlib import Path

import numpy as np

from plait.prepare.video import VideoFile
from plait.robots.metaworld_env import TaskEnv

environment = TaskEnv("drawer-open-v3", image_size=0)
observation, _ = environment.reset(seed=0)
assert observation["text"] == "Open a drawer"
environment.step(environment.expert_action())
video = VideoFile(Path("film.mp4"), 32, 32, 10.0)
video.append(np.zeros((3, 32, 32, 3), np.uint8))
video.close()
assert Path("film.mp4").stat().st_size
