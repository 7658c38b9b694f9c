"""Observations to chunks of actions, by a model that makes actions (`plait.codecs.actions`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.common.errors import ConfigError, DataError, unknown
from plait.config.tasks import mentions_of
from plait.generate.pipeline import Pipeline

KIND = "actions"
"""Kind of the codecs of actions, and of what else is vectors over time, such as the state of a robot."""

Observation = Mapping[str, Any]
"""What is seen at one step, by the key of its part: {"text": the task, "image": uint8 [H, W, 3], "state": [...]}."""


class Actor:
    """A model that acts: what it is given of an observation, in which order, and what it makes of it.

    Both follow from the tasks that it was trained on (`data.tasks`): the longest one whose last part are actions.
    Raises ConfigError for a model that has none.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline, codecs = pipeline, pipeline.codecs
        tasks = [mentions for task in pipeline.tasks if _makes(mentions := mentions_of(task), pipeline)]
        makers = [name for name in codecs if _makes([name], pipeline) and codecs[name].key == KIND]
        if not tasks and not makers:
            raise ConfigError(
                f"policy: this model makes no actions, one of its codecs must be of the kind {KIND!r}; it has "
                + ", ".join(f"{name} ({codec.kind})" for name, codec in codecs.items())
            )
        # without tasks: after all that it may read, in the order of its modalities
        *self.given, self.made = max(
            tasks, key=len, default=[*(n for n in codecs if n != (makers or [""])[0]), *makers]
        )
        self.keys = [codecs[name].key for name in self.given]

    def prompt(self, steps: Sequence[Observation]) -> list[dict[str, Any]]:
        """Return the parts that are given of an observation, after those of the steps before it.

        Images come one after another, and vectors as one item of as many steps, as `prepare.episodes.history` has them;
        the task is that of the last step. Raises DataError for an observation without one of them.
        """
        for key in self.keys:
            if key not in steps[-1]:
                raise DataError(unknown("observation: a part of it", key, steps[-1]))
        parts: list[dict[str, Any]] = []
        for name, key in zip(self.given, self.keys, strict=True):
            values = [step[key] for step in steps]
            if self.pipeline.codecs[name].kind == KIND:
                parts.append({key: np.stack([np.asarray(value, np.float32) for value in values]).tolist()})
            else:
                parts += [{key: value} for value in (values[-1:] if isinstance(values[-1], str) else values)]
        return parts

    def chunks(
        self, observations: Sequence[Sequence[Observation]], *, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Return a chunk of actions [steps, dimensions] for each observation, given with those before it.

        ``numbers`` tell apart the draws of one seed; by default they count up. Raises DataError where none came.
        """
        prompts = [self.pipeline.encode(self.pipeline.read(self.prompt(steps))) for steps in observations]
        results = self.pipeline.complete(prompts, [self.made] * len(prompts), seed=seed, numbers=numbers)
        if any(not result.parts for result in results):
            raise DataError(
                f"policy: the model made no {self.made!r}; raise model.max_positions or generate.max_tokens"
            )
        return [np.asarray(media) for _, media in self.pipeline.decode([result.parts[0] for result in results])]


def _makes(mentions: Sequence[str], pipeline: Pipeline) -> bool:
    """Return whether a task ends with actions that the model can make."""
    codec = pipeline.codecs.get(mentions[-1])
    return codec is not None and codec.kind == KIND and not codec.reads_only
