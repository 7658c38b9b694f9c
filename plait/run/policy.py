"""A model as a policy of the Gymnasium API: an observation in, the next action out.

policy = plait.Policy.from_pretrained("runs/quickstart-robot")
observation, _ = env.reset(seed=0)
policy.reset()
observation, reward, terminated, truncated, info = env.step(policy.act(observation))
"""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import require
from plait.generate.actor import Actor, Observation
from plait.generate.pipeline import Pipeline
from plait.run.load import load


class Policy:
    """Acts in one environment: makes a chunk of actions, executes the first ones, and plans again.

    ``execute`` says how many steps of a chunk are executed before the next one is made: half of them by default.
    ``history`` is how many earlier observations the model sees (`prepare.episodes.history` of its data).
    """

    def __init__(self, pipeline: Pipeline, *, execute: int = 0, history: int = 0, seed: int = 0):
        require(execute >= 0, "execute", execute, "at least 1, or 0 for half of a chunk")
        require(history >= 0, "history", history, "at least 0")
        self.actor, self.execute, self.seed = Actor(pipeline), execute, seed
        self._seen: deque[Observation] = deque(maxlen=history + 1)
        self.reset()

    @classmethod
    def from_pretrained(cls, run: str | Path, *, execute: int = 0, history: int = 0, seed: int = 0, **loading: Any
                        ) -> "Policy":  # fmt: skip
        """Load a run, a saved model or one on the Hugging Face Hub, as `plait.load` does with ``loading``.

        Raises ConfigError where it makes no actions.
        """
        return cls(load(run, **loading), execute=execute, history=history, seed=seed)

    def reset(self) -> None:
        """Begin an episode: forget what was seen and planned."""
        self._seen.clear()
        self._planned: deque[np.ndarray] = deque()
        self.plans = 0

    def act(self, observation: Observation) -> np.ndarray:
        """Return the next action [dimensions] of an observation.

        An observation has the keys of the parts that the model is given, such as {"text": "open the drawer", "image":
        uint8 [H, W, 3], "state": float [S]}; other keys are not looked at. Raises DataError where one is missing.
        """
        self._seen.append(observation)
        if not self._planned:
            steps = list(self._seen)
            # before the first steps it looked as at the first one
            steps = [steps[0]] * (self._seen.maxlen - len(steps)) + steps  # type: ignore[operator]
            (chunk,) = self.actor.chunks([steps], seed=self.seed, numbers=[self.plans])
            self.plans += 1
            self._planned.extend(chunk[: self.execute or max(1, len(chunk) // 2)])
        return self._planned.popleft()
