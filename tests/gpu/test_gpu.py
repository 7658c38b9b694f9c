"""A GPU computes what a CPU computes: `make test-gpu` on a machine with one; skipped elsewhere."""

import numpy as np
import pytest
import torch
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.config.generation import DiffusionConfig
from plait.model.attention import AttentionPlan
from plait.model.mask import segments
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
WIDE = {"width": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}


def batch_of(config, rng, count):
    batch = pack(random_documents(rng, count, mel="mel" in config.modalities), config, pad_rows_to=4)
    return corrupt(batch, DiffusionConfig(), 0)


def gradients(model, batch, device, precision):
    model, batch = model.to(device), batch.to(device)
    with autocast(precision, torch.device(device)):
        sums = loss_sums(model, model(batch), batch)
    weights = list(model.parameters())
    found = torch.autograd.grad(sums.sum() / batch.num_tokens, weights, allow_unused=True)
    return sums.cpu().double(), [None if g is None else g.cpu().double() for g in found]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attention", ["none", "bidirectional", "causal"])
def test_loss_and_gradients_equal_a_cpus(precision, compiled, attention):
    """FlexAttention in float32, variable-length attention in bfloat16, over four batches of changing documents."""
    rng = np.random.default_rng(3)
    mel = {} if attention == "none" else {"mel": True, "attention": attention, "later_sees": "clean"}
    config = model_config(**WIDE, **mel)
    gpu, cpu = MixtureOfTransformers(config), MixtureOfTransformers(config).double()
    gpu.cuda()
    if compiled:
        gpu.compile_blocks()
    allowed = {"float32": 2e-5, "bfloat16": 3e-2}[precision]
    for _ in range(4):
        batch = batch_of(config, rng, int(rng.integers(1, 24)))
        expected, wanted = gradients(cpu, batch, "cpu", "float32")
        sums, found = gradients(gpu, batch, "cuda", precision)
        torch.testing.assert_close(sums, expected, rtol=allowed, atol=allowed)
        size = torch.cat([w.flatten() for w in wanted if w is not None]).norm()
        error = torch.cat([(f - w).flatten() for f, w in zip(found, wanted, strict=True) if w is not None]).norm()
        assert error <= allowed * size, (float(error), float(size))


def test_masks_of_many_ranges_compile_once():
    """FlexAttention runs fused over batches that differ in documents and in ranges of keys."""
    from torch._dynamo.utils import counters

    rng = np.random.default_rng(0)
    config = model_config(**WIDE, mel=True, later_sees="clean")
    model = MixtureOfTransformers(config).cuda()
    torch._dynamo.reset()
    counters.clear()
    ranges = set()
    for i in range(24):
        batch = batch_of(config, rng, 2 + i)
        ranges.add(max(len(s.keys) for s in segments(batch.spans)))
        model(batch.to("cuda"))
    assert len(ranges) > 2 and counters["stats"]["unique_graphs"] <= 8


def test_a_step_does_not_wait_for_the_device():
    rng = np.random.default_rng(1)
    config = model_config(**WIDE, mel=True, later_sees="clean")
    model = MixtureOfTransformers(config).cuda()
    batch = batch_of(config, rng, 9).to("cuda")
    for precision in ("float32", "bfloat16"):
        for watched in (False, True):
            torch.cuda.set_sync_debug_mode("error" if watched else "default")
            try:
                with autocast(precision, torch.device("cuda")):
                    loss = loss_sums(model, model(batch), batch).sum()
                loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_what_is_planned_for_a_gpu():
    """Long documents without copies go to variable-length attention in 16 bits, others to FlexAttention."""
    rng = np.random.default_rng(2)
    batch = pack(random_documents(rng, 5), model_config())
    device = torch.device("cuda")
    assert AttentionPlan.of(segments(batch.spans), batch.num_tokens, device, torch.bfloat16).varlen
    assert AttentionPlan.of(segments(batch.spans), batch.num_tokens, device).flex is not None
