"""What is asked of a generator, what comes back, and which requests cannot be made."""

import math
from dataclasses import dataclass, field

import numpy as np

from plait.batch import Document, Part, spell
from plait.config import DiffusionConfig, SamplingConfig, check_sampler
from plait.errors import ConfigError, require, unknown
from plait.model_config import ModelConfig

PLAIN = SamplingConfig()


@dataclass
class Request:
    """What to generate: a prompt, and the modality that shall follow (None: whatever the model opens itself)."""

    prompt: list[Part] = field(default_factory=list)
    output: str | None = None
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    """Sampling by modality of the open span; a missing one is plain sampling."""
    max_tokens: dict[str, int] = field(default_factory=dict)
    """Longest span by modality (where the modality has no fixed number)."""
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Extent of an item by modality, where it shall not be the generator's (continuous)."""
    max_spans: int = 8
    """Most spans besides the host's in a free request."""
    seed: int = 0
    number: int = 0
    """Which of the requests with this seed it is: (seed, number) fixes its draws, whatever else is in the batch."""
    num_snapshots: int = 0
    """Moments of the denoising to keep in `Result.snapshots`, evenly spaced, from noise on."""

    def sampling_of(self, modality: str) -> SamplingConfig:
        """Return how a span of a modality is sampled."""
        return self.sampling.get(modality, PLAIN)

    def grid_of(self, modality: str, grids: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Return the extent of an item of a modality: its own, or that of ``grids``; () where neither says one."""
        return tuple(self.grids.get(modality, grids.get(modality, ())))

    @property
    def max_branches(self) -> int:
        """Rows of the cache that it may need at once: one, and one or two more under guidance."""
        if any(s.media_guidance != 1.0 for s in self.sampling.values()):
            return 3
        return 2 if any(s.guidance != 1.0 for s in self.sampling.values()) else 1


@dataclass
class Result:
    """The generated parts of a request, and why it ended: done, eos, length or cancelled."""

    request: Request
    parts: list[Part]
    stopped: str
    snapshots: list[tuple[float, Part]] = field(default_factory=list)
    """Noise level and noised latents on the way, where the request asked for them."""


def check_request(
    request: Request,
    config: ModelConfig,
    *,
    grids: dict[str, tuple[int, ...]],
    max_length: int,
    diffusion: DiffusionConfig,
) -> None:
    """Raise a ConfigError for a request that cannot be made."""
    records = config.modalities
    for name in [p.modality for p in request.prompt] + ([request.output] if request.output else []):
        if name not in records:
            raise ConfigError(unknown("generate", name, records))
    for name, s in request.sampling.items():
        where = f"generate.sampling.{name}"
        require(s.temperature >= 0, f"{where}.temperature", s.temperature, "0 or more")
        require(0 < s.top_p <= 1, f"{where}.top_p", s.top_p, "above 0 and at most 1")
        require(s.top_k >= 0, f"{where}.top_k", s.top_k, "0 or more")
        if name in records and records[name].objective == "diffusion":
            check_sampler(diffusion, s.sampler, s.steps, where)
    _check_prompt(request, config)
    length = _length(request.prompt, config)
    require(length < max_length, "generate: the prompt's length", length, f"below {max_length} tokens")
    name = request.output
    if name and records[name].objective == "diffusion":
        grid = request.grid_of(name, grids)
        require(bool(grid) and all(n >= 1 for n in grid), f"generate.grids.{name}", list(grid),
                "the extent of an item in tokens, such as [8, 12]")  # fmt: skip
        room = max_length - length - 2
        require(math.prod(grid) <= room, f"generate.grids.{name}", list(grid),
                f"at most {room} tokens in all beside this prompt (positions end at {max_length})")  # fmt: skip


def _check_prompt(request: Request, config: ModelConfig) -> None:
    for part in request.prompt:
        if part.latents is not None:
            where, channels = (
                f"generate: latents of {part.modality!r}",
                config.modalities[part.modality].latent_channels,
            )
            require(part.latents.shape[1:] == (channels,), where, list(part.latents.shape),
                    f"[tokens, {channels}], as the model was trained")  # fmt: skip
            require(bool(np.isfinite(part.latents).all()), where, "nan or inf", "finite numbers")


def most_tokens(request: Request, config: ModelConfig, *, grids: dict[str, tuple[int, ...]], default: int) -> list[int]:
    """Return the most tokens that each branch of a request may hold at once, the one that sees everything first.

    ``default`` is the longest span of a modality for which the request names none.
    """
    layout, host = config.layout, config.layout.host
    given = _length(request.prompt, config)

    def size(name: str) -> int:
        """Tokens of a span with its opening delimiter."""
        grid = request.grid_of(name, grids)
        return 1 + (math.prod(grid) if grid else request.max_tokens.get(name, default))

    if request.output == host:
        return [given + request.max_tokens.get(host, default)]
    others = [request.output] if request.output else [n for n in layout.names if n != host]
    largest = max((size(n) for n in others), default=0)
    longest = given + largest
    if request.output is None:
        longest = given + request.max_spans * (largest + 1)
        longest += (request.max_spans + 1) * request.max_tokens.get(host, default)
    settings = [request.sampling_of(n) for n in others]
    if all(s.guidance == 1.0 and s.media_guidance == 1.0 for s in settings):
        return [longest]
    free = 1 + largest
    if all(s.media_guidance == 1.0 for s in settings):
        return [longest, free]
    media = [p for p in request.prompt if p.modality != host]
    return [longest, _length(media, config) + largest if request.output else longest, free]


def _length(parts: list[Part], config: ModelConfig) -> int:
    return sum(len(run) for run in spell(Document(parts), config, close=False, noised=False))
