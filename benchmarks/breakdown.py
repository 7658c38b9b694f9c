"""Where a MoT step's time over a dense step goes: by kind of operation, from a profile of both in one run.

    OMP_NUM_THREADS=1 python benchmarks/breakdown.py            (CPU: about a minute)

breakdown/<kind>/<shape>    time of that kind in the MoT step minus that in the dense step, as a share of the dense step
launches/<model>/<shape>    operations of a step (CPU) or kernels (GPU)
routed_bytes/<shape>        bytes that routing reads and writes in a step, as a share of what the dense step's matrix
                            products read and write at least (inputs, weights and outputs once each)

Forward + backward, eager, as compiled code has no operations with names; the loss is part of both and cancels out.
"""

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from harness import Measurement, Row, parsed, parser, run, value_row
from shapes import DTYPES, Case, Shape
from step import THREE, TWO, Arm, case_of, dense_arm, mot_arm
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": ("attention", "flash", "fmha", "triton_tem"),
    "matrix-products": ("mm", "gemm", "nvjet", "cutlass"),
    "norms": ("norm",),
    "routing": ("index", "gather", "scatter", "cat", "split_with_sizes_copy"),
}
"""Words in the names of a kind's operations; the first kind that has one takes it. Everything else is "the-rest"."""
NO_WORK = re.compile(
    "aten::(t|transpose|permute|_?(unsafe_)?view|reshape|flatten|unflatten|as_strided|expand|slice|select|squeeze|"
    "unsqueeze|narrow|split|split_with_sizes|chunk|unbind|detach|alias|empty|empty_like|empty_strided|new_empty|linear|"
    "matmul|to|result_type|contiguous|lift_fresh|resolve_conj|resolve_neg)"
)
"""Operations of the host that touch no data, or that only call others."""


def kind_of(name: str) -> str:
    """Return the kind of an operation or kernel."""
    return next((kind for kind, words in KINDS.items() if any(w in name.lower() for w in words)), "the-rest")


def profiled(arm: Arm, device: str, steps: int) -> tuple[Counter, float]:
    """Return the seconds of each kind in one step, and the number of operations or kernels."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            arm.forward_backward()
        if device == "cuda":
            torch.cuda.synchronize()
    seconds: Counter = Counter()
    launches = 0
    for event in profiler.key_averages():
        if device == "cuda":
            wanted, time = event.device_type == DeviceType.CUDA, event.self_device_time_total
        else:
            wanted, time = event.key.startswith(("aten::", "plait::")), event.self_cpu_time_total
        if wanted:
            seconds[kind_of(event.key)] += time / 1e6 / steps
            launches += event.count / steps if not NO_WORK.fullmatch(event.key) else 0
    return seconds, launches


def compare(case: Case, rounds: int) -> list[Row]:
    """Return the rows of one shape; the two models take turns."""
    arms = {"dense": dense_arm(case), "mot": mot_arm(case)}
    taken: dict[str, list[Counter]] = {name: [] for name in arms}
    launches = {}
    for turn in range(-1, rounds):
        for name in arms if turn % 2 else reversed(arms):
            seconds, launches[name] = profiled(arms[name], case.device, steps=2)
            if turn >= 0:
                taken[name].append(seconds)

    def median(name: str, kind: str) -> float:
        return statistics.median(seconds[kind] for seconds in taken[name])

    kinds = [*KINDS, "the-rest"]
    whole = sum(median("dense", kind) for kind in kinds)
    rows = []
    for kind in kinds:
        share = (median("mot", kind) - median("dense", kind)) / whole
        rows.append(value_row(f"breakdown/{kind}/{case.name}", share, "share", against="the dense step", n=rounds))
    rows += [value_row(f"launches/{name}/{case.name}", launches[name], "a step") for name in arms]
    share = routed_bytes(case) / product_bytes(case)
    return [*rows, value_row(f"routed_bytes/{case.name}", share, "ratio", against="bytes of dense matrix products")]


def names_of(name: str) -> list[str]:
    """Return the names of the rows of `compare`, for a case of that name."""
    return [*(f"breakdown/{kind}/{name}" for kind in [*KINDS, "the-rest"]),
            *(f"launches/{model}/{name}" for model in ("dense", "mot")), f"routed_bytes/{name}"]  # fmt: skip


def routed_bytes(case: Case) -> int:
    """Return the bytes of one step's routing: q, k, v to sequence order and the output back, each way read and written.

    Forward and backward move the same; the embedding's sort, once a step, is left out.
    """
    c = case.batch, case.shape.config()
    numbers = c[0].num_tokens * c[1].head_dim * (2 * c[1].num_heads + 2 * c[1].num_kv_heads)
    return 2 * 2 * c[1].num_layers * numbers * DTYPES[case.dtype].itemsize


def product_bytes(case: Case) -> int:
    """Return the least bytes that a dense step's matrix products move: three products for each weight (forward, the
    gradient of the input, that of the weight), each reading two matrices and writing one."""
    c, tokens = case.shape.config(towers=1), case.batch.num_tokens
    qkv = (c.width, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim)
    hidden = (c.width, c.towers["all"].ffn_width)
    matrices = [qkv, (c.num_heads * c.head_dim, c.width), hidden, hidden, hidden[::-1]] * c.num_layers
    matrices.append((c.width, c.layout.size))
    numbers = sum(3 * (tokens * fan_in + fan_in * fan_out + tokens * fan_out) for fan_in, fan_out in matrices)
    return numbers * DTYPES[case.dtype].itemsize


def grid(name: str) -> list[tuple[Shape, str, str]]:
    """Return shape, dtype and mode of each breakdown."""
    if name == "tiny":
        return [(Shape(64, 256, TWO, layers=1, vocabulary=240), "float32", "eager")]
    if name == "cpu":
        return [(Shape(256, 4096, TWO), "float32", "eager"), (Shape(256, 1024, THREE), "float32", "eager"),
                (Shape(256, 2048, TWO), "bfloat16", "eager")]  # fmt: skip
    return [(Shape(2048, tokens, TWO, vocabulary=16384), "bfloat16", "eager") for tokens in (32768, 4096)]


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return the breakdowns of the grid."""

    def one(*case) -> Measurement:
        names = names_of("/".join(map(str, case)))
        return Measurement(names, lambda: compare(case_of(options, *case), options.turns))

    return [one(*case) for case in grid(options.grid)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=4), arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
