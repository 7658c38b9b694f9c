"""Where a run's first weights come from; and what it is about to do, in a few lines of log before its first step.

The logger is `plait.train`, from Python's `logging`: the command line shows it, a program that uses plait decides.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import torch

from plait.common.units import count
from plait.config.rank_layout import Layout
from plait.config.run import RunConfig
from plait.data.shards import read_index
from plait.data.sources import data_fingerprint, folders
from plait.model.frozen import frozen_ids, is_frozen
from plait.model.init_from import start_model, start_towers, zero_outputs
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import usable
from plait.plan.flops import active_by_tower
from plait.upcycle.language_model import open_weights

log = logging.getLogger("plait.train")


def first_weights(model: MixtureOfTransformers, config: RunConfig) -> list[str]:
    """Fill a model from what `init_from` names, as a run's towers want it; return what to say (CheckpointError)."""
    whole, towers = config.train.init_from, config.towers
    lines = start_model(model, whole, open_weights) if whole else []
    sources = {name: t.init_from for name, t in towers.items() if t.init_from}
    lines += start_towers(model, sources, open_weights, [name for name, t in towers.items() if t.narrow])
    zero_outputs(model, [name for name, t in towers.items() if t.zero_output])
    return lines


def say_start(model: MixtureOfTransformers, config: RunConfig, layout: Layout, *, num_batches: int, step: int,
              device: torch.device) -> None:  # fmt: skip
    """Log parameters, ranks, the arithmetic of a batch, the data, the device, and where the run begins.

    Args:
        num_batches: batches of one step, of each rank.
        step: steps that were done before.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    begins = f"resumed at step {step:,}" if step else "from step 0"
    facts = {
        "model": model_facts(model),
        "ranks": ranks_facts(layout),
        "step": batch_facts(config, layout.data, num_batches),
        "data": data_facts(config),
        "device": device_facts(device, config.train.precision, compiled=config.train.compile),
        "begins": begins,
    }
    if config.frozen_towers:
        facts["frozen"] = frozen_facts(model, config.frozen_towers)
    if lora := lora_facts(model):
        facts["lora"] = lora
    for name, text in facts.items():
        log.info("%-7s %s", name, text)


def model_facts(model: MixtureOfTransformers) -> str:
    """Return the number of parameters, in all, and for each tower its own and those that one of its tokens uses."""
    owned, active = model.owned_parameters(), active_by_tower(model)
    towers = ", ".join(f"{name} {count(owned[name])} ({count(n)} active)" for name, n in active.items())
    return f"{count(sum(owned.values()))} parameters: {towers}, shared {count(owned[None])}"


def frozen_facts(model: MixtureOfTransformers, frozen: Sequence[str]) -> str:
    """Return how many parameters stay as they are, and what of the frozen towers trains all the same."""
    parts = [(part, p) for part, p in model.weights() if part.in_block or part.place.component == "final_norm"]
    fixed = sum(p.numel() for part, p in model.weights() if is_frozen(part, model.config, frozen))
    rows = sum(map(len, frozen_ids(model.config, frozen)))
    shared = sorted({part.place.component for part, _ in parts if part.tower is None})
    but = f"; {', '.join(shared)} of its blocks are shared with other towers, and train" if shared else ""
    return f"{', '.join(frozen)}: {count(fixed)} parameters, and {rows:,} rows of ids{but}"


def lora_facts(model: MixtureOfTransformers) -> str:
    """Return the parameters of the changes that LoRA trains, by tower; "" where there are none."""
    sizes: Counter[str] = Counter()
    for part, parameter in model.weights():
        if part.trait.adapts:
            sizes[part.tower or ""] += parameter.numel()
    records = {name: tower.lora for name, tower in model.config.towers.items() if tower.lora}
    return "; ".join(f"{name}: {count(sizes[name])} parameters (rank {lora.rank}, on {', '.join(lora.targets)})"
                     for name, lora in records.items())  # fmt: skip


def ranks_facts(layout: Layout) -> str:
    """Return the number of ranks and how they share the work."""
    sizes = {name: getattr(layout, name) for name in ("replicate", "shard", "context", "tensor")}
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    return f"{layout.ranks} ({', '.join(parts)})" if parts else "1"


def batch_facts(config: RunConfig, data_ranks: int, num_batches: int) -> str:
    """Return how many tokens a step has, and why."""
    tokens = config.data.batch_tokens
    factors: Sequence[tuple[int, str]] = ((num_batches, "batches"), (data_ranks, "data ranks"))
    product = "".join(f" x {n} {name}" for n, name in factors if n > 1)
    of = f" = {tokens:,}{product}" if product else ""
    return f"{tokens * num_batches * data_ranks:,} tokens{of}"


def data_facts(config: RunConfig) -> str:
    """Return the documents of each prepared folder, and a digest of everything that can be read."""
    facts = [
        f"{folder} ({read_index(folder)['splits']['train']['documents']:,} documents)" for folder in folders(config)
    ]
    return f"{', '.join(facts)}, digest {data_fingerprint(config)}"


def device_facts(device: torch.device, precision: str, *, compiled: bool) -> str:
    """Return where a rank computes, and how."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    used = usable(precision, device)
    instead = f" in place of {precision}, for which it has no instructions" if used != precision else ""
    return f"{device} ({name}), {used}{instead}{', compiled' if compiled else ''}"
