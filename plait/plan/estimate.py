"""The plan of a run: sizes, operations, and for every layout memory, traffic and time; and the one to take.

Everything follows from the config but the speed of the machines, which a person states (`Machines`).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.common.progress import Progress, QuietProgress
from plait.config.bounds import Bounds, Checked, as_number, bounded
from plait.config.rank_layout import Layout
from plait.config.run import RunConfig
from plait.model.mot import MixtureOfTransformers
from plait.plan.flops import BACKWARD, active_by_tower, operations, total_operations
from plait.plan.layouts import Sizes, Traffic, possible_layouts, sizes, traffic
from plait.plan.memory import RankMemory, cache_bytes, rank_memory
from plait.plan.peaks import peak_of
from plait.plan.trace import of_rank, trace_pass
from plait.plan.workload import documents_of_a_batch, known_sizes

GB = 1e9


@dataclass(frozen=True)
class Machines(Checked):
    """What a person states about the machines. The defaults are an H100 SXM's data sheet, and assumptions."""

    SECTION: ClassVar[str] = "plan"

    gpus: int = bounded(8, at_least=1)
    memory: float = bounded(80.0, above=0)
    """GB (1e9 bytes) of one GPU."""
    reserve: float = bounded(0.1, at_least=0, below=1)
    """Share of it that is left for the libraries, and for what the allocator cannot use."""
    node: int = bounded(8, at_least=1)
    """GPUs in one machine."""
    peak: float = bounded(0.0, at_least=0)
    """TFLOP/s of one GPU; 0 is that of an H100 in the precision of the run."""
    mfu: float = bounded(0.4, above=0)
    """Share of the peak that the model's operations reach between messages."""
    node_bandwidth: float = bounded(450.0, above=0)
    """GB/s that one GPU sends to others in its machine (NVLink 4: 900 GB/s for both directions)."""
    bandwidth: float = bounded(50.0, above=0)
    """GB/s that one GPU sends to other machines (one 400 Gbit/s port each)."""


@dataclass(frozen=True)
class Option:
    """One layout and what it takes."""

    layout: Layout
    batches: int
    """Batches of one rank in one step (train.accumulate)."""
    tokens: int
    """Tokens in one step of all ranks."""
    memory: RankMemory
    traffic: Traffic
    seconds: float
    """Of one step, from what was stated about the machines."""
    fits: bool


@dataclass(frozen=True)
class Tower:
    """Parameters and operations of one tower."""

    parameters: int
    active: int
    """Parameters that one of its tokens passes through, shared ones included."""
    share: float
    """Of the batch's tokens."""
    operations: float
    """Of a token's forward pass, on average."""
    attention: float
    """Of these, those between tokens."""


@dataclass(frozen=True)
class Plan:
    """Everything that `plait plan` shows."""

    config: RunConfig
    machines: Machines
    batch_text: str
    batch_tokens: int
    sizes: Sizes
    towers: dict[str, Tower]
    shared: int
    """Parameters that all towers share."""
    operations: float
    """Of a forward pass, for a token on average."""
    cache: int
    """Bytes of a token's keys and values while generating."""
    options: list[Option]
    """Those that fit first, each kind fastest first."""
    best: Option | None
    reason: str
    """Why that one, or why none."""

    @property
    def peak(self) -> float:
        """TFLOP/s of a GPU that times are computed with."""
        return self.machines.peak or peak_of("h100", self.config.train.precision)


def make_plan(
    config: RunConfig,
    machines: Machines,
    *,
    tokens: int = 0,
    mix: Mapping[str, float] | None = None,
    document_tokens: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Plan a run on some machines.

    ``tokens`` are those of one step on all ranks (0: as the config says, for each GPU a rank). ``mix``, the shares of
    tokens by modality, and ``document_tokens`` describe documents that are made up; without them the run's own are
    taken where there are any. Raises ConfigError for what cannot be.
    """
    tokens = as_number(tokens, int, "--tokens", Bounds(at_least=0))
    document_tokens = as_number(document_tokens, int, "--document-tokens", Bounds(at_least=0))
    config, grids = known_sizes(config)
    documents, text = documents_of_a_batch(config, grids, mix=mix or {}, document_tokens=document_tokens)
    batch = pack(documents, config.model)
    whole = sizes(config.model, config.frozen_towers)
    towers, shared = _towers(config, batch)
    tokens = tokens or config.train.global_batch_tokens
    tokens = tokens or config.data.batch_tokens * config.train.accumulate * machines.gpus
    options = _options(config, machines, batch, tokens, progress or QuietProgress())
    best, reason = choose(options, machines)
    forward = sum(t.operations * t.share for t in towers.values())
    return Plan(config, machines, text, batch.num_tokens, whole, towers, shared, forward, cache_bytes(config),
                options, best, reason)  # fmt: skip


def _towers(config: RunConfig, batch: Batch) -> tuple[dict[str, Tower], int]:
    with torch.device("meta"):
        model = MixtureOfTransformers(config.model)
    own, active = model.owned_parameters(), active_by_tower(model)
    counts = operations(config.model, batch)
    towers = {}
    for name, n in zip(config.model.towers, batch.routing.sizes, strict=True):
        parts = counts[name]
        towers[name] = Tower(own[name], active[name], n / batch.num_tokens,
                             sum(parts.values()) / max(n, 1), parts["attention"] / max(n, 1))  # fmt: skip
    return towers, own[None]


def _options(config: RunConfig, machines: Machines, batch: Batch, tokens: int, progress: Progress) -> list[Option]:
    """Return every possible layout that has a batch for each data rank, the best first."""
    layouts = [layout for layout in possible_layouts(config.model, machines.gpus, machines.node)
               if tokens % (config.data.batch_tokens * layout.data) == 0]  # fmt: skip
    is_short = config.train.precision != "float32"
    width, device = (2, "cuda") if is_short else (4, "cpu")
    forward = sum(total_operations(config.model, batch).values())
    limit = (1 - machines.reserve) * machines.memory * GB
    part_of = functools.cache(lambda tensor: sizes(of_rank(config.model, tensor), config.frozen_towers))
    shared = sorted({(layout.tensor, layout.context) for layout in layouts})
    passes, options = {}, []
    with progress.stage("trace the model", total=len(shared)) as bar:
        for tensor, context in shared:
            passes[tensor, context] = trace_pass(config, batch.documents, device=device, tensor=tensor, context=context)
            bar.advance()
    for layout in layouts:
        batches = tokens // (config.data.batch_tokens * layout.data)
        part, once = part_of(layout.tensor), passes[layout.tensor, layout.context]
        memory = rank_memory(config, layout, part, once, batches=batches, width=width)
        sent = traffic(layout, part, once, num_layers=config.model.num_layers, batches=batches, width=width)
        seconds = step_seconds(config, machines, layout, sent, forward * batches)
        options.append(Option(layout, batches, batches * layout.data * config.data.batch_tokens, memory, sent, seconds,
                              memory.peak <= limit))  # fmt: skip
    return sorted(options, key=lambda o: (not o.fits, o.seconds if o.fits else o.memory.peak))


def step_seconds(config: RunConfig, machines: Machines, layout: Layout, sent: Traffic, forward: float) -> float:
    """Return the time of a step in which each data rank does ``forward`` operations forward.

    What sharding and replicas send travels beside the computing; what tensor and context ranks send, these wait for.
    """
    peak = (machines.peak or peak_of("h100", config.train.precision)) * 1e12 * machines.mfu
    computing = (1 + BACKWARD) * forward / (layout.tensor * layout.context) / peak
    inside, waits = 1, {}
    for name in ("tensor", "context", "shard", "replicate"):
        inside *= getattr(layout, name)
        speed = machines.node_bandwidth if inside <= machines.node else machines.bandwidth
        waits[name] = getattr(sent, name) / (speed * GB)
    return max(computing, waits["shard"] + waits["replicate"]) + waits["tensor"] + waits["context"]


NEAR = 1.02
"""Steps that take at most so much longer than the fastest are taken for as fast: then the simpler layout is better."""


def choose(options: list[Option], machines: Machines) -> tuple[Option | None, str]:
    """Return the layout to take and why; None where none fits."""
    fitting = [o for o in options if o.fits]
    usable = (1 - machines.reserve) * machines.memory
    if not fitting:
        least = min((o.memory.peak for o in options), default=0.0) / GB
        return None, (
            f"no layout fits: the least that a GPU needs is {least:.1f} GB, and {usable:.1f} of {machines.memory:g} GB "
            "are usable"
        ) if options else "no layout fits: the tokens of a step are not a multiple of a batch for each data rank"
    near = [o for o in fitting if o.seconds <= NEAR * fitting[0].seconds]
    best = min(near, key=lambda o: (o.layout.tensor * o.layout.context, o.layout.tensor, o.traffic.total))
    words = [f"its peak of {best.memory.peak / GB:.1f} GB fits in the usable {usable:.1f} GB"]
    faster = "none that fits is faster" if best is fitting[0] else "none that fits is more than 2% faster"
    words.append(f"{faster} by what is stated below")
    if len(near) > 1:
        words.append("and of those as fast it cuts the model least and sends least")
    return best, ", ".join(words)
