"""Peak memory and time of the head with its cross-entropy, forward + backward: plait's against all logits at once.

    OMP_NUM_THREADS=1 python benchmarks/loss.py                 (CPU: about a minute)

head_memory/<shape>       plait's peak / the naive one's; head_bytes/plait and head_bytes/naive are the two of them
head_time/<shape>         plait's time / the naive one's

Peak is what the allocator handed out at most, above what was there before: logits, temporaries inside operations, and
the gradients of hidden states and weight, which both have. On a CPU it is the running sum of the profiler's memory
events, which sees what operations allocate inside themselves (a Python dispatch mode does not); on a GPU it is
torch.cuda.max_memory_allocated. Naive is F.cross_entropy(F.linear(x, weight).float(), target).
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from harness import Measurement, Row, cpu_peak_bytes, paired, parsed, parser, ratio_row, run, value_row
from torch import Tensor

from plait.objectives.next_token import weighted_cross_entropy


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Return the most bytes that a call holds at once above those before it."""
    function()  # what is allocated once, such as the workspace of a library, is not the call's
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return cpu_peak_bytes(function)


def naive(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Return the summed cross-entropy of all logits at once."""
    return F.cross_entropy(F.linear(x, weight).float(), target, reduction="sum")


def plait(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Return the same by plait, as training does it."""
    return weighted_cross_entropy(x, weight, target, torch.ones(len(x), device=x.device))[0]


def compare(options: argparse.Namespace, vocabulary: int, targets: int, width: int, dtype: str) -> list[Row]:
    """Return the rows of one shape."""
    device = options.device
    x = torch.randn(targets, width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).requires_grad_()
    target = torch.randint(vocabulary, (targets,), device=device)

    def of(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False):
                value = loss(x, weight, target)
            torch.autograd.grad(value, (x, weight))

        return step

    arms = {"plait": of(plait), "naive": of(naive)}
    size = {name: peak_bytes(step, device) for name, step in arms.items()}
    times = paired({name: [step] for name, step in arms.items()}, turns=options.turns, device=device, warmups=0)
    memory, *sizes, time = names_of(vocabulary, targets, width, dtype)
    return [
        value_row(memory, size["plait"] / size["naive"], "ratio", against="all logits at once"),
        *(value_row(name, size[arm], "bytes") for name, arm in zip(sizes, arms, strict=True)),
        ratio_row(time, times["plait"][0], times["naive"][0], against="all logits at once"),
    ]


def names_of(vocabulary: int, targets: int, width: int, dtype: str) -> list[str]:
    """Return the names of the rows of `compare`."""
    end = f"v{vocabulary}-n{targets}-d{width}/{dtype}"
    return [f"head_memory/{end}", f"head_bytes/plait/{end}", f"head_bytes/naive/{end}", f"head_time/{end}"]


GRIDS = {
    "tiny": [(512, 64, 16, "float32")],
    "cpu": [(65536, 2048, 256, "float32"), (65536, 2048, 256, "bfloat16"), (4096, 2048, 256, "float32")],
    "gpu": [(65536, 32768, 2048, "bfloat16"), (65536, 4096, 2048, "bfloat16"), (16384, 32768, 1024, "bfloat16")],
}
"""Vocabulary, targets, width and precision."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=3, grids=GRIDS), arguments)
    grid = GRIDS[options.grid]
    return run([Measurement(names_of(*one), lambda one=one: compare(options, *one)) for one in grid], options)


if __name__ == "__main__":
    sys.exit(main())
