"""MoT step / dense step, as ratios measured in one run: forward + backward, the optimizer, and both together.

    OMP_NUM_THREADS=1 python benchmarks/step.py                 the grid of this hardware (CPU: about 40 minutes)
    python benchmarks/step.py --width 512 --tokens 2048 --mix 50-50 --dtype bfloat16 --mode compiled

"Dense" is the plain transformer of tests/helpers/dense_reference.py, of equal width and depth, on the same tokens, with
the same loss, compiled where plait's is. Rows of one shape:

    step_ratio/mot          forward + backward; step_ratio/dense-again is dense against itself: the noise
    optimizer_ratio/mot     AdamW, and optimizer_floor/mot: the ratio of the numbers of parameters
    full_step_ratio/mot     both, and full_step_floor/mot: what it would be if only the floor were paid
    mfu/mot, mfu/dense      share of the peak, forward + backward, by the count of shapes.flops

then towers_ratio/<number of towers> (1: plait's own dense model) and length_ratio/<tokens of a document>.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from harness import Measurement, Row, Times, paired, parsed, parser, ratio_row, run, value_row
from shapes import DTYPES, Case, Shape, flops, mot_loss, sequence_loss

from plait.plan.peaks import peak_of

TWO, SKEWED, THREE = (50, 50), (90, 10), (34, 33, 33)
LARGE = Shape(2048, 8192, TWO, layers=24, document=4096, vocabulary=65536)
"""The 1.5B model of the paper's shape, for its MFU; two towers' optimizer state would not fit beside it."""


def grid(name: str) -> list[tuple[Shape, str, str]]:
    """Return the shapes of a grid with dtype and mode, the most wanted first."""
    if name == "tiny":
        return [(Shape(64, 256, mix, layers=1, vocabulary=240), "float32", "eager") for mix in (TWO, THREE)]
    cases = []
    if name == "cpu":
        for width, tokens, mix, dtype in (
            (256, 4096, TWO, "float32"), (256, 4096, THREE, "float32"), (256, 1024, THREE, "float32"),
            (256, 2048, TWO, "bfloat16"), (256, 2048, THREE, "bfloat16"),
        ):  # fmt: skip
            cases += [(Shape(width, tokens, mix, layers=2), dtype, mode) for mode in ("compiled", "eager")]
        for width, tokens, layers in ((256, 4096, 2), (512, 2048, 2), (1024, 1024, 1), (2048, 1024, 1)):
            for mix, dtype, mode in itertools.product((TWO, SKEWED, THREE), DTYPES, ("compiled", "eager")):
                wanted = (Shape(width, tokens, mix, layers=layers), dtype, mode)
                cases += [wanted] if wanted not in cases else []
        cases += [(Shape(4096, 1024, TWO, layers=1), dtype, "eager") for dtype in DTYPES]
        return cases
    for tokens in (32768, 4096):
        for width in (2048, 1024, 4096):
            for mix in (TWO, THREE):
                shape = Shape(width, tokens, mix, layers=2 if width > 2048 else 4, vocabulary=16384)
                cases.append((shape, "bfloat16", "compiled"))
    cases += [(Shape(2048, 32768, SKEWED, vocabulary=16384), "bfloat16", "compiled")]
    cases += [(Shape(2048, 32768, TWO, vocabulary=16384), "bfloat16", "eager")]
    cases += [(Shape(w, 32768, TWO, vocabulary=16384), "bfloat16", "compiled") for w in (256, 512)]
    cases += [(Shape(1024, 4096, TWO, vocabulary=16384), "float32", mode) for mode in ("eager", "compiled")]
    return cases


class Arm:
    """A model under the clock: forward and backward pass, then the optimizer."""

    def __init__(self, case: Case, model: torch.nn.Module, loss: Callable[[], torch.Tensor]):
        self.case, self.model, self.loss = case, model, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def forward_backward(self) -> None:
        """Make the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.case.autocast():
            loss = self.loss()
        loss.backward()

    @property
    def phases(self) -> list[Callable[[], None]]:
        """What is timed, in its order."""
        return [self.forward_backward, self.optimizer.step]

    @property
    def num_parameters(self) -> int:
        """How many numbers the optimizer moves."""
        return sum(p.numel() for p in self.model.parameters())


def dense_arm(case: Case) -> Arm:
    """Return the plain dense model as an arm."""
    model, attend, batch = case.dense(), case.attention(), case.plain
    return Arm(case, model, lambda: sequence_loss(model(batch.ids, batch.lengths, attend), model.head.weight, batch))


def mot_arm(case: Case, *, towers: int | None = None) -> Arm:
    """Return plait's model as an arm; ``towers=1`` for the dense model of its code."""
    model = case.mot(towers=towers)
    return Arm(case, model, lambda: mot_loss(model, case.plain if towers == 1 else case.batch))


def compare(case: Case, turns: int, *, optimizer: bool = True) -> list[Row]:
    """Return the rows of one shape, precision and mode; the optimizer's too where there is room for its state."""
    dense, mot = dense_arm(case), mot_arm(case)
    count = 2 if optimizer else 1
    arms = {"dense": dense.phases[:count], "dense-again": dense.phases[:count], "mot": mot.phases[:count]}
    times = paired(arms, turns=turns, device=case.device)
    speed, where = peak(case)
    work = flops(case.shape, case.batch.lengths)
    rows = [
        ratio_row(f"step_ratio/{name}/{case.name}", times[name][0], times["dense"][0], against="dense")
        for name in ("mot", "dense-again")
    ]
    for name in ("mot", "dense"):
        seconds = times[name][0]
        share = work / statistics.median(seconds) / speed
        rows.append(value_row(f"mfu/{name}/{case.name}", share, "share", against=where, times=seconds))
    rate = case.batch.num_tokens / statistics.median(times["mot"][0])
    rows.append(value_row(f"tokens_per_second/mot/{case.name}", rate, "1/s", times=times["mot"][0]))
    floor = mot.num_parameters / dense.num_parameters
    return rows + (optimizer_rows(case.name, times, floor) if optimizer else [])


def optimizer_rows(name: str, times: Times, floor: float) -> list[Row]:
    """Return the rows of the optimizer and of the whole step; ``floor`` is the ratio of the numbers of parameters."""
    full = {arm: [sum(phases) for phases in zip(*times[arm], strict=True)] for arm in ("dense", "mot")}
    step, optimizer = (statistics.median(seconds) for seconds in times["dense"])
    full_floor = (step + floor * optimizer) / (step + optimizer)
    return [
        ratio_row(f"optimizer_ratio/mot/{name}", times["mot"][1], times["dense"][1], against="dense"),
        value_row(f"optimizer_floor/mot/{name}", floor, "ratio", against="dense"),
        ratio_row(f"full_step_ratio/mot/{name}", full["mot"], full["dense"], against="dense"),
        value_row(f"full_step_floor/mot/{name}", full_floor, "ratio", against="dense"),
    ]


def names_of(name: str, *, optimizer: bool = True) -> list[str]:
    """Return the names of the rows of `compare`, for a case of that name."""
    kinds = ["step_ratio/mot", "step_ratio/dense-again", "mfu/mot", "mfu/dense", "tokens_per_second/mot"]
    more = ["optimizer_ratio/mot", "optimizer_floor/mot", "full_step_ratio/mot", "full_step_floor/mot"]
    return [f"{kind}/{name}" for kind in kinds + (more if optimizer else [])]


def peak(case: Case) -> tuple[float, str]:
    """Return the operations a second that are 100 %, and what they are."""
    on_gpu = case.device == "cuda" and case.dtype == "bfloat16"
    if value := on_gpu and peak_of(torch.cuda.get_device_name(), case.dtype):
        return value * 1e12, f"published peak, {value:g} TFLOP/s"
    width, dtype = case.shape.width, DTYPES[case.dtype]
    x, w = (
        torch.randn(n, m, device=case.device, dtype=dtype) for n, m in ((case.shape.tokens, width), (4 * width, width))
    )
    y = x @ w.T
    # the three products of a step: forward, for the input, for the weight; the best of any is the peak
    arms = {"forward": [lambda: x @ w.T], "input": [lambda: y @ w], "weight": [lambda: y.T @ x]}
    taken = paired(arms, turns=9, device=case.device)
    value = 2 * x.shape[0] * w.numel() / min(seconds for (times,) in taken.values() for seconds in times)
    return value, f"best matrix product of this run, {value / 1e9:.0f} GFLOP/s"


def by_towers(case: Case, counts: Sequence[int], turns: int) -> list[Row]:
    """Return the cost of more and more towers at the same tokens, against dense."""
    case = case.other(document=64 * max(counts))  # room for the delimiters of every part
    arms = {"dense": dense_arm(case).phases[:1]}
    for count in counts:
        arm = mot_arm(case, towers=1) if count == 1 else mot_arm(case.other(mix=(1,) * count))
        arms[str(count)] = arm.phases[:1]
    times = paired(arms, turns=turns, device=case.device)
    return [
        ratio_row(f"towers_ratio/{n}/{ending(case)}", times[str(n)][0], times["dense"][0], against="dense")
        for n in counts
    ]


def by_length(case: Case, lengths: Sequence[int], turns: int) -> list[Row]:
    """Return MoT / dense for documents of several lengths at the same tokens."""
    rows = []
    for length in lengths:
        one = case.other(document=length)
        times = paired(
            {"dense": dense_arm(one).phases[:1], "mot": mot_arm(one).phases[:1]}, turns=turns, device=case.device
        )
        name = f"length_ratio/{length}/{ending(case)}"
        rows.append(ratio_row(name, times["mot"][0], times["dense"][0], against="dense"))
    return rows


def ending(case: Case) -> str:
    """Return the end of a sweep's names."""
    return f"d{case.shape.width}-t{case.shape.tokens}/{case.dtype}/{case.mode}"


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return everything that the command line asks for."""

    def compared(*case, optimizer: bool = True) -> Measurement:
        names = names_of("/".join(map(str, case)), optimizer=optimizer)
        return Measurement(names, lambda: compare(case_of(options, *case), options.turns, optimizer=optimizer))

    if options.width:
        mix = tuple(map(int, options.mix.split("-")))
        shape = Shape(options.width, options.tokens, mix, layers=options.layers)
        return [compared(shape, options.dtype, options.mode)]
    chosen = grid(options.grid)
    comparisons = [compared(*case) for case in chosen]
    if options.grid == "gpu":
        comparisons.insert(6, compared(LARGE, "bfloat16", "compiled", optimizer=False))
    return (comparisons + sweeps(options, *chosen[0]))[: options.first or None]


def sweeps(options: argparse.Namespace, shape: Shape, dtype: str, mode: str) -> list[Measurement]:
    """Return cost by number of towers and by length of documents, on the grid's first shape."""
    counts, lengths = (1, 2, 4, 8, 16), (128, 512, shape.tokens)
    if options.grid == "tiny":
        counts, lengths = (1, 2), (64, 128)
    end = f"d{shape.width}-t{shape.tokens}/{dtype}/{mode}"
    return [
        Measurement(
            [f"towers_ratio/{n}/{end}" for n in counts],
            lambda: by_towers(case_of(options, shape, dtype, mode), counts, options.turns),
        ),
        Measurement(
            [f"length_ratio/{n}/{end}" for n in lengths],
            lambda: by_length(case_of(options, shape, dtype, mode), lengths, options.turns),
        ),
    ]


def case_of(options: argparse.Namespace, shape: Shape, dtype: str, mode: str) -> Case:
    """Return the case on the chosen device, with nothing compiled before."""
    torch.compiler.reset()  # what one shape has compiled counts against the next one's recompilations
    torch.manual_seed(0)
    return Case(shape, options.device, dtype, mode)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    command_line = parser(__doc__)
    command_line.add_argument("--first", type=int, default=0, help="only so many measurements of the grid")
    command_line.add_argument("--width", type=int, default=0, help="measure this one shape instead of a grid")
    command_line.add_argument("--tokens", type=int, default=4096)
    command_line.add_argument("--mix", default="50-50", help="percent of the tokens for each tower")
    command_line.add_argument("--layers", type=int, default=4)
    command_line.add_argument("--dtype", default="float32", choices=list(DTYPES))
    command_line.add_argument("--mode", default="eager", choices=["eager", "compiled"])
    options = parsed(command_line, arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
