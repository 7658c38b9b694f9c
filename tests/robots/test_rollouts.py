"""Policies that act: how often they are asked, what of their chunks is done, and how successes are counted."""

import numpy as np
import pytest

from plait.common.errors import ConfigError
from plait.robots import rollouts as module
from plait.robots.metaworld_env import TaskEnv
from plait.robots.rollouts import (
    Rollout,
    expert_rollouts,
    images_of,
    random_rollouts,
    roll_out,
    rollout,
    success_table,
)

TASK, OTHER = "handle-press-v3", "coffee-button-v3"


@pytest.fixture
def env():
    pytest.importorskip("metaworld", reason="Meta-World is not installed")
    env = TaskEnv(TASK, 0, max_steps=30)
    yield env
    env.close()


def numbered(calls: list):
    """Return a policy of which every action of every chunk differs, and note what it was asked."""

    def act(observations: list[dict]) -> np.ndarray:
        calls.extend(observations)
        return np.linspace(-0.5, 0.5, 8 * 4).reshape(8, 4) + 0.01 * len(calls)

    return act


@pytest.mark.parametrize("execute, asked", [(1, 30), (4, 8), (8, 4), (100, 4)])
def test_a_policy_is_asked_again_after_so_many_actions(env, execute, asked):
    calls: list = []
    result = rollout(env, numbered(calls), seed=0, execute=execute)
    assert len(calls) == asked and not result.success and result.steps == 30
    chunks = [numbered([0] * number)([{}]) for number in range(asked)]
    done = np.concatenate([chunk[: min(execute, 8)] for chunk in chunks])[:30]
    assert result.actions.dtype == np.float32 and np.allclose(result.actions, done)
    assert {call["text"] for call in calls} == {"Press a handle down"}


def test_the_expert_succeeds_through_the_same_loop(env):
    env.max_steps = 100
    result = rollout(env, lambda observation: env.expert_action()[None], seed=0)
    assert result.success and result.steps < 60 and len(result.poses) == result.steps + 1
    images = images_of(result, 64)
    assert len(images) == result.steps + 1 and images[0].shape == (64, 64, 3)
    env.restart(0)
    assert np.array_equal(images[0], env.render(64)) and not np.array_equal(images[0], images[-1])
    (again,) = expert_rollouts([TASK], [0])
    assert (again.success, again.steps) == (True, result.steps) and np.array_equal(again.actions, result.actions)


def test_many_are_asked_at_once(env):
    """Whatever runs beside it, an episode is the same; episodes come in order of tasks."""
    sizes, told = [], set()

    def act(observations: list[list[dict]]) -> list[np.ndarray]:
        sizes.append(len(observations))
        told.update(o["text"] for (o,) in observations)
        return [np.full((8, 4), o["state"][2]) for (o,) in observations]

    progress: list[int] = []
    both = roll_out([OTHER, TASK], [0, 1, 2], act, in_parallel=3, image_size=16, max_steps=30, progress=progress.append)
    assert [(r.task, r.seed) for r in both] == [(task, seed) for task in (OTHER, TASK) for seed in range(3)]
    assert max(sizes) == 3 and sum(sizes) == 6 * 8 and progress == [*range(1, 7)]
    assert told == {"Press a handle down", "Push a button on the coffee machine"}
    alone = rollout(env, lambda seen: np.full((8, 4), seen[-1]["state"][2]), seed=1)
    assert np.array_equal(both[4].actions, alone.actions)


def test_tasks_may_be_told_something_else(env):
    told = set()

    def act(observations: list[list[dict]]) -> list[np.ndarray]:
        told.update(o["text"] for (o,) in observations)
        return [np.zeros((1, 4))] * len(observations)

    roll_out([TASK], [0], act, image_size=0, max_steps=2, said={TASK: "Open a drawer"})
    assert told == {"Open a drawer"}


def test_a_policy_that_remembers_gets_the_steps_before(env):
    """Of a chunk of four the last two steps and the one before them; at first all are the start."""
    seen: list[list[float]] = []

    def act(observations: list[list[dict]]) -> list[np.ndarray]:
        (steps,) = observations
        seen.append([float(o["state"][0]) for o in steps])
        return [np.full((8, 4), 0.3)]

    roll_out([TASK], [0], act, image_size=0, max_steps=12, history=2)
    track: list[float] = []

    def every(observations: list[dict]) -> np.ndarray:
        track.append(float(observations[-1]["state"][0]))
        return np.full((1, 4), 0.3)

    env.max_steps = 12
    rollout(env, every, seed=0, execute=1)
    assert seen == [[track[0]] * 3, track[2:5], track[6:9]]


def test_environments_are_closed_where_a_policy_fails(env, monkeypatch):
    closed = []
    monkeypatch.setattr(module.TaskEnv, "close", lambda env: closed.append(env))
    with pytest.raises(ZeroDivisionError):
        roll_out([TASK], [0, 1, 2], lambda observations: 1 // 0, in_parallel=2, image_size=0)
    assert len(closed) == 2


def test_random_actions_fail(env):
    results = random_rollouts([TASK], [0, 1], max_steps=20)
    assert [r.success for r in results] == [False, False]
    assert np.array_equal(results[1].actions, random_rollouts([TASK], [0, 1], max_steps=20)[1].actions)


def made(task: str, *hits: bool) -> list[Rollout]:
    return [Rollout(task, seed, hit, 10, np.zeros((10, 4))) for seed, hit in enumerate(hits)]


def test_successes_are_counted_with_wilsons_interval():
    table = success_table(made("a", *[True] * 9, False) + made("b", *[False] * 10))
    a = {"episodes": 10, "successes": 9, "success": 0.9, "low": 0.596, "high": 0.982}
    b = {"episodes": 10, "successes": 0, "success": 0, "low": 0, "high": 0.278}
    assert table["a"] == pytest.approx(a, abs=1e-3) and table["b"] == pytest.approx(b, abs=1e-3)
    assert (table["all"]["episodes"], table["all"]["successes"]) == (20, 9)
    assert success_table([])["all"] == {"episodes": 0, "successes": 0, "success": 0, "low": 0, "high": 1}


@pytest.mark.parametrize("execute, in_parallel", [(0, 8), (4, 0)])
def test_settings_that_are_not_allowed(env, execute, in_parallel):
    with pytest.raises(ConfigError, match="at least 1"):
        roll_out([TASK], [0], lambda observations: [], execute=execute, in_parallel=in_parallel, image_size=0)
