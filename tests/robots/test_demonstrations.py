"""Demonstrations: the same for the same number, recorded as the expert wants and done with noise."""

import numpy as np
import pytest

from plait.common.errors import DataError
from plait.robots import demonstrations as module
from plait.robots.demonstrations import STAY, demonstration, demonstrations, episode
from plait.robots.metaworld_env import TaskEnv

pytest.importorskip("metaworld", reason="Meta-World is not installed")
TASK = "handle-press-v3"


def equal(one, other) -> bool:
    """Whether two episodes are the same, bit for bit."""
    arrays = [(e.images["image"], e.state, e.actions) for e in (one, other)]
    return one.meta == other.meta and all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


def test_an_episode_is_always_the_same():
    first, second = demonstrations(TASK, 0, 2)
    assert not np.array_equal(first.actions[:20], second.actions[:20])
    episode("coffee-button-v3", 0, 0)
    assert equal(episode(TASK, 0, 1), second) and equal(episode(TASK, 0, 0), first)
    assert not np.array_equal(episode(TASK, 1, 0).actions[:20], first.actions[:20])


def test_an_episode_holds_a_whole_attempt():
    one = episode(TASK, 0, 0)
    steps = len(one)
    assert one.task == "Press a handle down" and one.rate == 80
    assert one.images["image"].shape == (steps, 64, 64, 3) and one.images["image"].dtype == np.uint8
    assert one.state.shape == one.actions.shape == (steps, 4) and one.state.dtype == one.actions.dtype == np.float32
    assert np.abs(one.actions).max() <= 1
    meta = one.meta
    assert (meta["environment"], meta["seed"], meta["episode"], meta["attempt"]) == (TASK, 0, 0, 0)


def test_what_is_recorded_is_the_experts_own_action(monkeypatch):
    """With noise the expert goes where the noise has led: its actions there are recorded, and no noise."""
    done, wanted, succeeded = [], [], []
    advance, expert_action = TaskEnv.advance, TaskEnv.expert_action

    def advancing(env, action):
        done.append(np.array(action))
        result = advance(env, action)
        succeeded.append(result[1])
        return result

    def wanting(env):
        wanted.append(expert_action(env))
        return wanted[-1]

    monkeypatch.setattr(TaskEnv, "advance", advancing)
    monkeypatch.setattr(TaskEnv, "expert_action", wanting)
    monkeypatch.setattr(module, "STRAYS", 0)
    one = demonstration(TASK, 0, 0, noise=0.2, image_size=0)
    assert np.array_equal(one.actions, wanted)
    assert np.std(np.array(done) - one.actions) == pytest.approx(0.2, rel=0.2)
    assert len(one) == succeeded.index(True) + 1 + STAY
    done.clear(), wanted.clear()
    monkeypatch.setattr(module, "STRAYS", 0.05)
    led = demonstration(TASK, 0, 0, noise=0.01, image_size=0)
    assert np.array_equal(led.actions, wanted)
    away = np.abs(np.array(done) - led.actions)[:, :3].max(1) > 0.1
    assert (
        {*np.flatnonzero(away)} <= {*led.meta["astray"]}
        and 0.1 < away.mean() < 0.9
        and np.abs(np.array(done) - led.actions)[:, 3].max() < 0.1
    )  # not of the gripper
    done.clear()
    clean = demonstration(TASK, 0, 0, noise=0, image_size=0)
    assert np.array_equal(clean.actions, done)


def test_the_hand_is_led_astray_by_an_action_that_stays():
    found = module._astray(np.random.default_rng(0), 20_000)
    assert np.isnan(found[:, 3]).all() and np.nanmin(found) >= -1 and np.nanmax(found) <= 1
    is_led = ~np.isnan(found[:, 0])
    assert 0.08 < is_led.mean() < 0.2 and np.array_equal(is_led, ~np.isnan(found[:, 2]))
    assert 5 <= is_led.sum() / len(np.unique(found[is_led, :3], axis=0)) <= 15


def test_a_failure_is_replaced_by_the_next_attempt(monkeypatch):
    second = demonstration(TASK, 0, 0, image_size=0, attempt=1)
    tried = []

    def failing(*arguments, attempt: int, **more):
        tried.append(attempt)
        return None if attempt == 0 else demonstration(*arguments, attempt=attempt, **more)

    monkeypatch.setattr(module, "demonstration", failing)
    assert equal(episode(TASK, 0, 0, image_size=0), second)
    assert tried == [0, 1] and second.meta["attempt"] == 1
    monkeypatch.setattr(module, "demonstration", lambda *arguments, **more: None)
    with pytest.raises(DataError, match="the expert of handle-press-v3 failed 20 times in a row"):
        episode(TASK, 0, 0)


def test_an_attempt_that_fails_is_none():
    assert demonstration(TASK, 0, 0, max_steps=5) is None


def test_only_the_images_that_are_seen_are_made():
    whole, part = episode(TASK, 0, 0), episode(TASK, 0, 0, frames=lambda was_led: [3, len(was_led) - 1])
    seen = np.isin(np.arange(len(whole)), [3, len(whole) - 1])
    assert np.array_equal(part.images["image"][seen], whole.images["image"][seen])
    assert not part.images["image"][~seen].any() and np.array_equal(part.actions, whole.actions)


def test_few_environments_stay_open():
    for task in (TASK, "coffee-button-v3", "button-press-v3", TASK):
        episode(task, 0, 0, image_size=0)
    assert [*module._open] == [("button-press-v3", 0), (TASK, 0)]
