"""Demonstrations of Meta-World's tasks by its scripted experts, as episodes.

What is done differs from what is recorded: noise is added to the expert's action before it is done, and the recorded
action is the expert's own, at the place where the noise has led. So a policy learns to come back (DART, Laskey et al.
2017). From time to time the hand is led astray for some steps, off a handle that it holds for example: from noise alone
a policy would not learn to try again. An episode goes on for `STAY` steps after its success, so that staying is learned
too.

Start, noise and images of an episode depend on (seed, task, index, attempt) alone. Where an expert fails, the episode
of that index is its next attempt: episode k of a task is always the same, whatever else is made.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from plait.common.errors import DataError
from plait.common.randomness import generator
from plait.prepare.episodes import Episode
from plait.robots.camera import renderer_name
from plait.robots.metaworld_env import ACTION, MAX_STEPS, RATE, TaskEnv

NOISE = 0.15
"""Standard deviation of the noise on each number of an action that is done, in [-1, 1]."""
STRAYS = 0.015
"""Chance of a step that the hand is led astray from there on: by a constant action instead of the expert's."""
ASTRAY = (5, 15)
"""Fewest and most steps of it."""
STAY = 10
"""Steps after the first success."""
ATTEMPTS = 20
"""Attempts at one episode before it is given up."""

Frames = Callable[[np.ndarray], Iterable[int]]
"""Which steps of an episode are seen, of which each was led astray or not: an image takes 6 ms without a GPU, a step
0.4 ms."""

_KEEP = 2  # environments that stay open: opening one takes half a second, and keeping one 120 MB
_open: dict[tuple[str, int], TaskEnv] = {}


def demonstration(
    task: str,
    seed: int,
    index: int,
    noise: float = NOISE,
    image_size: int = 64,
    *,
    attempt: int = 0,
    frames: Frames | None = None,
    max_steps: int = MAX_STEPS,
) -> Episode | None:
    """Return one attempt of the expert at a task; None where it fails within ``max_steps``.

    ``frames`` names the steps whose images are made, of all steps if None; the other images are black. In the episode's
    meta "astray" names the steps at which something else was done than what is recorded.
    """
    rng = generator(seed, f"robots: {task}", item=index, position=attempt)
    env = _environment(task, image_size)
    env.restart(int(rng.integers(2**62)))  # starts of evaluations are seeded by small numbers
    astray = _astray(rng, max_steps) if noise else np.full((max_steps, ACTION), np.nan)
    poses: list[np.ndarray] = []
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    end, done = max_steps, False
    while len(actions) < end:
        action = env.expert_action()
        poses.append(env.pose())
        states.append(env.state())
        actions.append(action)
        led = astray[len(actions) - 1]
        _, succeeded, _ = env.advance(np.where(np.isnan(led), action, led) + noise * rng.standard_normal(ACTION))
        if succeeded and not done:
            done, end = True, min(len(actions) + STAY, max_steps)
    if not done:
        return None
    images = np.zeros((len(actions), image_size, image_size, 3), np.uint8)
    was_led = ~np.isnan(astray[: len(actions), 0])
    seen = sorted(set(range(len(actions)) if frames is None else frames(was_led))) if image_size else []
    for step, image in zip(seen, env.render_poses([poses[step] for step in seen], image_size), strict=True):
        images[step] = image
    meta = {"environment": task, "seed": seed, "episode": index, "attempt": attempt, "steps": len(actions),
            "astray": np.flatnonzero(was_led).tolist()}  # fmt: skip
    if image_size:
        meta["renderer"] = renderer_name()
    return Episode(env.sentence, {"image": images}, np.stack(states), np.stack(actions), RATE, meta)


def _astray(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Return the action of each step that leads the hand astray [steps, 4]: NaN where none does, and of the gripper."""
    found = np.full((steps, ACTION), np.nan)
    for start in np.flatnonzero(rng.random(steps) < STRAYS):
        found[start : start + rng.integers(*ASTRAY, endpoint=True), :3] = rng.uniform(-1, 1, 3)
    return found


def episode(
    task: str,
    seed: int,
    index: int,
    noise: float = NOISE,
    image_size: int = 64,
    *,
    frames: Frames | None = None,
    max_steps: int = MAX_STEPS,
) -> Episode:
    """Return a demonstration that succeeds: the first such attempt. Raises DataError where there is none."""
    for attempt in range(ATTEMPTS):
        found = demonstration(task, seed, index, noise, image_size, attempt=attempt, frames=frames, max_steps=max_steps)
        if found is not None:
            return found
    raise DataError(f"robot: the expert of {task} failed {ATTEMPTS} times in a row, take another task or less noise")


def demonstrations(
    task: str, seed: int, count: int, noise: float = NOISE, image_size: int = 64, *, start: int = 0
) -> Iterator[Episode]:
    """Return the episodes [start, start + count) of a task. The attempts that failed are counted in "attempt"."""
    for index in range(start, start + count):
        yield episode(task, seed, index, noise, image_size)


def _environment(task: str, image_size: int) -> TaskEnv:
    """Return an open environment; the one that was used longest ago is closed where there are more than `_KEEP`."""
    env = _open.pop((task, image_size), None) or TaskEnv(task, image_size)
    _open[task, image_size] = env
    while len(_open) > _KEEP:
        _open.pop(next(iter(_open))).close()
    return env
