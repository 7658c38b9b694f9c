"""Episodes of robots, and the documents that they become.

An episode is one attempt at a task: images, states and actions at a fixed rate. A document is one moment of it: the
task, what cameras and sensors say now, and the `chunk` actions from now on, which a policy predicts together. Or, for a
world model, the images of now, the actions, and the images after them.

A chunk that reaches beyond the last step repeats the last action, and history before the first step repeats the first
one. That is what LeRobot's datasets do with `delta_timestamps` (they clamp the steps to the episode's), and what openpi
trains on through them; so the last moments of an episode, where a task is completed, are learned too.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.codecs.base import Media
from plait.common.randomness import uniforms
from plait.config.episodes import EpisodesConfig
from plait.prepare.raw import BadRow, RawDocument

TEXT, STATE, ACTIONS = "text", "state", "actions"
"""Manifest keys of an episode's parts, beside those of its cameras."""


@dataclass
class Episode:
    """One attempt at a task, of T steps."""

    task: str
    """The sentence that says what is to be done."""
    images: dict[str, np.ndarray]
    """Images uint8 [T, H, W, 3] of each camera, by its manifest key: "image" where there is one camera."""
    state: np.ndarray
    """What the robot's sensors say, float32 [T, S]; S may be 0."""
    actions: np.ndarray
    """What it was told to do, float32 [T, A]."""
    rate: float
    """Steps per second."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What is known of it, in plain JSON types; "episode" is its number."""

    def __len__(self) -> int:
        return len(self.actions)


def starts(length: int, settings: EpisodesConfig) -> list[int]:
    """Return the steps at which the documents of an episode of ``length`` steps start."""
    return list(range(0, length, settings.stride))


def for_world(settings: EpisodesConfig, rows: np.ndarray, *, seed: int, split: str) -> np.ndarray:
    """Return for each row [n] of a split whether it is a document for a world model: of all, the share `next_share`."""
    return uniforms(seed, f"episodes: next of {split}", item=rows) < settings.next_share


def document(episode: Episode, start: int, settings: EpisodesConfig, world: bool = False) -> RawDocument:
    """Return the document that starts at a step: text, images of each camera, state where there is one, actions.

    ``world``: images, actions and the images `chunk` steps later instead; it starts earlier where the episode ends
    before those. Raises BadRow where its state or actions are NaN or infinite.
    """
    last = len(episode) - 1
    if world:
        start = max(min(start, last - settings.chunk), 0)
    seen = np.arange(start - settings.history, start + 1).clip(0)
    done = np.arange(start, start + settings.chunk).clip(max=last)
    images: list[tuple[str, Media]] = [(key, frames[i]) for key, frames in episode.images.items() for i in seen]
    actions = _finite(episode.actions[done], ACTIONS, done)
    meta = {**episode.meta, "task": episode.task, "start": start}
    if world:
        after = min(start + settings.chunk, last)
        later: list[tuple[str, Media]] = [(key, frames[after]) for key, frames in episode.images.items()]
        return RawDocument([*images, (ACTIONS, actions), *later], meta | {"world": True})
    state: list[tuple[str, Media]] = []
    if episode.state.shape[1]:
        state = [(STATE, _finite(episode.state[seen], STATE, seen))]
    return RawDocument([(TEXT, episode.task), *images, *state, (ACTIONS, actions)], meta)


def _finite(values: np.ndarray, key: str, steps: np.ndarray) -> np.ndarray:
    """Return numbers [steps, n] as float32; raises BadRow where one is NaN or infinite."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise BadRow(f"{key}: step {steps[bad.argmax()]} of the episode has values that are NaN or infinite")
    return np.ascontiguousarray(values, np.float32)
