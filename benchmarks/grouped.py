"""One grouped matrix product for all towers against one product a tower: forward + backward of the widest matrix.

    OMP_NUM_THREADS=1 python benchmarks/grouped.py            (CPU: about 1 minute)

grouped_ratio/d<width>-t<tokens>-<towers>towers-<mix>/<dtype>   torch's grouped_mm on stacked weights / a product each

The rows of all towers lie in one buffer for both. Weights are kept in float32 and brought to the precision of the
product, as autocast does: for grouped_mm into one stack, so that stacking costs nothing more than the cast. Towers have
equal shares of the tokens, or (90-10) the first nine tenths of them and the others the rest.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from harness import Measurement, Row, paired, parsed, parser, ratio_row, run
from torch import Tensor

GRIDS = {
    "tiny": ((64, 128, 2, "90-10", "bfloat16"),),
    "cpu": tuple((d, t, k, "equal", dtype) for dtype in ("float32", "bfloat16")
                 for d, t, k in ((256, 1024, 2), (256, 4096, 2), (512, 2048, 3), (256, 1024, 8))),
    "gpu": tuple((d, t, k, mix, "bfloat16") for d in (1024, 2048, 4096) for t in (4096, 32768)
                 for k, mix in ((2, "equal"), (2, "90-10"), (3, "equal"))),
}  # fmt: skip
"""Width, tokens, towers, mix and precision of each measurement."""
PADDING = 32


def sizes_of(tokens: int, towers: int, mix: str) -> list[int]:
    """Return the rows of each tower, padded."""
    shares = [1 / towers] * towers if mix == "equal" else [0.9, *[0.1 / (towers - 1)] * (towers - 1)]
    return [-(-round(tokens * share) // PADDING) * PADDING for share in shares]


def arms(width: int, sizes: list[int], dtype: torch.dtype, device: str) -> dict[str, list[Callable[[], None]]]:
    """Return both ways, each one forward and backward."""
    hidden = 8 * width // 3 // 64 * 64
    weights = [torch.randn(hidden, width, device=device).mul_(width**-0.5).requires_grad_() for _ in sizes]
    x = torch.randn(sum(sizes), width, device=device, dtype=dtype).requires_grad_()
    toward = torch.randn(sum(sizes), hidden, device=device, dtype=dtype)
    ends = torch.tensor(sizes).cumsum(0).to(device=device, dtype=torch.int32)

    def each() -> Tensor:
        return torch.cat([F.linear(a, w.to(dtype)) for a, w in zip(x.split(sizes), weights, strict=True)])

    def grouped() -> Tensor:
        return F.grouped_mm(x, torch.stack([w.to(dtype) for w in weights]).transpose(1, 2), offs=ends)

    torch.testing.assert_close(each(), grouped(), rtol=2e-2, atol=2e-2)

    def passes(product: Callable[[], Tensor]) -> list[Callable[[], None]]:
        return [lambda: torch.autograd.grad(product(), [x, *weights], toward) and None]

    return {"each": passes(each), "grouped": passes(grouped)}


def compare(options: argparse.Namespace, name: str, width: int, sizes: list[int], dtype: str) -> list[Row]:
    """Return the row of one shape."""
    both = arms(width, sizes, getattr(torch, dtype), options.device)
    times = paired(both, turns=options.turns, device=options.device)
    return [ratio_row(name, times["grouped"][0], times["each"][0], against="one product a tower")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=15, grids=GRIDS), arguments)
    wanted = []
    for width, tokens, towers, mix, dtype in GRIDS[options.grid]:
        name = f"grouped_ratio/d{width}-t{tokens}-{towers}towers-{mix}/{dtype}"
        settings = (options, name, width, sizes_of(tokens, towers, mix), dtype)
        wanted.append(Measurement([name], lambda settings=settings: compare(*settings)))
    return run(wanted, options)


if __name__ == "__main__":
    sys.exit(main())
