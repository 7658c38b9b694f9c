"""Experts inside a tower."""

import pytest
import torch
import torch.nn.functional as F
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.config.model import ModelConfig, TowerConfig
from plait.model.moe import MixtureOfExperts, grouped_matmul
from plait.model.mot import MixtureOfTransformers


def experts(routing: str, **settings) -> MixtureOfExperts:
    torch.manual_seed(0)
    moe = MixtureOfExperts(8, TowerConfig(width=8, ffn_width=16, ffn="moe", moe_routing=routing, **settings))
    for p in moe.parameters():
        torch.nn.init.normal_(p)
    return moe.double()


def one_expert(moe, x, e):
    return (F.silu(x @ moe.gate.weight[e]) * (x @ moe.up.weight[e])) @ moe.down.weight[e]


@pytest.mark.parametrize("top_k", [1, 2])
def test_token_choice_against_a_loop(top_k):
    moe = experts("token_choice", top_k=top_k)
    x, real = torch.randn(13, 8, dtype=torch.float64), torch.arange(13) < 10
    expected = torch.zeros_like(x)
    scores = moe.router(x).sigmoid()
    for i in range(10):
        best = scores[i].argsort(descending=True)[:top_k]
        for e in best:
            total = scores[i, best].sum() if top_k > 1 else 1.0  # a single gate would always be 1
            expected[i] += scores[i, e] / total * one_expert(moe, x[i], e)
    out = moe(x, real)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    assert moe.tokens_per_expert.sum() == 10 * top_k
    out.square().sum().backward()
    assert moe.router.weight.grad.abs().max() > 1e-3  # the router learns


@pytest.mark.parametrize("routing", ["token_choice", "expert_choice"])
def test_experts_are_chosen_in_float32_under_autocast(routing):
    """In bfloat16 about one token in a hundred would go elsewhere."""
    moe = experts(routing).float()
    x, chosen = torch.randn(400, 8), []
    moe.router.register_forward_hook(lambda module, inputs, out: chosen.append(out))
    for short in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=short):
            moe(x, torch.ones(400, dtype=torch.bool))
    assert torch.equal(*chosen) and chosen[1].dtype == torch.float32


@pytest.mark.parametrize("routing", ["token_choice", "expert_choice"])
def test_an_empty_tower_with_experts(routing):
    moe = experts(routing)
    assert moe(torch.zeros(0, 8, dtype=torch.float64), torch.ones(0, dtype=torch.bool)).shape == (0, 8)


def test_expert_choice_against_a_loop():
    moe = experts("expert_choice")
    x, real = torch.randn(16, 8, dtype=torch.float64), torch.arange(16) < 12
    scores = moe.router(x).softmax(-1).masked_fill(~real[:, None], 0)
    expected = torch.zeros_like(x)
    for e in range(4):
        for i in scores[:, e].argsort(descending=True)[:4]:
            expected[i] += scores[i, e] * one_expert(moe, x[i], e)
    torch.testing.assert_close(moe(x, real), expected, rtol=0, atol=1e-10)
    assert (moe(x, real)[12:] == 0).all()


def test_token_choice_is_causal_and_balances(rng):
    config = model_config()
    towers = {t: TowerConfig(ffn="moe", moe_routing="token_choice", ffn_width=24) for t in config.towers}
    config = ModelConfig(modalities=config.modalities, towers=towers, width=16, num_layers=2, num_heads=2)
    model = MixtureOfTransformers(config).double()
    documents = random_documents(rng, 4)
    whole = pack(documents, config)
    first = pack(documents[:1], config)
    n = first.num_tokens
    hidden = [torch.cat(model(b)).index_select(0, b.routing.to_sequence)[:n] for b in (whole, first)]
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-10)
    moe = model.blocks[0].ffn["text"]
    assert moe.tokens_per_expert.sum() > 0
    heaviest = moe.tokens_per_expert.argmax()
    model.update_balance(dict.fromkeys(config.towers, 1e-3))
    assert moe.expert_bias[heaviest] < 0 and moe.tokens_per_expert.sum() == 0
    with torch.no_grad():
        model(whole)
    assert moe.tokens_per_expert.sum() == 0


def test_expert_choice_refuses_to_generate():
    config = model_config()
    towers = {t: TowerConfig(ffn="moe", moe_routing="expert_choice") for t in config.towers}
    model = MixtureOfTransformers(ModelConfig(modalities=config.modalities, towers=towers, width=16, num_heads=2))
    with pytest.raises(ValueError, match="expert_choice"):
        model.new_cache(1, 8)


@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [0, 0, 0, 10], [1, 2, 3, 4]])
def test_grouped_matmul_equals_the_exact_form(counts):
    x, weight = torch.randn(10, 8), torch.randn(4, 8, 12)
    ends = torch.tensor(counts).cumsum(0).int()
    exact = grouped_matmul(x.double(), weight.double(), ends)
    torch.testing.assert_close(grouped_matmul(x, weight, ends).double(), exact, rtol=1e-5, atol=1e-5)
