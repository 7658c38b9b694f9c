"""Take the plans of docs/scaling.md: `plait plan` for three models and several numbers of GPUs, without a GPU.

python benchmarks/plans.py    into docs/figures/plans.json; then `make figures`
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from harness import ROOT, commit

PLANS = ROOT / "docs" / "figures" / "plans.json"
COMMANDS = (
    "mot_443m --gpus 8",
    "mot_443m --gpus 256 --tokens 4194304",
    "mot_443m --gpus 4096 --tokens 16777216 --data.batch_tokens 4096",
    "mot_7b --gpus 8",
    "mot_7b --gpus 256",
    "mot_7b --gpus 4096 --tokens 16777216 --data.batch_tokens 4096",
    "mot_70b --gpus 8",
    "mot_70b --gpus 64",
    "mot_70b --gpus 256",
    "mot_70b --gpus 4096",
    "mot_70b --gpus 4096 --tokens 33554432",
)
STATES = 4 + 4 + 8
"""Bytes of a parameter's weight, gradient and two moments."""


def take(command: str) -> dict[str, Any]:
    """Return the plan of a command, also where no layout fits; raises JSONDecodeError where there is no plan."""
    words = [sys.executable, "-m", "plait", "plan", *command.split(), "--json"]
    return kept(command, json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout))


def kept(command: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a plan: parameters, operations, and the layout that it recommends."""
    operations = plan["operations_per_token"]["training"]
    facts = {"parameters": plan["parameters"]["total"], "training_operations": operations,
             "weight_bytes": plan["weight_bytes"], "cache_bytes_per_token": plan["cache_bytes_per_token"]}  # fmt: skip
    return {"command": command, **facts, "recommended": plan["recommended"]}


def table(results: Mapping[str, Any]) -> str:
    """Return the table of docs/scaling.md."""
    lines = [
        "| `plait plan …` | R × S × C × T | tokens a step | weights + gradients + moments | gathered | activations "
        "| logits | peak | sent | step | tokens/s |",
        "|---" * 11 + "|",
        *(line(plan) for plan in results["plans"]),
    ]
    return "\n".join([*lines, "", f"(`python benchmarks/plans.py`, commit {results['commit'][:7]}.)"])


def generating(results: Mapping[str, Any]) -> str:
    """Return the table of what each model takes to generate."""
    models = {plan["command"].split()[0]: plan for plan in results["plans"]}
    lines = ["| `plait plan …` | parameters | weights, float32 | weights, bfloat16 | keys and values per token |",
             "|---" * 5 + "|"]  # fmt: skip
    for name, plan in models.items():
        wide, short = (f"{plan['weight_bytes'][kind] / 1e9:,.1f} GB" for kind in ("float32", "bfloat16"))
        cache = f"{plan['cache_bytes_per_token'] / 1e3:,.0f} kB"
        lines.append(f"| `{name}` | {plan['parameters'] / 1e9:.2f} B | {wide} | {short} | {cache} |")
    return "\n".join([*lines, "", f"(`python benchmarks/plans.py`, commit {results['commit'][:7]}.)"])


def line(plan: Mapping[str, Any]) -> str:
    """Return a plan's row: GB of one GPU and of what it sends in a step."""
    command, option = plan["command"], plan["recommended"]
    if option is None:
        states = STATES * plan["parameters"] / int(command.split("--gpus ")[1].split()[0])
        return f"| `{command}` | none fits: {states / 1e9:.0f} GB of states alone |" + " |" * 9
    memory, seconds = option["memory"], option["seconds"]
    states = memory["weights"] + memory["gradients"] + memory["optimizer"] + memory["averages"]
    cells = [states, memory["gathered"], memory["activations"], memory["working"], memory["peak"]]
    sent = sum(option["traffic"].values()) / 1e9
    return " | ".join(
        [
            f"| `{command}`",
            " × ".join(str(option[name]) for name in ("replicate", "shard", "context", "tensor")),
            f"{option['tokens'] / 1e6:.3g} M",
            *(f"{cell / 1e9:.1f}" for cell in cells),
            f"{sent:,.0f}" if sent >= 100 else f"{sent:.1f}",
            f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{float(f'{seconds:.2g}'):g} s",
            rate(option["tokens"] / seconds) + " |",
        ]
    )


def rate(tokens: float) -> str:
    """Return tokens a second in thousands or millions, with two digits."""
    scale, unit = (1e6, "M") if tokens >= 1e6 else (1e3, "k")
    digits = float(f"{tokens / scale:.2g}")
    return f"{digits:g} {unit}"


if __name__ == "__main__":
    PLANS.parent.mkdir(exist_ok=True)
    all_plans = {"commit": commit(), "plans": [take(command) for command in COMMANDS]}
    PLANS.write_text(json.dumps(all_plans, indent=1) + "\n", encoding="utf-8")
