"""What is asked of a generator, what comes back, and which requests cannot be made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from plait.batch.assemble import spell_prompt
from plait.batch.documents import Part, as_given, check_parts
from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import Checked, bounded
from plait.config.generation import DiffusionConfig, SamplingConfig, check_sampler
from plait.config.model import ModelConfig

PLAIN = SamplingConfig()


@dataclass
class Request(Checked):
    """What to generate: a prompt, and the modality that shall follow (None: whatever the model opens itself).

    What a prompt holds is given, whoever made it: its parts have that role here (`plait.batch.documents.role_of`).
    """

    SECTION: ClassVar[str] = "generate"

    prompt: list[Part] = field(default_factory=list)
    output: str | None = None
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    """Sampling by modality of the open span; a missing one is plain sampling."""
    max_tokens: dict[str, int] = bounded(dict, at_least=1)
    """Longest span by modality (where the modality has no fixed number)."""
    grids: dict[str, tuple[int, ...]] = bounded(dict, at_least=1)
    """Extent of an item by modality, where it is not the generator's (continuous)."""
    max_spans: int = bounded(8, at_least=0)
    """Most spans besides the host's in a free request."""
    seed: int = 0
    number: int = bounded(0, at_least=0)
    """Which of the requests with this seed it is: (seed, number) fixes its draws, whatever else is in the batch."""
    logprobs: int | None = bounded(None, at_least=0, at_most=20)
    """Likeliest ids to keep beside each id of the host's text, with the log-probabilities of all, in
    `Result.scores`; None keeps none."""
    adapter: str = ""
    """Name of the adapter beside the model (`plait.model.adapters`) that it is computed with; empty: none."""
    num_snapshots: int = bounded(0, at_least=0)
    """Moments of the denoising to keep in `Result.snapshots`, evenly spaced, from noise on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = isinstance(self.prompt, list | tuple) and all(isinstance(p, Part) for p in self.prompt)
        require(fine, "generate.prompt", self.prompt, "a list of plait.Part")
        self.prompt = as_given(self.prompt)

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


@dataclass(frozen=True)
class Score:
    """An id of the vocabulary with its natural log-probability, among all that may come there and before temperature;
    and the likeliest ids with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass
class Result:
    """The generated parts of a request, and why it ended: done, eos, length or cancelled."""

    request: Request
    parts: list[Part]
    stopped: str
    snapshots: list[tuple[float, Part]] = field(default_factory=list)
    """Noise level and noised latents on the way, where the request asked for them."""
    scores: list["Score"] = field(default_factory=list)
    """Of each id of the host's text, where the request asked for them."""


def check_request(
    request: Request,
    config: ModelConfig,
    *,
    grids: dict[str, tuple[int, ...]],
    max_length: int,
    diffusion: DiffusionConfig,
    adapters: Sequence[str] = (),
) -> None:
    """Raise a ConfigError for a request that cannot be made."""
    records = config.modalities
    if request.adapter not in ("", *adapters):
        raise ConfigError(unknown("generate.adapter", request.adapter, filter(None, adapters)))
    check_parts(request.prompt, config, "generate.prompt")
    if request.output is not None and request.output not in records:
        raise ConfigError(unknown("generate", request.output, records))
    made = [name for name, record in records.items() if record.objective != "input"]
    require(request.output in (None, *made), "generate.output", request.output,
            f"one of {', '.join(made)}: it is read and never made")  # fmt: skip
    _check_settings(request, config)
    for name, s in request.sampling.items():
        if records[name].objective == "diffusion":
            check_sampler(diffusion.of(name), s.sampler, s.steps, f"generate.sampling.{name}")
    length = sum(len(run) for run in spell_prompt(request.prompt, config))
    require(length < max_length, "generate: the prompt's length", length, f"below {max_length} tokens")
    output = request.output
    opens = length > 0 or output not in (None, config.layout.host)
    require(opens, "generate.prompt", "", "a text or other media: documents of this model open without <bos>")
    if output and records[output].objective == "diffusion":
        grid = request.grid_of(output, grids)
        require(bool(grid) and all(n >= 1 for n in grid), f"generate.grids.{output}", list(grid),
                "the extent of an item in tokens, such as [8, 12]")  # fmt: skip
        room = max_length - length - 2
        require(math.prod(grid) <= room, f"generate.grids.{output}", list(grid),
                f"at most {room} tokens in all beside this prompt (positions end at {max_length})")  # fmt: skip


def _check_settings(request: Request, config: ModelConfig) -> None:
    """Raise a ConfigError for settings of modalities that the model lacks, or that they have no use for."""
    records = config.modalities
    for field_name in ("sampling", "max_tokens", "grids"):
        settings = getattr(request, field_name)
        require(isinstance(settings, dict), f"generate.{field_name}", settings, "a mapping by modality")
        for name in settings:
            if name not in records:
                raise ConfigError(unknown(f"generate.{field_name}", name, records))
    for name, grid in request.grids.items():
        where = f"generate.grids.{name}"
        require(records[name].objective == "diffusion", where, grid,
                "left out: an item of ids has the extent that its codec or the run's config says")  # fmt: skip
        require(0 < len(grid) <= 3, where, grid, "one to three numbers of tokens, such as [8, 12]")
    for name, s in request.sampling.items():
        require(isinstance(s, SamplingConfig), f"generate.sampling.{name}", s, "a SamplingConfig")
