"""Meta-World's tasks as environments: the same start for the same seed, and images that show what happens."""

import sys

import numpy as np
import pytest

from plait.common.errors import ConfigError, ResourceError
from plait.robots import camera
from plait.robots.metaworld_env import TaskEnv

pytest.importorskip("metaworld", reason="Meta-World is not installed")


@pytest.fixture(scope="module")
def env():
    """A drawer that is to be opened."""
    env = TaskEnv("drawer-open-v3")
    yield env
    env.close()


def equal(one: dict, other: dict) -> bool:
    """Whether two observations are the same, bit for bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_gymnasium_finds_nothing_wrong(env):
    from gymnasium.utils.env_checker import check_env

    check_env(env, skip_render_check=True, skip_close_check=True)


def test_a_start_depends_on_its_seed_alone(env):
    first, info = env.reset(seed=3)
    assert first["text"] == "Open a drawer" and info == {"success": False}
    assert first["image"].shape == (64, 64, 3) and first["image"].dtype == np.uint8
    assert first["state"].shape == (4,) and first["state"].dtype == np.float32
    steps = [env.step(env.expert_action())[0] for _ in range(5)]
    env.reset(seed=4)
    assert equal(env.reset(seed=3)[0], first)
    assert all(equal(env.step(env.expert_action())[0], step) for step in steps)


def test_the_state_says_nothing_of_the_object(env):
    """The hand starts at the same place, wherever the drawer is; the image shows where."""
    (one, _), (other, _) = env.reset(seed=0), env.reset(seed=1)
    assert np.allclose(one["state"], other["state"], atol=1e-3)
    assert not np.array_equal(one["image"], other["image"])


def test_the_image_shows_the_hand(env):
    """Up and down are up and down in the image: its change lies higher where the hand went up."""
    before, _ = env.reset(seed=0)
    for _ in range(15):
        after, *_ = env.step(np.array([0, 0, 1, -1]))
    assert after["state"][2] > before["state"][2] + 0.05
    fingers = [(np.abs(o["image"].astype(int) - (0, 255, 255)).sum(-1) < 150).nonzero() for o in (before, after)]
    assert len(fingers[0][0]) > 3 and len(fingers[1][0]) > 3
    assert fingers[1][0].mean() < fingers[0][0].mean() - 5


def test_actions_are_limited(env):
    env.restart(0)
    env.advance(np.array([100, 0, 0, 0]))
    far = env.state()
    env.restart(0)
    env.advance(np.array([1, 0, 0, 0]))
    assert np.array_equal(far, env.state())


def test_the_expert_succeeds_and_steps_run_out():
    env = TaskEnv("handle-press-v3", 0, max_steps=60)
    observation, _ = env.reset(seed=0)
    assert "image" not in observation
    steps, terminated = 0, False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        steps += 1
    assert info == {"success": True} and not truncated and 10 < steps < 60 and reward > 0
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[2:4] for _ in range(60)]
    assert ends[-1] == (False, True) and not any(end for pair in ends[:-1] for end in pair)
    env.close()


def test_images_of_earlier_moments_are_those_of_then(env):
    env.restart(5)
    poses, images = [], []
    for _ in range(4):
        env.advance(env.expert_action())
        poses.append(env.pose())
        images.append(env.render(64))
    assert all(np.array_equal(a, b) for a, b in zip(images, env.render_poses(poses, 64), strict=True))


@pytest.mark.skipif(camera.renderer_name() == "rays", reason="no OpenGL works here")
def test_rays_show_what_opengl_shows(env):
    env.restart(2)
    for _ in range(20):
        env.advance(env.expert_action())
    drawn = env.render(64).astype(int)
    cast = camera.RayCamera(env._world.model, env._eye).image(env._world.data, 64).astype(int)
    assert np.corrcoef(drawn.ravel(), cast.ravel())[0, 1] > 0.9
    green = [(image[..., 1] > image[..., [0, 2]].max(-1) + 25) for image in (drawn, cast)]  # the drawer, and its goal
    assert (green[0] & green[1]).sum() > 0.7 * (green[0] | green[1]).sum() > 50
    mirrored = cast[:, ::-1]
    assert np.abs(drawn - cast).mean() < 0.5 * np.abs(drawn - mirrored).mean()


def test_rays_are_taken_where_opengl_is_disabled(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    assert camera.renderer_name.__wrapped__() == "rays"


def test_an_opengl_that_was_asked_for_is_needed(monkeypatch):
    def fails(name: str) -> None:
        raise ImportError("no such library\nsecond line")

    monkeypatch.setattr(camera, "_context", fails)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ResourceError, match=r"^robot: MUJOCO_GL=egl does not work here \(no such library\), unset it"):
        camera.renderer_name.__wrapped__()
    monkeypatch.delenv("MUJOCO_GL")
    assert camera.renderer_name.__wrapped__() == "rays"


def test_what_there_is_not():
    with pytest.raises(ConfigError, match="did you mean 'door-open-v3'"):
        TaskEnv("door-opne-v3")
    with pytest.raises(ConfigError, match=r"robot\.image_size: 1000"):
        TaskEnv("door-open-v3", 1000)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ResourceError) as error:
        TaskEnv("door-open-v3")
    assert str(error.value) == ("robot: package 'metaworld' is not installed, install it: pip install 'plait[robot]'")
