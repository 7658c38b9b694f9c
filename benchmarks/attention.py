"""plait's attention of packed documents against one dense mask, and float32 against bfloat16; forward + backward.

    OMP_NUM_THREADS=1 python benchmarks/attention.py            (CPU: about 3 minutes)

attention_ratio/<mask>/t<tokens>-<documents>documents/<dtype>   plait / scaled_dot_product_attention with a mask [T, T]
mask_per_document/...                                           one mask [n, n] for each document / one mask [T, T]
attention_precision/<tokens of a document>                      plait in float32 / plait in bfloat16

The mask ``transfusion`` is that of documents of text with two images whose latents see one another; ``causal`` that
of text alone. Masks and plans are made beforehand, as they are made once a step for all layers. From 20,000 tokens on
a CPU measures one head and one turn: a dense mask takes 10 s there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from harness import Measurement, Row, paired, parsed, parser, ratio_row, run
from shapes import DTYPES, HEAD_DIM
from torch import Tensor

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.model.attention import AttentionPlan, attend
from plait.model.mask import dense_mask, segments

IMAGE = 0.25
"""An image's share of its document's tokens."""

CONFIG = ModelConfig(modalities={
    "text": ModalityConfig(vocab_size=100),
    "image": ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=1, patch_size=1),
}, width=8, num_layers=1, num_heads=1)  # fmt: skip


def masked_tokens(mask: str, tokens: int, count: int) -> tuple[list, list[int]]:
    """Return the segments of a batch and the lengths of its documents: text, and two images where the mask wants."""
    documents, size = [], tokens // count
    for index in range(count):
        image = round(size * IMAGE) if mask == "transfusion" else 0
        one = Part("image", latents=np.zeros((image, 1), np.float32), grid=(image,))
        text = size - 2 - (2 * (image + 2) if image else 0)  # <bos> and <eos>, delimiters of images
        halves = [Part("text", np.zeros(n, np.int64)) for n in (text // 2, text - text // 2)]
        parts = [halves[0], one, halves[1], one] if image else halves
        documents.append(Document(parts, index=index))
    batch = pack(documents, CONFIG)
    return segments(batch.spans), batch.lengths


def passes(attention: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Callable[[], None]]:
    """Return one function: forward and backward of an attention."""
    weight = torch.randn_like(inputs[0])

    def step() -> None:
        torch.autograd.grad((attention(*inputs) * weight).sum(), inputs)

    return [step]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend [n, H, d] with a boolean mask [n, n]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def random_inputs(tokens: int, heads: int, dtype: str, device: str) -> list[Tensor]:
    """Return queries, keys and values [T, H, d] that want gradients."""
    shape = (tokens, heads, HEAD_DIM)
    return [torch.randn(shape, device=device, dtype=DTYPES[dtype]).requires_grad_() for _ in range(3)]


def compare(options: argparse.Namespace, mask: str, tokens: int, count: int, dtype: str) -> list[Row]:
    """Return the rows of one mask at one length."""
    batch_segments, lengths = masked_tokens(mask, tokens, count)
    total, device = sum(lengths), options.device
    huge = device == "cpu" and tokens >= 20_000
    heads = 16 if device == "cuda" else 1 if huge else 4  # on a GPU four heads are nothing but launches
    inputs = random_inputs(total, heads, dtype, device)
    whole = dense_mask(batch_segments, total).to(device)
    ends = np.cumsum(lengths).tolist()
    own = [whole[stop - n : stop, stop - n : stop].contiguous() for n, stop in zip(lengths, ends, strict=True)]
    plan = AttentionPlan.of(batch_segments, total, torch.device(device), DTYPES[dtype]).to(torch.device(device)).ready()

    def per_document(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        documents = zip(*(x.split(lengths) for x in (q, k, v)), own, strict=True)
        return torch.cat([sdpa(*one) for one in documents])

    arms = {
        "plait": passes(lambda q, k, v: attend(q, k, v, plan), inputs),
        "per document": passes(per_document, inputs),
        "dense mask": passes(lambda q, k, v: sdpa(q, k, v, whole), inputs),
    }
    turns, warmups = (1, 0) if huge else (options.turns, 2)
    times = {
        name: arm_times[0] for name, arm_times in paired(arms, turns=turns, device=device, warmups=warmups).items()
    }
    return [
        ratio_row(name, times[arm], times["dense mask"], against="SDPA with one dense mask")
        for name, arm in zip(names_of(mask, tokens, count, dtype), ("plait", "per document"), strict=True)
    ]


def names_of(mask: str, tokens: int, count: int, dtype: str) -> list[str]:
    """Return the names of the rows of `compare`."""
    end = f"{mask}/t{tokens}-{count}documents/{dtype}"
    return [f"attention_ratio/{end}", f"mask_per_document/{end}"]


def precision(options: argparse.Namespace, length: int, tokens: int = 4096) -> list[Row]:
    """Return plait's attention in float32 over that in bfloat16, for causal documents of one length."""
    batch_segments, lengths = masked_tokens("causal", tokens, tokens // length)
    plan = AttentionPlan.of(batch_segments, sum(lengths), torch.device(options.device)).to(options.device)
    arms = {}
    for dtype in DTYPES:
        inputs = random_inputs(sum(lengths), 4, dtype, options.device)
        arms[dtype] = passes(lambda q, k, v: attend(q, k, v, plan), inputs)
    times = paired(arms, turns=options.turns, device=options.device)
    name = f"attention_precision/{length}"
    return [ratio_row(name, times["float32"][0], times["bfloat16"][0], against="the same in bfloat16")]


def grid(name: str) -> tuple[list[tuple[str, int, int, str]], list[int]]:
    """Return mask, tokens, documents and dtype of each comparison, and lengths for the two precisions."""
    if name == "tiny":
        return [("transfusion", 256, 2, "float32"), ("causal", 256, 2, "bfloat16")], [64]
    dtype = "float32" if name == "cpu" else "bfloat16"
    cases = [("transfusion", 2048, 4, "float32"), ("transfusion", 2048, 4, "bfloat16"), ("causal", 2048, 4, dtype),
             ("transfusion", 2048, 1, dtype)]  # fmt: skip
    cases += [("transfusion", tokens, tokens // 512, dtype) for tokens in (4096, 8192)]
    return [*cases, ("transfusion", 20_000, 10, dtype)], [128, 512, 2048] if name == "cpu" else []


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return the comparisons of the grid."""
    compared, lengths = grid(options.grid)
    comparisons = [Measurement(names_of(*one), lambda one=one: compare(options, *one)) for one in compared]
    return comparisons + [Measurement([f"attention_precision/{n}"], lambda n=n: precision(options, n)) for n in lengths]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=5), arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
