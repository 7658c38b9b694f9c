"""The loss of discrete ids: pieces, precisions and sharded heads give the textbook's values and gradients."""

import contextlib

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.models import model_config, random_documents
from torch.distributed.fsdp import fully_shard

from plait.batch.assemble import pack
from plait.config.generation import DiffusionConfig
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums, next_token, weighted_loss
from plait.objectives.diffusion import corrupt
from plait.objectives.next_token import linear_cross_entropy, target_losses


def textbook(x, weight, target):
    """Loss and log Z from all logits at once, by autograd."""
    logits = F.linear(x, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, target, reduction="none"), logits.logsumexp(-1)


def inputs(n, width=12, size=37, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x, weight = (torch.randn(rows, width, generator=generator, dtype=dtype) for rows in (n, size))
    target = torch.randint(0, size, (n,), generator=generator)
    factors = torch.randn(2, n, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    return x.requires_grad_(), weight.requires_grad_(), target, factors


def values_and_gradients(function, x, weight, target, factors, z_loss=0.3):
    loss, log_z = function(x, weight, target)
    total = (factors[0] * loss).sum() + z_loss * (factors[1] * log_z.square()).sum()
    return loss.detach(), log_z.detach(), *torch.autograd.grad(total, (x, weight))


@pytest.mark.parametrize("n", [0, 1, 5, 16, 23])
@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_pieces_equal_the_textbook(n, rows):
    """Any factor for each target, on the loss and on log Z; no target, one, a last piece that is not full."""
    given = inputs(n)
    got = values_and_gradients(lambda *a: linear_cross_entropy(*a, max_logits=rows * 37 + 5), *given)
    torch.testing.assert_close(got, values_and_gradients(textbook, *given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("max_logits", [4 * 37, 1 << 20])
def test_what_a_gpu_computes_equals_what_a_cpu_computes(monkeypatch, precision, max_logits):
    """The functions that are compiled there, here as they are written; bfloat16 rounds the same products."""
    given = inputs(23, dtype=torch.float64 if precision == "float64" else torch.float32)
    results = []
    for fused in (False, True):
        monkeypatch.setattr(next_token, "_fuses", lambda x, fused=fused: fused)
        monkeypatch.setattr(next_token, "_fused", lambda function: function)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            results.append(values_and_gradients(lambda *a: linear_cross_entropy(*a, max_logits=max_logits), *given))
    allowed = 1e-12 if precision == "float64" else 1e-6
    torch.testing.assert_close(*results, rtol=allowed, atol=allowed)


def test_fewer_logits_than_one_row_is_one_row():
    given = inputs(4)
    got = values_and_gradients(lambda *a: linear_cross_entropy(*a, max_logits=1), *given)
    torch.testing.assert_close(got, values_and_gradients(textbook, *given), rtol=0, atol=1e-10)


@pytest.mark.parametrize("max_logits", [1 << 20, 8 * 512])
def test_under_autocast_the_logits_are_rounded_and_nothing_else(max_logits):
    """Against float64: the loss within bfloat16's rounding of logits, float32 gradients in float32 leaves."""
    x, weight, target, factors = inputs(64, 32, 512, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = values_and_gradients(
            lambda *a: linear_cross_entropy(*a, max_logits=max_logits), x, weight, target, factors
        )
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = values_and_gradients(textbook, *exact, target, factors.double())
    assert all(t.dtype == torch.float32 for t in got)
    assert (got[0] - expected[0]).abs().max() < 0.02 * expected[0].abs().max()
    for ours, true in zip(got[2:], expected[2:], strict=True):
        assert (ours - true).norm() < 0.02 * true.norm()


def test_float64_stays_float64_under_autocast():
    given = inputs(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = values_and_gradients(lambda *a: linear_cross_entropy(*a, max_logits=80), *given)
    torch.testing.assert_close(got, values_and_gradients(textbook, *given), rtol=0, atol=1e-10)


def test_a_frozen_head_gets_no_gradient():
    x, weight, target, _ = inputs(7)
    loss, _ = linear_cross_entropy(x, weight.detach(), target, max_logits=80)
    (for_x,) = torch.autograd.grad(loss.sum(), x)
    expected, _ = textbook(x, weight, target)
    torch.testing.assert_close(for_x, torch.autograd.grad(expected.sum(), x)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_model_losses_are_those_of_its_logits(rng, tied):
    """Targets of all towers, z-loss and tied embeddings; the sums by modality are the losses times their weights."""
    config = model_config(tie_embeddings=tied)
    model = MixtureOfTransformers(config).double()
    batch = pack(random_documents(rng, 6), config)
    targets = batch.targets
    logits = model.logits(model(batch), targets.rows)
    each = F.cross_entropy(logits, targets.ids, reduction="none") + 0.01 * logits.logsumexp(-1).square()
    expected = torch.zeros(3, dtype=torch.float64).index_add(0, targets.modality, each * targets.weight)
    factors = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    found = []
    for sums in (expected, loss_sums(model, model(batch), batch, z_loss=0.01)):
        model.zero_grad()
        (sums * factors).sum().backward()
        found.append((sums.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


def test_pieces_of_the_models_losses(rng):
    config = model_config()
    model = MixtureOfTransformers(config).double()
    batch = pack(random_documents(rng, 8), config)
    found = []
    for limit in (1 << 24, 5 * config.layout.size):
        model.zero_grad()
        loss, log_z = target_losses(model, model(batch), batch, max_logits=limit)
        (loss.sum() + log_z.sum()).backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [1, 5, 1 << 24], ids=["one by one", "pieces", "together"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_weighted_loss_is_the_sums_times_their_factors(rng, monkeypatch, tied, limit, frozen):
    """Loss, sums and gradients, of a total that counts twice; a batch without targets of some tower; latents beside."""
    config = model_config(mel=True, tie_embeddings=tied)
    model = MixtureOfTransformers(config).double()
    monkeypatch.setattr(next_token, "MAX_LOGITS", {"cpu": limit * config.layout.size})
    factors = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)
    for only in (None, ["text", "mel"]):
        batch = corrupt(pack(random_documents(rng, 6, mel=True, only=only), config), DiffusionConfig(), 0)
        if frozen:
            model.head_weights().requires_grad_(False)
        found = []
        for weighted in (False, True):
            model.zero_grad()
            if weighted:
                total, sums = weighted_loss(model, model(batch), batch, factors, z_loss=0.01)
                assert not sums.requires_grad
            else:
                sums = loss_sums(model, model(batch), batch, z_loss=0.01)
                total = (sums * factors).sum()
            (2 * total).backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            found.append((total.detach(), sums.detach(), gradients))
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


def test_the_weighted_loss_under_autocast_rounds_as_the_sums_do(rng):
    """The same products of numbers that differ in the last bit before they are rounded."""
    config = model_config()
    model = MixtureOfTransformers(config)
    batch, factors = pack(random_documents(rng, 6), config), torch.tensor([1.0, 0.5, 2.0])
    found = []
    for weighted in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if weighted:
                total, _ = weighted_loss(model, model(batch), batch, factors, z_loss=0.01)
            else:
                total = (loss_sums(model, model(batch), batch, z_loss=0.01) * factors).sum()
        total.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (found[1] - found[0]).norm() < 2e-3 * found[0].norm()


@contextlib.contextmanager
def one_process(folder):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_head_learns_the_same(rng, tmp_path, tied):
    """With FSDP2 around the model, the loss outside of it reads the gathered head, and the shards get its gradient."""
    config = model_config(tie_embeddings=tied)
    batch = pack(random_documents(rng, 6), config)
    plain, sharded = (MixtureOfTransformers(config).double() for _ in range(2))
    with one_process(tmp_path):
        for block in sharded.blocks:
            fully_shard(block)
        fully_shard(sharded)
        ones = torch.ones(3, dtype=torch.float64)
        for model in (plain, sharded):
            weighted_loss(model, model(batch), batch, ones, z_loss=0.01)[0].backward()
        gradients = {n: p.grad.full_tensor() for n, p in sharded.named_parameters()}
    torch.testing.assert_close(gradients, {n: p.grad for n, p in plain.named_parameters()}, rtol=0, atol=1e-10)
