"""A model as a policy: what it is given of an observation, when it plans again, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

import plait
from plait.codecs.actions import ActionsCodec
from plait.codecs.image_pixels import ImagePixelCodec
from plait.codecs.text import BytePairCodec
from plait.common.errors import ConfigError, DataError
from plait.config.generation import DiffusionConfig, GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate.actor import Actor
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers

CHUNK, STATE, ACTION = 6, 3, 4
TASK = "text,image,state,actions"


@pytest.fixture(scope="module")
def codecs(tmp_path_factory) -> dict:
    folder, rng, quiet = tmp_path_factory.mktemp("codecs"), np.random.default_rng(0), lambda share, text: None
    media = {
        "text": (BytePairCodec.from_options({"vocab_size": 280}), ["open a drawer", "close the door"] * 20),
        "image": (ImagePixelCodec.from_options({"size": 16, "patch_size": 8}),
                  list(rng.integers(0, 255, (4, 16, 16, 3), np.uint8))),
        "state": (ActionsCodec.from_options({}), list(rng.normal(size=(20, 1, STATE)).astype(np.float32))),
        "actions": (ActionsCodec.from_options({"steps": CHUNK}),
                    list(rng.normal(size=(20, CHUNK, ACTION)).astype(np.float32))),
    }  # fmt: skip
    for name, (codec, items) in media.items():
        codec.fit(items, minutes=0.1, seed=0, folder=folder / name, progress=quiet)
    media["state"][0].key = "state"
    return {name: codec for name, (codec, _) in media.items()}


def pipeline(codecs: dict, tasks: dict | None = None) -> Pipeline:
    latent = {"attention": "bidirectional"}
    sizes = {name: {"latent_channels": c.latent_channels, "patch_size": c.patch_size} for name, c in codecs.items()}
    config = ModelConfig(
        {
            "text": ModalityConfig(vocab_size=codecs["text"].vocab_size),
            "image": ModalityConfig(objective="input", patch_network="conv", **latent, **sizes["image"]),
            "state": ModalityConfig(objective="input", **latent, **sizes["state"]),
            "actions": ModalityConfig(objective="diffusion", later_sees="nothing", **latent, **sizes["actions"]),
        },
        width=32, num_layers=2, num_heads=2, max_positions=128,
    )  # fmt: skip
    model = MixtureOfTransformers(config, seed=1)
    settings = GenerateConfig(sampling={"actions": SamplingConfig(steps=2)})
    return Pipeline(model, codecs, settings, DiffusionConfig(process="flow"), {TASK: 1.0} if tasks is None else tasks)


def observation(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "text": "open a drawer", "image": rng.integers(0, 255, (16, 16, 3), np.uint8),
        "state": rng.normal(size=STATE).astype(np.float32), "reward": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("execute, plans", [(0, 4), (1, 10), (4, 3), (100, 2)])
def test_a_chunk_is_done_in_part_and_planned_again(codecs, execute, plans):
    """By default half of six: the actions are the first ones of what `Actor.chunks` makes of the same moments."""
    policy = plait.Policy(pipeline(codecs), execute=execute, seed=5)
    actions = np.stack([policy.act(observation(step)) for step in range(10)])
    assert actions.shape == (10, ACTION) and actions.dtype == np.float32 and policy.plans == plans
    done, actor = min(execute or CHUNK // 2, CHUNK), Actor(policy.actor.pipeline)
    for plan in range(plans):
        (chunk,) = actor.chunks([[observation(plan * done)]], seed=5, numbers=[plan])
        expected = chunk[: len(actions[plan * done : (plan + 1) * done])][:done]
        assert np.array_equal(actions[plan * done : (plan + 1) * done], expected)
    policy.reset()
    assert np.array_equal(policy.act(observation(0)), actions[0])


def test_observations_are_given_in_the_order_of_the_task_and_of_time(codecs):
    actor = Actor(pipeline(codecs, {"image,text": 1.0, TASK: 1.0, "state,actions": 0.5}))
    assert actor.given == ["text", "image", "state"] and actor.made == "actions"
    steps = [observation(step) for step in range(3)]
    parts = actor.prompt(steps)
    assert [*map(list, parts)] == [["text"], ["image"], ["image"], ["image"], ["state"]]
    assert np.array_equal(parts[2]["image"], steps[1]["image"])
    assert np.allclose(parts[-1]["state"], [step["state"] for step in steps])
    (chunk,) = actor.chunks([steps])
    assert chunk.shape == (CHUNK, ACTION) and np.isfinite(chunk).all()
    assert Actor(pipeline(codecs, {})).given == ["text", "image", "state"]  # a model whose tasks are not known


def test_before_the_first_step_it_looked_as_at_the_first(codecs):
    policy = plait.Policy(pipeline(codecs), history=2, execute=2)
    policy.act(observation(0))
    (expected,) = policy.actor.chunks([[observation(0)] * 3], numbers=[0])
    policy.reset()
    assert np.array_equal(policy.act(observation(0)), expected[0])
    policy.act(observation(1))
    (later,) = policy.actor.chunks([[observation(0), observation(1), observation(2)]], numbers=[1])
    assert np.array_equal(policy.act(observation(2)), later[0])


def test_many_at_once_are_as_each_alone(codecs):
    actor = Actor(pipeline(codecs))
    many = actor.chunks([[observation(step)] for step in range(5)], numbers=range(5))
    for step, chunk in enumerate(many):
        (alone,) = actor.chunks([[observation(step)]], numbers=[step])
        assert np.allclose(alone, chunk, atol=1e-4)


def test_what_the_model_does_depends_on_what_it_sees(codecs):
    actor = Actor(pipeline(codecs))
    (base,) = actor.chunks([[observation(0)]])
    for key, value in (("text", "close the door"), ("image", observation(1)["image"]), ("state", [1.0, 2.0, 3.0])):
        (changed,) = actor.chunks([[observation(0) | {key: value}]])
        assert not np.allclose(changed, base, atol=1e-5), key


def test_a_saved_policy_comes_back(codecs, tmp_path: Path):
    made = pipeline(codecs)
    made.save_pretrained(tmp_path / "policy")
    policy = plait.Policy.from_pretrained(tmp_path / "policy", device="cpu", execute=3)
    assert np.allclose(policy.act(observation(0)), plait.Policy(made).act(observation(0)), atol=1e-5)


def test_what_is_refused(codecs):
    actor = Actor(pipeline(codecs))
    seen = observation(0)
    del seen["state"]
    with pytest.raises(DataError, match="observation: a part of it: unknown name 'state'"):
        actor.chunks([[seen]])
    with pytest.raises(DataError, match="state: 2 numbers a step are not allowed, the codec has 3"):
        actor.chunks([[observation(0) | {"state": [0.1, 0.2]}]])
    with pytest.raises(ConfigError, match="execute: -1 is not allowed"):
        plait.Policy(pipeline(codecs), execute=-1)
    texts = {"text": codecs["text"]}
    model = MixtureOfTransformers(ModelConfig({"text": ModalityConfig(vocab_size=280)}, width=16, num_layers=1,
                                              num_heads=2))  # fmt: skip
    with pytest.raises(ConfigError, match=r"this model makes no actions, .* it has text"):
        plait.Policy(Pipeline(model, texts, GenerateConfig()))
