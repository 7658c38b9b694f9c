"""A training that other programs show."""

import os
from pathlib import Path

from plait.cli import main

os.environ["WANDB_MODE"] = "offline"
words = ["train", "letters.yaml", "--out", "runs/tracked", "--data.path", "runs/letters/data"]
assert main([*words, "--train.trackers", "[tensorboard, wandb]"]) == 0
assert list(Path("runs/tracked/tensorboard").glob("events*")) and Path("runs/tracked/wandb").is_dir()
