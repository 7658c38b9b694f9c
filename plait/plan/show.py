"""A plan as tables on a terminal, and as JSON."""

import dataclasses
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from plait.common.units import count
from plait.plan.estimate import GB, Option, Plan
from plait.plan.flops import BACKWARD

MOST_LAYOUTS = 10
RECOMPUTED = {"none": "activations kept", "selective": "cheap activations recomputed", "full": "blocks recomputed"}


def show(plan: Plan, console: Console, *, everything: bool = False) -> None:
    """Print a plan; of the layouts the best ones, unless ``everything`` is wanted."""
    for part in (title(plan), towers_table(plan), layouts_table(plan, everything), advice(plan), statements(plan)):
        console.print(part, highlight=False)


def title(plan: Plan) -> RenderableType:
    """Return what the model is, and what it is fed."""
    model, machines = plan.config.model, plan.machines
    cache = plan.cache * plan.config.generate.batch_size * model.max_positions
    lines = [
        Text.assemble((plan.config.name, "bold"), f"  on {machines.gpus:,} GPUs of {machines.memory:g} GB"),
        f"{count(plan.sizes.total)} parameters, {model.num_layers} layers, {model.num_heads} heads of {model.head_dim} "
        f"({model.num_kv_heads} for keys), {model.layout.size:,} ids",
        f"a batch of {plan.batch_tokens:,} tokens a rank: {plan.batch_text}",
        f"a step of {plan.options[0].tokens if plan.options else 0:,} tokens, {plan.config.train.precision}, "
        + RECOMPUTED[plan.config.train.checkpoint_activations],
        f"generating: weights of {plan.sizes.weight_bytes('float32') / GB:,.2f} GB in float32, "
        f"{plan.sizes.weight_bytes('bfloat16') / GB:,.2f} GB in bfloat16 (--weights bfloat16)",
        f"generating: {plan.cache / 1e3:,.1f} kB of keys and values per token; {cache / GB:,.2f} GB for "
        f"{plan.config.generate.batch_size} rows of {model.max_positions:,} tokens",
    ]
    return Group("", *lines, "")


def towers_table(plan: Plan) -> Table:
    """Return parameters and operations by tower."""
    table = _table("towers")
    for name in ("tower", "width", "ffn", "own parameters", "active parameters", "share of tokens"):
        table.add_column(name, justify="left" if name == "tower" else "right")
    table.add_column("FLOPs per token\nforward", justify="right")
    table.add_column("\ntraining", justify="right")
    table.add_column("of it\nattention", justify="right")
    for name, tower in plan.towers.items():
        record, attention = plan.config.model.towers[name], tower.attention / max(tower.operations, 1)
        ffn = f"{record.ffn_width:,}" + (f" × {record.num_experts}" if record.ffn == "moe" else "")
        table.add_row(name, f"{record.width:,}", ffn, count(tower.parameters), count(tower.active),
                      f"{tower.share:.0%}", *_operations(tower.operations), f"{attention:.0%}")  # fmt: skip
    if plan.shared:
        table.add_row("shared by all", "", "", count(plan.shared), "", "", "", "", "")
    table.add_section()
    table.add_row("all", "", "", count(plan.sizes.total), "", "", *_operations(plan.operations), "", style="bold")
    return table


def _operations(forward: float) -> tuple[str, str]:
    return tuple(count(n).replace("B", "G") for n in (forward, (1 + BACKWARD) * forward))


def layouts_table(plan: Plan, everything: bool) -> Table:
    """Return memory, traffic and time of each layout."""
    shown = plan.options if everything else plan.options[:MOST_LAYOUTS]
    if plan.best and plan.best not in shown:
        shown = [plan.best, *shown[: MOST_LAYOUTS - 1]]
    unit, size = ("GB", GB) if max((o.memory.peak for o in shown), default=0) >= GB else ("MB", GB / 1e3)
    table = _table(f"layouts: {len(shown)} of {len(plan.options)}, {unit} of one GPU")
    names = ["repl.", "shard", "tensor", "context", "accum.", "weights", "grads", "optim.", "EMA", "gather",
             "activ.", "logits", "peak", "sent:\nshards", "\ntensor", "\ncontext", "\nstep"]  # fmt: skip
    for name in names:
        table.add_column(name if "\n" in name else f"\n{name}", justify="right", no_wrap=True)
    for option in shown:
        style = "bold green" if option is plan.best else "" if option.fits else "dim"
        table.add_row(*_layout_row(option, size), style=style)
    return table


def _layout_row(option: Option, unit: float) -> list[str]:
    layout, m, sent = option.layout, option.memory, option.traffic
    ranks = map(str, (layout.replicate, layout.shard, layout.tensor, layout.context, option.batches))
    held = (m.weights, m.gradients, m.optimizer, m.averages, m.gathered, m.activations, m.working)
    peak = _amount(m.peak, unit) + ("" if option.fits else " ✗")
    messages = (sent.shard + sent.replicate, sent.tensor, sent.context)
    return [*ranks, *(_amount(x, unit) for x in held), peak, *(_amount(x, unit) for x in messages),
            _seconds(option.seconds)]  # fmt: skip


def advice(plan: Plan) -> Panel:
    """Return the layout to take, as it stands in a config, and why."""
    if plan.best is None:
        return Panel(Text(plan.reason), title="no layout", title_align="left", border_style="red", expand=False)
    layout, tokens = plan.best.layout, plan.best.tokens / plan.best.seconds
    lines = [
        Text(setting(plan), style="bold"),
        Text(plan.reason[0].upper() + plan.reason[1:] + "."),
        Text(f"{count(tokens)} tokens per second from {layout.ranks:,} GPUs, if what is stated below holds."),
    ]
    return Panel(Group(*lines), title="recommended", title_align="left", border_style="green", expand=False, width=100)


def setting(plan: Plan) -> str:
    """Return the best layout as a config says it."""
    layout = plan.best.layout
    sizes = {"replicate": layout.replicate, "shard": layout.shard, "context": layout.context, "tensor": layout.tensor}
    written = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    return f"parallel: {{{written}}}\ntrain: {{global_batch_tokens: {plan.best.tokens}}}"


def statements(plan: Plan) -> Text:
    """Return what was stated about the machines, and what the figures leave out."""
    machines = plan.machines
    lines = [
        f"assumed: {peak_text(plan)}, of which {machines.mfu:.0%} are reached (--mfu); "
        f"{machines.node} GPUs a machine (--node), {machines.node_bandwidth:g} GB/s between them (--node-bandwidth), "
        f"{machines.bandwidth:g} GB/s from a GPU to other machines (--bandwidth); {machines.reserve:.0%} of the memory "
        "left free (--reserve)",
        "a step's time: computing, or what shards send beside it if that takes longer, then what tensor and context "
        "ranks send; ✗ does not fit",
        "the peak is less than the sum, as gradients grow while activations shrink; with several batches a step they "
        "meet",
    ]
    return Text("\n".join(lines), style="dim")


def peak_text(plan: Plan) -> str:
    """Return the peak that was assumed, and whose it is."""
    if plan.machines.peak:
        return f"{plan.machines.peak:g} TFLOP/s a GPU (--peak)"
    return f"{plan.peak:g} TFLOP/s a GPU (--peak; an H100 SXM's data sheet, {plan.config.train.precision}, not sparse)"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                 pad_edge=False, collapse_padding=True)  # fmt: skip


def _amount(size: float, unit: float) -> str:
    value = size / unit
    return "–" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values: bytes, operations, seconds, and numbers of parameters."""
    return {
        "name": plan.config.name,
        "batch": {"documents": plan.batch_text, "tokens": plan.batch_tokens},
        "parameters": {"total": plan.sizes.total, "trained": plan.sizes.trained, "shared": plan.shared},
        "towers": {name: dataclasses.asdict(tower) for name, tower in plan.towers.items()},
        "operations_per_token": {"forward": plan.operations, "training": (1 + BACKWARD) * plan.operations},
        "weight_bytes": {weights: plan.sizes.weight_bytes(weights) for weights in ("float32", "bfloat16")},
        "cache_bytes_per_token": plan.cache,
        "layouts": [_option(o) for o in plan.options],
        "recommended": _option(plan.best) if plan.best else None,
        "reason": plan.reason,
        "assumptions": dataclasses.asdict(plan.machines) | {"peak": plan.peak},
    }


def _option(option: Option) -> dict[str, Any]:
    values = dataclasses.asdict(option)
    return {**values.pop("layout"), **values}
