"""Muon moves matrices as torch's own does, many at once, cut over ranks or not, and not at all where a step is bad."""

import copy
import dataclasses

import pytest
import torch
from helpers.models import model_config

from plait.config.model import TowerConfig
from plait.config.run import TrainConfig
from plait.model.mot import MixtureOfTransformers
from plait.train.muon import MOMENTUM, NUM_STEPS, MuonAdamW, orthogonal
from plait.train.optim import make_optimizer

SHAPES = [(24, 8), (8, 24), (24, 8), (8, 8)]


def optimizer_of(parameters, **group):
    return MuonAdamW([{"params": parameters, "muon": True, "weight_decay": 0.1, **group}], lr=0.01, fused=True)


def test_equals_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    reference = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=MOMENTUM, ns_steps=NUM_STEPS, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = optimizer_of(ours)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in ours]
        optimizer.step()
        reference.step()
        for a, b, start in zip(ours, theirs, before, strict=True):
            torch.testing.assert_close(a - start, b - start, rtol=0.03, atol=2e-4)  # both in bfloat16


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_singular_values_come_near_to_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, dtype=torch.float64), steps=8))
    assert values.min() > 0.6 and values.max() < 1.3
    zeros = torch.zeros(shape, dtype=torch.float64)
    assert torch.equal(orthogonal(zeros), zeros)


def test_experts_are_matrices_of_their_own():
    torch.manual_seed(0)
    together = torch.nn.Parameter(torch.randn(3, 8, 24))
    alone = [torch.nn.Parameter(x.clone()) for x in together.detach()]
    together.grad = torch.randn_like(together)
    for p, g in zip(alone, together.grad, strict=True):
        p.grad = g.clone()
    optimizer_of([together]).step()
    optimizer_of(alone).step()
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [0, 8, 24, 7])
def test_blocks_of_rows_are_matrices_of_their_own(rows):
    """Where ``rows`` divide a matrix; else it is moved as one."""
    torch.manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(24, 16))
    size = rows if rows in (8, 24) else 24
    pieces = [torch.nn.Parameter(x.clone()) for x in whole.detach().split(size)]
    whole.grad = torch.randn_like(whole)
    for p, g in zip(pieces, whole.grad.split(size), strict=True):
        p.grad = g.clone()
    optimizer_of([whole], rows=rows).step()
    optimizer_of(pieces).step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in pieces]), rtol=0.02, atol=1e-4)


def test_a_bad_step_changes_nothing():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = optimizer_of(parameters)
    for bad in (False, True):
        for p in parameters:
            p.grad = torch.full_like(p, float("nan")) if bad else torch.randn_like(p)
        optimizer.found_inf = torch.tensor(float(bad))
        before = copy.deepcopy((parameters, optimizer.state_dict()["state"]))
        optimizer.step()
        after = (parameters, optimizer.state_dict()["state"])
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)) == bad
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


def test_it_takes_the_matrices_of_the_blocks():
    experts = TowerConfig(width=16, ffn_width=24, ffn="moe", num_experts=2, top_k=1)
    plain = {name: TowerConfig(width=16, ffn_width=24) for name in ("image", "speech")}
    model = MixtureOfTransformers(dataclasses.replace(model_config(), towers={"text": experts, **plain}))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
    taken = {names[id(p)] for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    others = {names[id(p)] for g in optimizer.param_groups if not g["muon"] for p in g["params"]}
    assert taken | others == set(names.values())
    assert {"blocks.0.qkv.text.weight", "blocks.1.ffn.speech.down.weight"} <= taken
    assert all(name.startswith("blocks.") and "norm" not in name for name in taken)
    assert {"embed.shared.weight", "head.shared.weight", "blocks.0.attention_norm.text.weight"} <= others
