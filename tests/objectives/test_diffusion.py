"""Diffusion against closed forms: noise, levels, loss, and samplers on a Gaussian whose optimal denoiser is known."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import model_config, random_documents, with_modality
from torch import Tensor

from plait.batch.assemble import pack, pack_checked
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError, DataError, ResourceError
from plait.config.generation import DiffusionConfig
from plait.config.run import RunConfig
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt, loss_sum, predicted_target, signal_and_noise, target
from plait.objectives.samplers import RANDOM_SAMPLERS, SAMPLERS, Denoiser, check_sampler

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.4]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
CASES = [(process, name) for process, names in SAMPLERS.items() for name in names]
RANDOM = RANDOM_SAMPLERS
EXACT = [case for case in CASES if case[1] != "stochastic_euler"]
DETERMINISTIC = [case for case in CASES if case[1] not in RANDOM]


def factors(level: float, process: str) -> tuple[float, float]:
    return tuple(x.item() for x in signal_and_noise(torch.tensor(level, dtype=torch.float64), process))


def optimal(x: Tensor, level: float, process: str) -> Tensor:
    """Return the best prediction [n, 3] at x_t of N(MEAN, COVARIANCE): E[noise | x_t], or E[noise - x_0 | x_t]."""
    a, b = factors(level, process)
    whitened = (x.double() - a * MEAN) @ torch.linalg.inv(a * a * COVARIANCE + b * b * torch.eye(3))
    clean, noise = MEAN + a * whitened @ COVARIANCE, b * whitened
    return target(clean, noise, process).to(x.dtype)


def denoise(process: str, sampler: str, steps: int, start: Tensor, *, seeds=(0,), bias=0.0, **settings) -> Tensor:
    denoiser = Denoiser(DiffusionConfig(process=process, **settings), sampler, steps, seeds=seeds)
    x = start
    for level in denoiser.levels:
        x = denoiser.step(optimal(x, level, process) + bias, x)
    return x


def white(n: int) -> Tensor:
    """Return noise [n, 3] whose sample mean is 0 and covariance the identity, but for rounding."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def errors(x: Tensor) -> tuple[float, float]:
    """Return the largest errors of the sample mean and covariance."""
    return (x.mean(0) - MEAN).abs().max().item(), (torch.cov(x.T) - COVARIANCE).abs().max().item()


# --- samplers


@pytest.mark.parametrize(("process", "sampler"), EXACT)
def test_a_gaussian_is_recovered(process, sampler):
    """20,000 samples in 250 steps. The start is exactly white, so a deterministic sampler has its own error only;
    that of the first-order ones and of starting half a step below pure noise (ddpm) is about 1 / steps."""
    mean, covariance = errors(denoise(process, sampler, 250, white(20_000)))
    first_order = sampler in ("ddim", "euler", "ddpm")
    assert mean < (0.03 if sampler in RANDOM else 0.006 if process == "ddpm" else 1e-4)
    assert covariance < (0.03 if sampler in RANDOM else 0.01 if first_order else 1e-3)


@pytest.mark.parametrize("steps", [3, 25])
def test_stochastic_euler_gives_what_its_recursion_says(steps):
    """The mean of the clean latents, mixed with fresh noise: the mean is kept, the covariance shrinks at each step."""
    levels = [*Denoiser(DiffusionConfig(process="flow"), "stochastic_euler", steps).levels, 0.0]
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for t, after in itertools.pairwise(levels):
        a, b = factors(t, "flow")
        gain = a * COVARIANCE @ torch.linalg.inv(a * a * COVARIANCE + b * b * torch.eye(3))
        mean = (1 - after) * (MEAN + gain @ (mean - a * MEAN))
        covariance = (1 - after) ** 2 * gain @ covariance @ gain.T + after**2 * torch.eye(3)
    x = denoise("flow", "stochastic_euler", steps, white(20_000))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.03)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=1e-5)
    assert covariance.trace() < 0.8 * COVARIANCE.trace()


@pytest.mark.parametrize(("process", "sampler"), DETERMINISTIC)
def test_the_error_falls_with_the_steps(process, sampler):
    start = white(500)
    found = [sum(errors(denoise(process, sampler, steps, start))) for steps in (5, 20, 80, 320)]
    ratio = 2.5 if process == "ddpm" or sampler == "euler" else 3.5
    for more, fewer in zip(found[1:], found, strict=False):
        assert more < fewer / ratio or more < 2e-4, found


@pytest.mark.parametrize("sampler", SAMPLERS["flow"])
@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_moves_the_steps_and_changes_nothing_else(sampler, shift):
    levels = Denoiser(DiffusionConfig(process="flow", shift=shift), sampler, 4).levels
    t = np.array([0.75, 0.5, 0.25])
    assert levels[0] == pytest.approx(1, abs=2e-6)
    np.testing.assert_allclose(sorted(set(levels[1:]), reverse=True), shift * t / (1 + (shift - 1) * t), rtol=1e-12)
    given = Denoiser(DiffusionConfig(process="flow"), sampler, 4, shift=shift).levels
    assert given == levels
    if sampler == "stochastic_euler":
        return
    count, bound = (20_000, 0.03) if sampler in RANDOM else (500, 0.02)
    assert max(errors(denoise("flow", sampler, 200, white(count), shift=shift))) < bound


@pytest.mark.parametrize(("process", "sampler"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 600])
def test_levels_fall_from_noise_and_one_step_takes_each(process, sampler, steps):
    """Any number of steps, divisors of T or not: even spacing within the grid, and as many levels as calls."""
    denoiser = Denoiser(DiffusionConfig(process=process), sampler, steps)
    levels = denoiser.levels
    assert all(type(t) is float and 0 < t <= 1 for t in levels)
    assert len(levels) == (2 * steps - 1 if sampler == "heun" else steps)
    distinct = list(dict.fromkeys(levels))
    assert len(distinct) == steps and distinct == sorted(distinct, reverse=True)
    expected = 1 - np.arange(1, steps) / steps
    np.testing.assert_allclose(distinct[1:], expected, atol=5.01e-4 if process == "ddpm" else 1e-12)
    if process == "ddpm":  # on the grid that the model was trained on
        assert all(math.isclose(t * 1000, round(t * 1000), abs_tol=1e-9) for t in levels)
        assert abs(levels[0] - (1 - 0.5 / steps)) <= 1e-3
    x = torch.zeros(2, 3)
    for _ in levels:
        x = denoiser.step(torch.zeros_like(x), x)
    with pytest.raises(AssertionError):
        denoiser.step(x, x)


@pytest.mark.parametrize("sampler", SAMPLERS["ddpm"])
def test_every_level_of_ddpm_can_be_visited(sampler):
    assert Denoiser(DiffusionConfig(), sampler, 1000).levels == [k / 1000 for k in range(1000, 0, -1)]
    assert max(errors(denoise("ddpm", sampler, 1000, white(2000)))) < 0.06


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_an_error_of_the_noise_is_not_blown_up(steps):
    """A constant error of 0.05 in the predicted noise; starting at level 1 itself would end about 0.8 off."""
    x = denoise("ddpm", "ddim", steps, white(500), bias=0.05 * torch.tensor([1.0, -1.0, 1.0]))
    assert errors(x)[0] < 0.25


@pytest.mark.parametrize(("process", "sampler"), CASES)
def test_items_share_a_denoiser_and_keep_their_own_draws(process, sampler):
    """Three items of two latents each, together and one by one; 18 numbers a draw are enough for any generator."""
    start = white(18)
    together = denoise(process, sampler, 8, start, seeds=(3, 4, 5))
    apart = torch.cat([denoise(process, sampler, 8, x, seeds=(s,)) for s, x in zip((3, 4, 5), start.split(6))])
    assert Denoiser(DiffusionConfig(process=process), sampler, 2).is_random == (sampler in RANDOM)
    torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-6)
    if sampler in RANDOM:
        assert torch.equal(denoise(process, sampler, 8, start, seeds=(3, 4, 5)), together)
        other = denoise(process, sampler, 8, start, seeds=(3, 6, 5))
        assert torch.equal(other[:6], together[:6]) and torch.equal(other[12:], together[12:])
        assert not torch.allclose(other[6:12], together[6:12], atol=1e-3)


@pytest.mark.parametrize(("process", "sampler"), CASES)
def test_dtypes_are_kept(process, sampler):
    exact = denoise(process, sampler, 10, white(8))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        x = denoise(process, sampler, 10, white(8).to(dtype))
        assert x.dtype == dtype
        if sampler not in RANDOM:
            torch.testing.assert_close(x.double(), exact, rtol=bound, atol=bound)


def test_auto_is_ddim_or_euler():
    start = white(4)
    for process, name in (("ddpm", "ddim"), ("flow", "euler")):
        assert torch.equal(denoise(process, "auto", 5, start), denoise(process, name, 5, start))


@pytest.mark.parametrize(
    ("process", "sampler", "steps", "sentence"),
    [
        ("ddpm", "heun", 10, "sampling.sampler: 'heun' is not allowed, it must be one of auto, ddim.*is 'ddpm'"),
        ("flow", "ddim", 10, "sampling.sampler: 'ddim' is not allowed, it must be one of auto, euler.*is 'flow'"),
        ("flow", "eular", 10, "sampling.sampler: unknown name 'eular'.*did you mean 'euler'"),
        ("ddpm", "ddim", 1001, r"sampling.steps: 1001 is not allowed, .* at most diffusion.num_timesteps \(1000\)"),
    ],
)
def test_wrong_samplers_are_told_in_one_sentence(process, sampler, steps, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_sampler(DiffusionConfig(process=process), sampler, steps, "sampling")


def test_a_missing_diffusers_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ResourceError, match="install it: pip install 'plait\\[media\\]'"):
        Denoiser(DiffusionConfig(), "ddim", 5)


# --- the noise


def test_the_ddpm_schedule_is_the_cosine():
    """alpha-bar(t) = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), s = 0.008 (arXiv 2102.09672, eq. 17)."""
    t = np.arange(0, 1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    a, b = (x.numpy() for x in signal_and_noise(torch.from_numpy(t), "ddpm"))
    np.testing.assert_allclose(a**2, f / f[0], atol=1e-15)
    np.testing.assert_allclose(a**2 + b**2, 1, atol=1e-15)
    assert a[0] == 1 and b[0] == 0 and a[-1] ** 2 < 1e-30


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_the_schedulers_have_this_schedule(process):
    """What diffusers holds for each level is this project's alpha-bar or t, but for float32."""
    for sampler in SAMPLERS[process]:
        denoiser = Denoiser(DiffusionConfig(process=process), sampler, 20)
        signal, noise = zip(*(factors(t, process) for t in denoiser.levels), strict=True)
        held = denoiser._scheduler
        if process == "flow":
            np.testing.assert_allclose(held.sigmas[:-1], noise, rtol=1e-6)
        else:
            np.testing.assert_allclose(held.alphas_cumprod.flip(0), np.square(signal), rtol=2e-5)
        if hasattr(held, "sigmas"):
            assert held.sigmas[-1] == 0


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_noise_and_velocity_are_two_ways_to_say_the_same(process):
    """From x_t and the target, both the clean latents and the noise follow."""
    x, noise = torch.randn(2, 50, 4, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)[:, None]
    a, b = signal_and_noise(t, process)
    x_t, wanted = a * x + b * noise, target(x, noise, process)
    clean = (x_t - b * wanted) / a if process == "ddpm" else x_t - t * wanted
    torch.testing.assert_close(clean, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((x_t - a * clean) / b, noise, rtol=1e-10, atol=1e-10)


def mel(n: int, rng=None, **settings) -> Part:
    latents = np.ones((n, 3), np.float32) if rng is None else rng.standard_normal((n, 3)).astype(np.float32)
    return Part("mel", latents=latents, grid=(1, n), **settings)


def text(n: int = 3) -> Part:
    return Part("text", ids=np.zeros(n, np.int64))


def noised(documents, *, seed=0, later_sees="noised", **settings):
    """Return the corrupted batch's group of mel latents."""
    config = model_config(mel=True, later_sees=later_sees)
    return corrupt(pack_checked(documents, config, 32), DiffusionConfig(**settings), seed).latents["mel"]


def level_of_spans(group) -> Tensor:
    """Return the level [spans], checking that it is one for the whole span."""
    levels = [group.timesteps[group.span == i] for i in range(len(group.lengths))]
    assert all((t == t[0]).all() for t in levels)
    return torch.stack([t[0] for t in levels])


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_noised_latents_have_the_moments_of_the_closed_form(process):
    """(x_t - a x_0) / b is standard normal, and uncorrelated with the level; x_0 = 1 here."""
    group = noised([Document([text(), mel(40)], index=i) for i in range(400)], process=process)
    a, b = (x[:, None].double() for x in signal_and_noise(group.timesteps, process))
    noise = ((group.values - a) / b)[group.timesteps > 0.05].numpy().ravel()
    bound = 4 / math.sqrt(len(noise))
    assert abs(noise.mean()) < bound and abs(noise.var() - 1) < bound * math.sqrt(2)
    assert abs((noise**3).mean()) < bound * math.sqrt(15) and abs((noise**4).mean() - 3) < bound * math.sqrt(96)
    expected = target(torch.ones(()), (group.values - a) / b, process)
    near = group.timesteps > 0.05  # below, float32 loses the noise in x_t - a x_0
    torch.testing.assert_close(group.targets[near].double(), expected[near].double(), rtol=1e-3, atol=1e-3)


def test_each_modality_can_have_its_own_noise():
    """What is set for one is what it would have alone; the others have what is set for all."""
    config = with_modality(model_config(mel=True), "arm", objective="diffusion", latent_channels=2)
    arm = Part("arm", latents=np.ones((4, 2), np.float32))
    documents = [Document([text(), mel(3), arm], index=i) for i in range(6)]
    own = {"process": "flow", "shift": 5.0, "logit_std": 0.3}
    settings = [DiffusionConfig(), DiffusionConfig(**own), DiffusionConfig(by_modality={"arm": own})]
    for_all, for_arm, mixed = (corrupt(pack_checked(documents, config, 64), s, 0).latents for s in settings)
    for field in ("timesteps", "values", "targets"):
        assert torch.equal(getattr(mixed["mel"], field), getattr(for_all["mel"], field))
        assert torch.equal(getattr(mixed["arm"], field), getattr(for_arm["arm"], field))
    assert not torch.equal(for_all["arm"].timesteps, for_arm["arm"].timesteps)


@pytest.mark.parametrize(
    ("by_modality", "sentence"),
    [
        ({"arm": {"shfit": 2}}, r"diffusion\.by_modality\.arm: unknown name 'shfit', .* did you mean 'shift'"),
        ({"arm": {"shift": 0}}, r"diffusion\.by_modality\.arm\.shift: 0.* is not allowed"),
        ({"arm": {"process": "vp"}}, r"diffusion\.by_modality\.arm\.process: 'vp' is not allowed, .* ddpm or flow"),
        ({"arm": 3}, r"diffusion\.by_modality\.arm: 3 is not allowed, it must be a mapping"),
    ],
)
def test_wrong_settings_of_a_modality_are_named(by_modality, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DiffusionConfig(by_modality=by_modality)


def test_settings_of_a_modality_that_is_none_or_has_ids_are_refused():
    for name in ("mell", "text"):
        with pytest.raises(ConfigError, match=rf"diffusion\.by_modality: unknown name '{name}', allowed: mel"):
            RunConfig(model=model_config(mel=True), diffusion=DiffusionConfig(by_modality={name: {"shift": 2.0}}))


def distance(samples: np.ndarray, cdf) -> float:
    """Return the Kolmogorov-Smirnov distance times sqrt(n); above 1.95 with a chance of 0.1 %."""
    x = np.sort(samples)
    n = len(x)
    below, above = np.arange(n) / n, np.arange(1, n + 1) / n
    return max(np.abs(cdf(x) - below).max(), np.abs(cdf(x) - above).max()) * math.sqrt(n)


def test_flow_levels_are_logit_normal_and_shifted():
    """logit t is normal, and the shift s adds log s to it (arXiv 2403.03206, eq. 19 and 23)."""
    settings = {"logit_mean": -0.4, "logit_std": 0.8, "shift": 3.0}
    documents = [Document([text(), mel(1)], index=i) for i in range(3000)]
    levels = level_of_spans(noised(documents, process="flow", **settings)).double().numpy()

    def cdf(t, shift=3.0):
        z = (np.log(t / (1 - t)) - math.log(shift) + 0.4) / 0.8
        return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])

    assert distance(levels, cdf) < 1.95
    assert distance(levels, lambda t: cdf(t, 1.0)) > 5  # the distance does tell


def test_ddpm_levels_are_one_of_t_evenly():
    documents = [Document([text(), mel(1)], index=i) for i in range(4000)]
    index = level_of_spans(noised(documents, num_timesteps=10)).numpy() * 10
    counts = np.bincount(np.round(index).astype(int), minlength=11)
    np.testing.assert_allclose(index, np.round(index), atol=1e-5)
    assert counts[0] == 0 and np.square(counts[1:] - 400).sum() / 400 < 27.9  # chi-squared, 9 degrees, 0.1 %


ORDERS = {
    "mel,text": [True],
    "mel,mel,text": [True, True],
    "mel,speech": [True],
    "text,mel": [False],
    "text,mel,text": [False],
    "mel,text,mel": [True, False],
    "mel": [False],
    "mel,mel": [False, False],
    "speech,mel": [False],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_levels_are_limited_where_the_item_comes_before_its_text(order, process):
    make = {"mel": lambda: mel(2), "text": text, "speech": lambda: Part("speech", ids=np.zeros(2, np.int64))}
    documents = [Document([make[name]() for name in order.split(",")], index=i) for i in range(300)]
    levels = level_of_spans(noised(documents, process=process)).reshape(300, -1).double()
    for highest, limited in zip(levels.amax(0), ORDERS[order], strict=True):
        assert (0.4 < highest <= 0.5) if limited else highest > 0.75
    if process == "ddpm":  # t <= 500 of 1000: still on the grid
        torch.testing.assert_close(levels * 1000, (levels * 1000).round(), rtol=0, atol=1e-3)


def test_a_noised_item_that_later_text_does_not_see_is_not_limited():
    documents = [Document([mel(2), text()], index=i) for i in range(200)]
    group = noised(documents, later_sees="clean_copy")
    levels = level_of_spans(group)[torch.tensor(group.noised)]
    assert len(levels) == 200 and levels.max() > 0.9


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_spans_that_are_not_noised_stay_as_they_are(process):
    rng = np.random.default_rng(0)
    given, made = mel(3, rng, role="understanding"), mel(4, rng)
    group = noised([Document([given, text(), made, text()], index=7)], later_sees="clean_copy", process=process)
    assert group.noised == [False, True, False]  # the given one, the one to be made, and its copy
    given_values, noised_values, copied = group.values.split(group.lengths)
    assert np.array_equal(given_values, given.latents) and np.array_equal(copied, made.latents)
    assert not np.allclose(noised_values, made.latents, atol=1e-3)
    levels = level_of_spans(group)
    assert levels[0] == levels[2] == 0 < levels[1]


def test_draws_count_the_noised_spans_of_a_document():
    """A clean item more or less, or copies, changes no draw of the noised ones."""
    rng = np.random.default_rng(0)
    made, given = [mel(4, rng), mel(2, rng)], mel(3, rng, role="understanding")
    few = noised([Document([text(), *made], index=5)], later_sees="nothing")
    many = noised([Document([text(), given, made[0], text(), made[1], text()], index=5)], later_sees="clean_copy")
    assert sum(few.noised) == sum(many.noised) == 2
    chosen = torch.tensor(many.noised).repeat_interleave(torch.tensor(many.lengths))
    assert torch.equal(many.values[chosen], few.values) and torch.equal(many.timesteps[chosen], few.timesteps)
    first, second = few.values.split(few.lengths)
    assert not torch.allclose(
        first[:2] - torch.from_numpy(made[0].latents[:2]), second - torch.from_numpy(made[1].latents)
    )


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_draws_depend_on_the_document_alone(process):
    """Packing, order in the batch and companions change nothing; seed and epoch do."""
    documents = [
        d for d in random_documents(np.random.default_rng(1), 12, mel=True) if any(p.modality == "mel" for p in d.parts)
    ]
    alone = {d.index: noised([d], process=process) for d in documents}
    for order in (documents, documents[::-1], documents[3:5]):
        group = noised(order, process=process)
        for field in ("values", "targets", "timesteps"):
            expected = torch.cat([getattr(alone[d.index], field) for d in order])
            assert torch.equal(getattr(group, field), expected)
    one = documents[0]
    for other in (
        noised([one], seed=1, process=process),
        noised([Document(one.parts, index=one.index, epoch=1)], process=process),
    ):
        assert not torch.equal(other.timesteps, alone[one.index].timesteps)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_told(bad):
    part = mel(3)
    part.latents[1, 2] = bad
    with pytest.raises(DataError, match="document 9: its latents of 'mel' hold NaN or infinity"):
        noised([Document([text(), mel(2)], index=8), Document([text(), part], index=9)])


# --- the loss


def loss_of(batch, predictions: Tensor) -> float:
    """Return the summed loss where the model says ``predictions`` [n, C]."""
    config = model_config(mel=True)
    model = SimpleNamespace(config=config, latent_out={"mel": {}}, predict_latents=lambda *_: predictions)
    return loss_sum(model, [predictions], batch, "mel").item()


def test_the_loss_is_a_mean_over_each_item_whatever_its_size():
    """Errors of e everywhere give e^2 for each item: 4 + 9 for items of 2 and of 30 tokens."""
    config = model_config(mel=True)
    batch = corrupt(pack([Document([text(), mel(2), text(), mel(30)])], config), DiffusionConfig(), 0)
    group = batch.latents["mel"]
    off = torch.tensor([2.0, 3.0], dtype=torch.float64).index_select(0, group.span)[:, None]
    assert loss_of(batch, group.targets.double() + off) == pytest.approx(13, rel=1e-12)
    assert batch.counts[config.layout.names.index("mel")] == 2


def test_the_loss_counts_noised_items_only():
    config = model_config(mel=True, later_sees="clean_copy")
    parts = [mel(5, role="understanding"), text(), mel(2), text()]
    batch = corrupt(pack([Document(parts)], config), DiffusionConfig(), 0)
    group = batch.latents["mel"]
    off = torch.tensor([7.0, 2.0, 9.0], dtype=torch.float64).index_select(0, group.span)[:, None]
    assert loss_of(batch, group.targets.double() + off) == pytest.approx(4, rel=1e-12)
    assert batch.counts[config.layout.names.index("mel")] == 1


@pytest.mark.parametrize("parts", [[text()], [mel(3, role="understanding"), text()]], ids=["none", "clean only"])
def test_without_noised_items_the_loss_is_zero_and_so_are_gradients(parts):
    config = model_config(mel=True, later_sees="clean_copy")
    model = MixtureOfTransformers(config).double()
    batch = corrupt(pack([Document(parts)], config), DiffusionConfig(), 0)
    loss = loss_sum(model, model(batch), batch, "mel")
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.latent_out.parameters())


def test_clean_latents_that_are_predicted_say_the_velocity(rng):
    """x_t = (1 - t) x_0 + t noise: where the head says x_0, noise - x_0 follows, and nothing is left of the loss."""
    documents = [*random_documents(rng, 6, mel=True), Document([text(), mel(5, rng)], index=99)]
    configs = {kind: with_modality(model_config(mel=True), "mel", predicts=kind) for kind in ("target", "clean")}
    models = {kind: MixtureOfTransformers(config).double() for kind, config in configs.items()}
    batch = corrupt(pack(documents, models["target"].config), DiffusionConfig(process="flow"), 0)
    group = batch.latents["mel"]
    said, velocity = (predicted_target(model, model(batch), batch, "mel") for model in models.values())
    levels = group.timesteps.double().clamp_min(0.05)[:, None]
    torch.testing.assert_close(velocity, (group.values - said) / levels, rtol=1e-12, atol=1e-12)
    is_high = group.timesteps > 0.05
    clean = group.values.double() - group.timesteps[:, None] * group.targets
    exact = (group.values - clean) / levels
    torch.testing.assert_close(exact[is_high], group.targets.double()[is_high], rtol=1e-4, atol=1e-4)
    loss_sums(models["clean"], models["clean"](batch), batch).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models["clean"].parameters())


def test_clean_latents_are_predicted_by_flow_alone():
    config = with_modality(model_config(mel=True), "mel", predicts="clean")
    RunConfig(config, diffusion=DiffusionConfig(process="flow"))
    with pytest.raises(ConfigError, match=r"mel\.predicts: 'clean' is not allowed, it must be target .*ddpm"):
        RunConfig(config, diffusion=DiffusionConfig(process="ddpm"))
