"""Policies acting in Meta-World's tasks, and how often they succeed.

A policy makes a chunk of actions from what it sees, does the first few, and looks again. Several environments are
stepped in parallel, so that a model can be asked for many chunks at once. Beside a policy stand the scripted expert and
random actions, under the same rules: an episode ends at its first success, or when its steps are used up.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plait.common.errors import require
from plait.common.randomness import generator
from plait.evaluate.measures import rate_of
from plait.robots.metaworld_env import ACTION, MAX_STEPS, TaskEnv

EXECUTE = 4
"""Actions of a chunk that are done before the policy looks again."""
IN_PARALLEL = 16
"""Environments that are open at once, 120 MB each."""

Observations = list[dict[str, Any]]
"""What is seen now, last, after the steps before it as far as they are asked for."""
Act = Callable[[Observations], np.ndarray]
"""What is seen to a chunk of actions float32 [n, 4]."""


@dataclass
class Rollout:
    """One episode of a policy."""

    task: str
    seed: int
    success: bool
    steps: int
    """Steps until success, or all that there were."""
    actions: np.ndarray = field(repr=False)
    """What was done, float32 [steps, 4]."""
    poses: list[np.ndarray] = field(default_factory=list, repr=False)
    """Of each moment, from the start to the end, what `images_of` makes its image from."""


Episodes = Generator[Observations, np.ndarray, Rollout]


def rollout(
    env: TaskEnv, act: Act, *, seed: int, execute: int = EXECUTE, history: int = 0,
    watch: Callable[[], None] = lambda: None,
) -> Rollout:  # fmt: skip
    """Let a policy act from the start of a seed: ``execute`` actions of each chunk are done before it is asked again.

    It gets what is seen after the ``history`` steps before it. ``watch`` is called after each step.
    """
    episode = _episode(env, seed, execute=execute, history=history, sentence=env.sentence, watch=watch)
    observations = next(episode)
    while True:
        try:
            observations = episode.send(act(observations))
        except StopIteration as end:
            return end.value


def _episode(
    env: TaskEnv, seed: int, *, execute: int, history: int, sentence: str, watch: Callable[[], None] = lambda: None
) -> Episodes:
    """Act from a start: yield what is seen, be sent chunks, return what became of it.

    Before the first step it is as if the robot had looked at it all the time.
    """
    require(execute >= 1, "robot.execute", execute, "at least 1")
    env.restart(seed)
    poses: list[np.ndarray] = [env.pose()]
    done: list[np.ndarray] = []
    seen = deque([{**env.observation(), "text": sentence}] * (history + 1), maxlen=history + 1)
    success = truncated = False
    while not (success or truncated):
        chunk = np.asarray((yield list(seen)), np.float32)[:execute]
        for k, action in enumerate(chunk):
            _, success, truncated = env.advance(action)
            done.append(action)
            poses.append(env.pose())
            watch()
            if success or truncated:
                break
            if len(chunk) - k <= history + 1:  # images take longest: of those alone that will be seen
                seen.append({**env.observation(), "text": sentence})
    return Rollout(env.task, seed, success, len(done), np.stack(done), poses)


def images_of(episode: Rollout, size: int) -> list[np.ndarray]:
    """Return an image uint8 [size, size, 3] of each moment of an episode, made again from its start."""
    env = TaskEnv(episode.task, 0)
    try:
        env.restart(episode.seed)
        return env.render_poses(episode.poses, size)
    finally:
        env.close()


def roll_out(
    tasks: Sequence[str],
    seeds: Sequence[int],
    act_batch: Callable[[list[Observations]], Sequence[np.ndarray]],
    *,
    execute: int = EXECUTE,
    in_parallel: int = IN_PARALLEL,
    image_size: int = 64,
    max_steps: int = MAX_STEPS,
    history: int = 0,
    said: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Rollout]:
    """Let a policy act from every seed of every task, ``in_parallel`` environments at a time; in order of tasks.

    The policy gets the observations of all that wait, each after those of the ``history`` steps before it, and returns
    a chunk for each. An environment is opened for one task, does its episodes and is closed. ``said`` gives tasks other
    sentences than their own: a policy that reads fails then. ``progress`` is called with the number of episodes that
    are done.
    """
    require(in_parallel >= 1, "robot.in_parallel", in_parallel, "at least 1")
    parts = -(-in_parallel // max(len(tasks), 1))  # of few tasks several environments are open
    waiting = [(task, [*seeds[part::parts]]) for task in tasks for part in range(parts) if seeds[part::parts]]
    slots: list[_Slot] = []
    results: dict[tuple[str, int], Rollout] = {}

    def refill() -> None:
        while waiting and len(slots) < in_parallel:
            task, own = waiting.pop(0)
            env = TaskEnv(task, image_size, max_steps=max_steps)
            slots.append(_Slot(env, own, execute=execute, history=history, said=(said or {}).get(task, env.sentence)))

    try:
        refill()
        while slots:
            chunks = act_batch([slot.observations for slot in slots])
            for slot, chunk in zip([*slots], chunks, strict=True):
                ended = slot.send(chunk)
                if ended is not None:
                    results[ended.task, ended.seed] = ended
                    progress(len(results))
                if not slot.is_busy:
                    slot.env.close()
                    slots.remove(slot)
            refill()
    finally:
        for slot in slots:
            slot.env.close()
    return [results[task, seed] for task in dict.fromkeys(tasks) for seed in dict.fromkeys(seeds)]


class _Slot:
    """An open environment, and the episodes that it has to do."""

    def __init__(self, env: TaskEnv, seeds: list[int], *, execute: int, history: int, said: str):
        self.env, self._seeds = env, seeds
        self._settings: dict[str, Any] = {"execute": execute, "history": history, "sentence": said}
        self._begin()

    def _begin(self) -> None:
        self.is_busy = bool(self._seeds)
        if self.is_busy:
            self._episode = _episode(self.env, self._seeds.pop(0), **self._settings)
            self.observations = next(self._episode)

    def send(self, chunk: np.ndarray) -> Rollout | None:
        """Do a chunk; return the episode if it has ended. The next one begins then."""
        try:
            self.observations = self._episode.send(chunk)
        except StopIteration as end:
            self._begin()
            ended: Rollout = end.value
            return ended
        return None


def expert_rollouts(tasks: Sequence[str], seeds: Sequence[int], *, max_steps: int = MAX_STEPS) -> list[Rollout]:
    """Return what the scripted experts do, without noise: they see where objects are, so no policy need reach them."""

    def expert(env: TaskEnv) -> Act:
        return lambda observation: env.expert_action()[None]

    return _unseeing(tasks, seeds, expert, execute=1, max_steps=max_steps)


def random_rollouts(
    tasks: Sequence[str], seeds: Sequence[int], *, seed: int = 0, execute: int = EXECUTE, max_steps: int = MAX_STEPS
) -> list[Rollout]:
    """Return what uniformly drawn actions do."""

    def random(env: TaskEnv) -> Act:
        rng = generator(seed, f"robots: random actions in {env.task}")
        return lambda observation: rng.uniform(-1, 1, (execute, ACTION)).astype(np.float32)

    return _unseeing(tasks, seeds, random, execute=execute, max_steps=max_steps)


def _unseeing(
    tasks: Sequence[str], seeds: Sequence[int], policy: Callable[[TaskEnv], Act], *, execute: int, max_steps: int
) -> list[Rollout]:
    """Return the episodes of policies that do not look, which needs no images."""
    results = []
    for task in tasks:
        env = TaskEnv(task, 0, max_steps=max_steps)
        act = policy(env)
        results += [rollout(env, act, seed=seed, execute=execute) for seed in seeds]
        env.close()
    return results


def success_table(rollouts: Sequence[Rollout]) -> dict[str, dict[str, float]]:
    """Return for each task, and for "all", ``episodes``, ``successes``, their share ``success``, and Wilson's 95%
    interval ``low`` to ``high``."""
    groups: dict[str, list[bool]] = {}
    for one in rollouts:
        groups.setdefault(one.task, []).append(one.success)
    table = {}
    for name, hits in [*groups.items(), ("all", [one.success for one in rollouts])]:
        rate = rate_of(hits)
        table[name] = {"episodes": rate.count, "successes": sum(hits), "success": rate.value, "low": rate.low,
                       "high": rate.high}  # fmt: skip
    return table
