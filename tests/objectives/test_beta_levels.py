"""pi0's draw of noise levels: 0.001 + 0.999 u with u ~ Beta(1.5, 1), towards noise, and nothing else moves."""

import math

import numpy as np
import pytest
from helpers.models import model_config

from plait.batch.assemble import pack_checked
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.common.randomness import generator
from plait.config.generation import DiffusionConfig
from plait.objectives.diffusion import _level, corrupt

COUNT = 20_000


def draws(limit: float = 1.0, **settings) -> np.ndarray:
    config = DiffusionConfig(process="flow", **settings)
    return np.array([_level(generator(0, "test", item=i), config, limit) for i in range(COUNT)])


@pytest.mark.parametrize("beta", [None, [1.5, 1.0], [1.0, 1.0], [3.0, 1.0], [1.0, 2.0]])
def test_levels_are_those_of_the_distribution(beta):
    """Beta(a, 1) has the CDF u^a, Beta(1, b) has 1 - (1 - u)^b; both the mean a / (a + b)."""
    levels = draws(levels="beta", **({} if beta is None else {"beta": beta}))
    a, b = beta or (1.5, 1.0)
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert abs(levels.mean() - (0.001 + 0.999 * mean)) < 4 * math.sqrt(variance / COUNT)
    for q in (0.1, 0.5, 0.9):
        quantile = 0.001 + 0.999 * (q ** (1 / a) if b == 1 else 1 - (1 - q) ** (1 / b))
        assert abs((levels < quantile).mean() - q) < 4 * math.sqrt(q * (1 - q) / COUNT)
    assert levels.min() >= 0.001 and levels.max() <= 1


def test_pi0_favours_noise():
    """Its mean is 0.6, not the 0.4 of the other direction."""
    levels = draws(levels="beta")
    assert levels.mean() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01) and (levels > 0.5).mean() > 0.6


def test_shift_and_limit_apply_as_before():
    plain, shift = draws(levels="beta"), 3.0
    np.testing.assert_allclose(draws(levels="beta", shift=shift), shift * plain / (1 + (shift - 1) * plain), rtol=1e-12)
    np.testing.assert_allclose(draws(limit=0.5, levels="beta"), plain / 2, rtol=1e-12)


def test_draws_without_it_are_what_they_were():
    config = DiffusionConfig(process="flow", logit_mean=-0.4, logit_std=0.8, shift=3.0)
    for item in range(100):
        t = 1 / (1 + math.exp(-generator(0, "test", item=item).normal(-0.4, 0.8)))
        assert _level(generator(0, "test", item=item), config, 1.0) == 3.0 * t / (1 + 2.0 * t)


def test_one_modality_alone_has_it():
    config = model_config(mel=True)
    latents = np.ones((3, config.modalities["mel"].latent_channels), np.float32)
    parts = [Part("text", ids=np.zeros(2, np.int64)), Part("mel", latents=latents)]
    documents = [Document(parts, index=i) for i in range(300)]

    def levels(settings: DiffusionConfig) -> np.ndarray:
        group = corrupt(pack_checked(documents, config, 2048), settings, 0).latents["mel"]
        return group.timesteps.double().numpy()

    alone = levels(DiffusionConfig(by_modality={"mel": {"process": "flow", "levels": "beta"}}))
    assert np.array_equal(alone, levels(DiffusionConfig(process="flow", levels="beta")))
    assert not np.array_equal(alone, levels(DiffusionConfig(process="flow")))
    assert alone.mean() == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"levels": "beta"}, r"diffusion\.levels: 'beta' is not allowed, .* beta where process is flow"),
        ({"process": "flow", "levels": "uniform"}, r"diffusion\.levels: 'uniform'"),
        (
            {"process": "flow", "levels": "beta", "beta": [1.5]},
            r"diffusion\.beta: \[1\.5\] is not allowed, .* two numbers",
        ),
        ({"process": "flow", "levels": "beta", "beta": [1.5, 0]}, r"diffusion\.beta\[1\]: 0.* above 0"),
        ({"by_modality": {"a": {"levels": "beta"}}}, r"diffusion\.by_modality\.a\.levels: 'beta' is not allowed"),
        ({"by_modality": {"a": {"beta": 2}}}, r"diffusion\.by_modality\.a\.beta: 2 is not allowed"),
        ({"process": "flow", "levels": "beta", "by_modality": {"a": {"process": "ddpm"}}}, r"by_modality\.a\.levels"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DiffusionConfig(**settings)
