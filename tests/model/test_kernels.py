"""The Triton kernel equals plain torch, on a GPU or run by Triton's interpreter, and compiles for a GPU anywhere."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.model.block import Step
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import Ranks
from plait.model.rope import frequencies, rotation

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is no GPU, conftest.py asks for the interpreter


@pytest.fixture(scope="module")
def kernel():
    from plait.model import kernels

    return kernels.heads_to_sequence


SETTINGS = [
    {},
    {"num_heads": 4, "num_kv_heads": 2},
    {"num_heads": 6, "num_kv_heads": 2, "width": 96, "qk_norm": False},
    {"qkv_bias": True, "untied": ["ffn", "norm"]},
    {"untied": ["ffn"], "norm_order": "post"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("alone", [False, True], ids=["mixed", "one modality"])
def test_the_kernel_equals_plain_torch(kernel, rng, settings, alone):
    """Outputs and gradients in float64, towers of padding only and of unaligned sizes included."""
    config = model_config(**{"width": 64, "num_heads": 4, "head_dim": 16, "num_layers": 1, **settings})
    block = MixtureOfTransformers(config).double().to(DEVICE).blocks[0]
    for name, parameter in block.named_parameters():
        if "_norm" in name or "bias" in name:  # not all ones or zeros, or one left out would not show
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    documents = [Document([Part("text", rng.integers(0, 10, 7))])] if alone else random_documents(rng, 3)
    batch = pack(documents, config, pad_rows_to=4).to(DEVICE)
    cos, sin = rotation(batch.positions, frequencies(16, 1e4), torch.float64)
    streams = [
        torch.randn(n, config.width, dtype=torch.float64, device=DEVICE, requires_grad=True)
        for n in batch.routing.padded_sizes
    ]
    found = []
    for used in (None, kernel):
        out = block._heads(
            block._projected(streams), Step(batch.routing, cos, sin, [], None, None, Ranks(), heads_to_sequence=used)
        )
        weights = [torch.sin(torch.arange(x.numel(), device=DEVICE)).view_as(x) for x in out]
        inputs = [*streams, *block.qkv.parameters()]
        found.append([*out, *torch.autograd.grad([(x * w).sum() for x, w in zip(out, weights, strict=True)], inputs)])
    assert all(x.abs().sum() > 0 for x in found[0][:3])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)


def test_rounding_of_short_numbers(kernel):
    """In bfloat16 the kernel computes in float32 and rounds once (the interpreter truncates)."""
    torch.manual_seed(0)
    heads = [torch.randn(n, 2, 3, 16, device=DEVICE).bfloat16() for n in (8, 4)]
    norms = [torch.rand(16, device=DEVICE) + 0.5 for _ in range(4)]
    cos, sin = torch.rand(12, 1, 8, device=DEVICE), torch.rand(12, 1, 8, device=DEVICE)
    order = torch.randperm(12, device=DEVICE)
    places = torch.argsort(order), order
    short = kernel(heads, norms, cos, sin, *places, 1e-5)
    exact = kernel([h.double() for h in heads], [n.double() for n in norms], cos.double(), sin.double(), *places, 1e-5)
    for a, b in zip(short, exact, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-7, atol=1e-6)


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from plait.model import kernels
sizes = dict(groups=8, queries=2, half=64, wide=tl.float32, heads=kernels.HEADS)
kinds = dict(to_towers="*i64", to_sequence="*i64", num_rows="i32", start="i32", eps="fp32", cos="*fp32", sin="*fp32",
             query_weight="*fp32", key_weight="*fp32", for_weights="*fp32")
for has_norm in (True, False):
    for kernel in (kernels._forward, kernels._backward):
        fixed = dict(sizes, has_norm=has_norm)
        signature = {n: "constexpr" if n in fixed else kinds.get(n, "*bf16") for n in kernel.arg_names}
        target = GPUTarget("cuda", 90, 32)
        compiled = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=fixed), target=target)
        assert len(compiled.asm["cubin"]) > 1000
        assert compiled.metadata.shared < 4096
print("compiled")
"""


def test_it_compiles_for_an_h100():
    """To machine code, which needs no GPU."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout == "compiled\n", done.stderr
