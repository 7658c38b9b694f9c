"""Attention over packed short documents on a CPU: per document, batched, and by plain matrix products.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Forward and backward, process CPU time in milliseconds; documents of one length, so that all forms do the same work.
"""

import time

import torch
import torch.nn.functional as F

SHAPES = ((80, 38), (128, 24), (300, 10), (1000, 3))
"""Tokens of a document, and documents."""
HEADS, HEAD_DIM = 4, 32


def milliseconds(run, repeats: int = 5) -> float:
    """Return the mean CPU time of a call, after one that warms up."""
    run()
    started = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - started) / repeats * 1e3


def forms(length: int, count: int, dtype: torch.dtype) -> dict:
    """Return the ways to attend, by name; each does a forward and a backward pass."""
    inputs = [torch.randn(count * length, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True) for _ in range(3)]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)

    def per_document():
        documents = zip(*(x.split(length) for x in inputs), strict=True)
        out = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in d), is_causal=True) for d in documents]
        torch.cat(out).sum().backward()

    def batched():
        q, k, v = (x.view(count, length, HEADS, HEAD_DIM).transpose(1, 2) for x in inputs)
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    def products():
        q, k, v = (x.view(count, length, HEADS, HEAD_DIM).transpose(1, 2) for x in inputs)
        scores = (q * HEAD_DIM**-0.5) @ k.transpose(-1, -2)
        (scores.masked_fill(future, float("-inf")).softmax(-1) @ v).sum().backward()

    return {"per document": per_document, "batched": batched, "matrix products": products}


def main() -> None:
    """Print one line for each shape and precision."""
    for dtype in (torch.float32, torch.bfloat16):
        for length, count in SHAPES:
            times = {name: milliseconds(run) for name, run in forms(length, count, dtype).items()}
            line = "   ".join(f"{name} {value:7.1f}" for name, value in times.items())
            print(f"{str(dtype).removeprefix('torch.'):9s} {count:3d} x {length:4d} tokens   {line}")


if __name__ == "__main__":
    main()
