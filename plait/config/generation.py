"""Settings of what is made: noise and its schedule, how ids are drawn and latents denoised, and decoding."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import Checked, bounded

SAMPLERS = {
    "ddpm": ("ddim", "ddpm", "unipc", "dpm_solver", "sde_dpm_solver"),
    "flow": ("euler", "heun", "unipc", "dpm_solver", "sde_dpm_solver", "stochastic_euler"),
}
"""Samplers that fit each process; the first one is "auto"."""


@dataclass
class DiffusionConfig(Checked):
    """Noise and its schedule, for continuous modalities. t = 0 is clean, t = 1 is noise."""

    SECTION: ClassVar[str] = "diffusion"

    process: Literal["ddpm", "flow"] = "ddpm"
    """ddpm: epsilon-prediction, cosine schedule. flow: rectified flow."""
    num_timesteps: int = bounded(1000, at_least=1)
    """Noise levels of ddpm."""
    max_level_first: float = bounded(0.5, above=0, at_most=1)
    """Highest noise level of an item that comes before the text about it, which could not be told from noise
    (Transfusion, arXiv 2408.11039, section 4)."""
    levels: Literal["logit_normal", "beta"] = "logit_normal"
    """How t is drawn (flow). logit_normal: logit t is normal. beta: t = 0.001 + 0.999 u, u ~ Beta, towards noise, as
    pi0 draws it for actions (arXiv 2410.24164, appendix B)."""
    beta: list[float] = bounded(lambda: [1.5, 1.0], above=0)
    """The two parameters of the Beta distribution (beta): the first above the second favours noise."""
    logit_mean: float = 0.0
    """Mean of logit t (logit_normal)."""
    logit_std: float = bounded(1.0, above=0)
    """Standard deviation of logit t (logit_normal)."""
    shift: float = bounded(1.0, above=0)
    """Shift of t towards noise (flow)."""
    by_modality: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Where a modality has others of these settings, such as {action: {shift: 1}}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.levels == "logit_normal" or (self.levels == "beta" and self.process == "flow")
        require(fits, f"{self.SECTION}.levels", self.levels, "logit_normal, or beta where process is flow")
        require(len(self.beta) == 2, f"{self.SECTION}.beta", self.beta, "two numbers such as [1.5, 1]")
        for name in self.by_modality:
            self.of(name)

    def of(self, modality: str) -> "DiffusionConfig":
        """Return the settings of one modality. Raises ConfigError for one that there is not, or that is not allowed."""
        if modality not in self.by_modality:
            return self
        settings, where = self.by_modality[modality], f"{self.SECTION}.by_modality.{modality}"
        require(isinstance(settings, dict), where, settings, "a mapping of settings")
        known = [f.name for f in fields(self) if f.name != "by_modality"]
        for name in settings:
            if name not in known:
                raise ConfigError(unknown(where, name, known))
        require(
            settings.get("process", "flow") in SAMPLERS, f"{where}.process", settings.get("process"), "ddpm or flow"
        )
        try:
            return replace(self, by_modality={}, **settings)
        except ConfigError as error:
            raise ConfigError(str(error).replace(self.SECTION, where, 1)) from None


@dataclass
class SamplingConfig(Checked):
    """How the next id is drawn, or how latents are denoised."""

    SECTION: ClassVar[str] = "generate.sampling"

    temperature: float = bounded(1.0, at_least=0)
    """Above 1 flattens the distribution, below 1 sharpens it; 0 is greedy (the likeliest id)."""
    top_k: int = bounded(0, at_least=0)
    """Keep the k likeliest ids; 0 keeps all."""
    top_p: float = bounded(1.0, above=0, at_most=1)
    """Keep the likeliest ids that make up this probability."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 is none."""
    media_guidance: float = 1.0
    """Separate guidance by the given media, such as an image (InstructPix2Pix, eq. 3); 1 is none."""
    steps: int = bounded(50, at_least=1)
    """Denoising steps (continuous)."""
    sampler: Literal[
        "auto", "ddpm", "ddim", "unipc", "dpm_solver", "sde_dpm_solver", "euler", "heun", "stochastic_euler"
    ] = "auto"
    """Scheduler of the denoising: ddpm, ddim, unipc, dpm_solver or sde_dpm_solver for the ddpm process; euler, heun,
    unipc, dpm_solver, sde_dpm_solver or stochastic_euler for flow. auto is ddim or euler. Those that add noise on the
    way (ddpm, sde_dpm_solver, stochastic_euler) mend errors of the steps before, which a model trained briefly makes.
    stochastic_euler draws all its noise again in each step (as multistep consistency sampling does, arXiv 2303.01469,
    algorithm 1): cleaner and less various than the data."""
    shift: float | None = bounded(None, above=0)
    """Shift of the noise levels that are visited (flow): above 1 more steps at high noise. Unset: diffusion.shift."""


def check_sampler(config: DiffusionConfig, sampler: str, steps: int, where: str) -> None:
    """Raise a ConfigError unless the sampler fits the process and can take so many steps; ``where`` is the setting."""
    known = ("auto", *SAMPLERS[config.process])
    if sampler not in known:
        if not any(sampler in names for names in SAMPLERS.values()):
            raise ConfigError(unknown(f"{where}.sampler", sampler, {"auto"}.union(*SAMPLERS.values())))
        allowed = f"one of {', '.join(known)} where diffusion.process is {config.process!r}"
        require(False, f"{where}.sampler", sampler, allowed)
    if config.process == "ddpm":
        require(steps <= config.num_timesteps, f"{where}.steps", steps,
                f"at most diffusion.num_timesteps ({config.num_timesteps})")  # fmt: skip


@dataclass
class GenerateConfig(Checked):
    """Generation (plait generate)."""

    SECTION: ClassVar[str] = "generate"

    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    """Sampling by modality."""
    max_tokens: dict[str, int] = bounded(dict, at_least=1)
    """Longest span by modality, in tokens; images have a fixed number."""
    grids: dict[str, list[int]] = bounded(dict, at_least=1)
    """Extent of a generated item of latents in tokens, such as [8, 12], where it is not the codec's own."""
    batch_size: int = bounded(32, at_least=1)
    """Requests decoded together."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; bfloat16 is float32 where the device has no instructions for it."""
    cache: Literal["static", "paged"] = "static"
    """Both are as large as the requests at hand need. static: room for the longest of them in every row. paged: rows
    take pages as they grow, and share those of what they begin with; it holds long and short sequences in less memory,
    and reads them a little slower."""
    page_size: int = bounded(16, at_least=1)
    """Tokens in one page (paged)."""
    cache_tokens: int = bounded(0, at_least=0)
    """Most tokens in the pages of all requests together (paged); others wait. 0: no limit."""
    cuda_graphs: bool = False
    """Launch each step of decoding as one CUDA graph, on CUDA devices."""
    speculate: int = bounded(0, at_least=0)
    """Ids of an item of fixed size (an image) that one forward pass guesses and checks; 0 draws them one by one. Their
    distribution stays the model's, and any number from 1 on finds the same ids. Spans of open length and latents go on
    as they do. It pays where a pass costs little more for its tokens, as with one row on a CPU, and not where many rows
    fill the processor anyway."""
