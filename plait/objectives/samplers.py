"""Denoising by diffusers' schedulers: from noise to clean latents, over noise levels known in advance.

Levels are this project's t (0 clean, 1 noise) and the noise schedule is `signal_and_noise`: diffusers is given it, as
betas (ddpm) or as sigmas (flow), and never uses one of its own. Nothing is clipped and nothing thresholded.

A schedule is made for the levels that are visited only (arXiv 2102.09672, section 4, "respacing"): every scheduler
then goes down one index at a time, and its own ways of choosing timesteps do not matter.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.common.errors import ResourceError
from plait.config.generation import SAMPLERS, DiffusionConfig, check_sampler
from plait.objectives.diffusion import signal_and_noise

MAX_BETA = 0.999
"""Largest beta of ddpm (arXiv 2102.09672, section 3.2)."""

RANDOM_SAMPLERS = ("ddpm", "sde_dpm_solver", "stochastic_euler")
"""Samplers that add noise on the way."""

LAST_SIGMA = 1 - 1e-6
"""Highest noise level of the solvers that take the logarithm of the signal (flow)."""


class Denoiser:
    """Takes latents from noise to clean, by one of diffusers' schedulers. It serves one run from noise to clean.

    All is elementwise, so latents of many items [n, C] share one. Where it `is_random`, the items are as many as
    ``seeds`` and of one size, and the draws for each depend on its own seed alone.

    Latents keep their device. The coefficients stay on the host in float32; Euler and Heun also compute in float32,
    the others in the dtype of the latents, which is what `step` returns in each case. Steps do not wait for the
    device, but for those that draw noise (on the host) and unipc (small tensors sent there, a 2 x 2 system solved).
    """

    levels: list[float]
    """Noise level in [0, 1] of each forward pass, falling: one for each call of `step`."""
    is_random: bool
    """Whether noise is added on the way."""

    def __init__(
        self, config: DiffusionConfig, sampler: str, steps: int, *, seeds: Sequence[int] = (0,),
        shift: float | None = None,
    ):  # fmt: skip
        """``shift`` is used in place of ``config.shift`` where it is given (flow)."""
        check_sampler(config, sampler, steps, "sampling")
        config = config if shift is None else replace(config, shift=shift)
        sampler = SAMPLERS[config.process][0] if sampler == "auto" else sampler
        self.is_random = sampler in RANDOM_SAMPLERS
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds] if self.is_random else []
        build = _ddpm_scheduler if config.process == "ddpm" else _flow_scheduler
        self._scheduler, self.levels = build(config, sampler, steps)
        if hasattr(self._scheduler, "set_begin_index"):  # it counts the steps itself, from here
            self._scheduler.set_begin_index(0)
        self._next = 0

    def step(self, prediction: Tensor, latents: Tensor) -> Tensor:
        """Return the latents [n, C] of the next level, from what the model says at this one; clean after the last.

        ``prediction`` [n, C] is what `plait.objectives.diffusion.target` names: the noise (ddpm), the velocity (flow).
        """
        assert self._next < len(self.levels), f"all {len(self.levels)} levels were visited"
        timestep = self._scheduler.timesteps[self._next]
        self._next += 1
        prediction, shape, noise = prediction.to(latents.dtype), latents.shape, {}
        if self.is_random:  # item by item, as diffusers takes a generator for each
            by_item = (len(self._draws), -1, shape[-1])
            prediction, latents, noise = prediction.view(by_item), latents.view(by_item), {"generator": self._draws}
        out: Tensor = self._scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]
        return out.view(shape).to(latents.dtype)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise ResourceError("denoising needs diffusers; install it: pip install 'plait[media]'") from None
    return diffusers


def _ddpm_scheduler(config: DiffusionConfig, sampler: str, steps: int) -> tuple[Any, list[float]]:
    """Return the scheduler over the visited levels, and the levels."""
    diffusers = _diffusers()
    levels = _ddpm_levels(config.num_timesteps, steps)
    rising = torch.tensor(levels[::-1], dtype=torch.float64)
    alpha_bar = signal_and_noise(rising, "ddpm")[0].square()
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    settings = {
        "num_train_timesteps": steps,
        "trained_betas": betas.clamp(max=MAX_BETA).tolist(),
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    if sampler == "ddpm":
        scheduler = diffusers.DDPMScheduler(**settings, clip_sample=False, variance_type="fixed_small")
    elif sampler == "ddim":
        scheduler = diffusers.DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)
    else:
        scheduler = _multistep(diffusers, sampler)(**settings, solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    return scheduler, levels


def _ddpm_levels(num_timesteps: int, steps: int) -> list[float]:
    """Return the levels k / T that are visited, falling by T / steps each; the first one lies half a step below 1.

    At 1 there is no signal, so predicted noise says nothing of the item, and its errors would be divided by nearly
    zero. Where every level is visited (steps = T) the largest beta bounds that instead.
    """
    index = [round(num_timesteps * (1 - i / steps)) for i in range(steps)]
    second = index[1] if steps > 1 else 0
    index[0] = second + (num_timesteps - second + 1) // 2
    return [k / num_timesteps for k in index]


def _flow_scheduler(config: DiffusionConfig, sampler: str, steps: int) -> tuple[Any, list[float]]:
    """Return the scheduler over the visited levels, and the levels: evenly spaced from 1, then shifted."""
    diffusers = _diffusers()
    places = [1 - i / steps for i in range(steps)]
    levels = [config.shift * t / (1 + (config.shift - 1) * t) for t in places]
    if sampler in ("euler", "stochastic_euler"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=sampler == "stochastic_euler")
    elif sampler == "heun":  # predictor and corrector look at each level but the first
        scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        levels = levels[:1] + [t for t in levels[1:] for _ in range(2)]
    else:
        levels[0] = LAST_SIGMA
        scheduler = _multistep(diffusers, sampler)(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, final_sigmas_type="zero"
        )
    scheduler.set_timesteps(steps)
    # all four read `sigmas` by the index of the step, but only two take them as an argument
    scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
    return scheduler, levels


def _multistep(diffusers: Any, sampler: str) -> Any:
    """Return what builds UniPC, DPM-Solver++ (arXiv 2211.01095), or that of the reverse SDE."""
    if sampler == "unipc":
        return diffusers.UniPCMultistepScheduler
    kind = "sde-dpmsolver++" if sampler == "sde_dpm_solver" else "dpmsolver++"
    return functools.partial(diffusers.DPMSolverMultistepScheduler, algorithm_type=kind)
