"""What is read off trained models: exact on models whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.models import SIZES, model_config, random_documents

from plait.batch.assemble import pack
from plait.compare.probes import activations, attention_mass, components, gradient_conflict, modality_of_tokens
from plait.config.generation import DiffusionConfig
from plait.config.model import TowerConfig
from plait.model.mask import dense_mask, segments
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

NAMES = tuple(SIZES)


def batches_of(config, rng, count=2, **kind):
    batches = [pack(random_documents(rng, 5, **kind), config) for _ in range(count)]
    return [corrupt(b, DiffusionConfig(), 0) for b in batches]


def test_activations_are_those_of_the_forward_pass(rng):
    config = model_config()
    model = MixtureOfTransformers(config)
    (batch,) = batches_of(config, rng, 1)
    found = activations(model, batch)
    assert len(found) == 1 + config.num_layers and {x.shape for x in found} == {(batch.num_tokens, 16)}
    assert not any(b._forward_hooks or b._forward_pre_hooks for b in model.blocks)
    with torch.no_grad():
        final = torch.cat(model(batch))[batch.routing.to_sequence]
        norm = torch.stack([module.weight for module in model.final_norm.values()])
        assert norm.eq(1).all()
        torch.testing.assert_close(torch.nn.functional.rms_norm(found[-1], (16,), eps=config.norm_eps), final)
        first = model.embed["shared"](batch.ids)
    torch.testing.assert_close(found[0], first)


def test_separation_is_one_where_each_modality_is_a_point_and_zero_where_all_lie_alike(rng):
    config = model_config()
    model = MixtureOfTransformers(config)
    batches = batches_of(config, rng)
    layout = config.layout
    torch.manual_seed(0)
    with torch.no_grad():  # every id of a modality has one embedding, and the blocks add nothing
        for parameter in model.blocks.parameters():
            parameter.zero_()
        embedding = model.embed["shared"].weight
        for k, name in enumerate(NAMES):
            embedding[list(layout.ids(name))] = torch.randn(16) + 3 * k
        embedding[[layout.bos, layout.eos, *layout.opening.values(), *layout.closing.values()]] = embedding[0].clone()
    tokens, layers = components(model, batches)
    assert [row["layer"] for row in layers] == [0, 1, 2]
    assert all(row["separation"] == pytest.approx(1) for row in layers)
    for name in NAMES:
        (row,) = (t for t in tokens if t["modality"] == name and t["layer"] == 0)
        assert np.ptp(row["x"]) == pytest.approx(0, abs=1e-6) and np.ptp(row["y"]) == pytest.approx(0, abs=1e-6)
    assert len({len(row["x"]) for row in tokens}) == 1  # no modality draws the components its way
    with torch.no_grad():
        embedding.copy_(torch.randn(16).expand_as(embedding) + 1e-3 * torch.randn_like(embedding))
    assert all(row["separation"] < 0.2 for row in components(model, batches)[1])


def test_shares_of_the_variance_are_those_of_the_first_components(rng):
    config = model_config()
    model = MixtureOfTransformers(config)
    batches = batches_of(config, rng)
    with torch.no_grad():  # activations lie on a line
        model.embed["shared"].weight.copy_(torch.randn(config.layout.size, 1) * torch.randn(16))
    row = components(model, batches)[1][0]
    assert row["first"] == pytest.approx(1) and row["second"] == pytest.approx(0, abs=1e-9)


def test_towers_of_different_widths_have_no_activations_in_common(rng):
    widths = {name: TowerConfig(width=8 * (2 + k), ffn_width=24) for k, name in enumerate(NAMES)}
    config = dataclasses.replace(model_config(head_dim=8), towers=widths)
    model = MixtureOfTransformers(config)
    with pytest.raises(ValueError, match="different widths"):
        activations(model, batches_of(config, rng, 1)[0])


@pytest.mark.parametrize("mel", [False, True])
def test_attention_mass_is_that_of_the_dense_mask(rng, mel):
    """Where queries are zero, attention is even over what the mask shows; and always sums to 1."""
    config = model_config(mel=mel, qk_norm=False, later_sees="clean_copy")
    model = MixtureOfTransformers(config)
    batches = batches_of(config, rng, mel=mel)
    rows = attention_mass(model, batches)
    names = config.layout.names
    for layer in range(config.num_layers):
        for query in names:
            mine = [r for r in rows if (r["layer"], r["query"]) == (layer, query)]
            assert sum(r["mass"] for r in mine) == pytest.approx(1) and sum(r["even"] for r in mine) == pytest.approx(1)
    assert any(abs(r["mass"] - r["even"]) > 1e-3 for r in rows)

    expected = np.zeros((len(names), len(names)))
    count = np.zeros(len(names))
    for batch in batches:
        mask = dense_mask(segments(batch.spans), batch.num_tokens).double().numpy()
        mask /= mask.sum(1, keepdims=True)
        owner = np.eye(len(names))[modality_of_tokens(batch, names)]
        expected += owner.T @ mask @ owner
        count += owner.sum(0)
    expected /= count[:, None]
    for r in rows:
        assert r["even"] == pytest.approx(expected[names.index(r["query"]), names.index(r["key"])])
    with torch.no_grad():
        for block in model.blocks:
            for module in block.qkv.values():
                module.weight.zero_()
    assert all(r["mass"] == pytest.approx(r["even"]) for r in attention_mass(model, batches))


def test_attention_mass_uses_what_the_model_attends(rng):
    """The masses of one token, from the weights that make the model's own output of attention."""
    config = model_config(num_layers=1)
    model = MixtureOfTransformers(config).double()
    batch = pack(random_documents(rng, 1), config)
    kept = {}
    from plait.model import block as module

    original = module.attend

    def noting(query, key, value, plan):
        kept["q"], kept["k"] = query, key
        return original(query, key, value, plan)

    module.attend = noting
    try:
        rows = attention_mass(model, [batch])
    finally:
        module.attend = original
    q, k = kept["q"].float().double(), kept["k"].float().double().repeat_interleave(2, dim=1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) / config.head_dim**0.5
    weights = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf).softmax(-1).mean(0)
    owner = torch.from_numpy(np.eye(3)[modality_of_tokens(batch, NAMES)])
    masses = (owner.T @ weights @ owner) / owner.sum(0)[:, None]
    for r in rows:
        assert r["mass"] == pytest.approx(masses[NAMES.index(r["query"]), NAMES.index(r["key"])].item(), abs=1e-6)


def test_gradient_conflict_is_the_cosine_of_the_gradients(rng):
    config = model_config(towers=dict.fromkeys(NAMES, "text"))
    model = MixtureOfTransformers(config).double()
    model.requires_grad_(False)
    batches = batches_of(config, rng)
    rows = gradient_conflict(model, batches)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    keys = {(r["layer"], r["component"], r["first"], r["second"]) for r in rows}
    assert len(keys) == len(rows) == 2 * 5 * (3 + 3)
    model.requires_grad_(True)
    counts = np.sum([b.counts for b in batches], axis=0)
    gradients = []
    for m in (0, 2):
        model.zero_grad()
        loss = sum(loss_sums(model, model(b), b)[m] for b in batches) / counts[m]
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.blocks[1].ffn.parameters()]))
    row = next(r for r in rows if (r["layer"], r["component"], r["first"], r["second"]) == (1, "ffn", "text", "speech"))
    assert row["cosine"] == pytest.approx(torch.cosine_similarity(*gradients, dim=0).item())
    assert row["ratio"] == pytest.approx((gradients[1].norm() / gradients[0].norm()).item())
    twice = gradient_conflict(model, [batches[0], batches[0]])
    assert all(r["cosine"] == pytest.approx(1) for r in twice if r["first"] == r["second"])  # no noise
    assert all(abs(r["cosine"]) < 1 - 1e-6 for r in rows)
    assert not any(r["first"] == r["second"] for r in gradient_conflict(model, batches[:1]))


def test_the_same_task_has_no_conflict_and_towers_apart_share_nothing_but_attention(rng):
    config = model_config(num_layers=1)
    model = MixtureOfTransformers(config)
    documents = random_documents(rng, 4, only=["text"])
    assert gradient_conflict(model, [pack(documents, config)]) == []  # one modality alone
    rows = gradient_conflict(model, batches_of(config, rng))
    shared = MixtureOfTransformers(model_config(num_layers=1, untied=[]))
    dense = gradient_conflict(shared, batches_of(shared.config, rng))
    found = {r["component"]: abs(r["cosine"]) for r in rows if (r["first"], r["second"]) == ("image", "speech")}
    other = {r["component"]: abs(r["cosine"]) for r in dense if (r["first"], r["second"]) == ("image", "speech")}
    assert found.get("ffn", 0) < other["ffn"]
