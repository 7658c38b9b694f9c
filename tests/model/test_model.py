"""The model's equalities, in float64 over random cases (docs/design.md, section 4)."""

import copy
import re

import numpy as np
import pytest
import torch
from helpers.dense_copies import copy_to_dense, in_sequence
from helpers.models import Forbidden, model_config, random_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from plait.batch.assemble import assemble, pack, spell
from plait.batch.documents import Document
from plait.config.generation import DiffusionConfig
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained, save_pretrained
from plait.model.rope import frequencies, rotation
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

ONE_TOWER = {"text": "all", "image": "all", "speech": "all", "mel": "all"}


def build(config: ModelConfig, seed: int = 0) -> MixtureOfTransformers:
    return MixtureOfTransformers(config, seed=seed).double()


def grads(model) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_one_tower_is_the_dense_transformer(rng, norm_order):
    config = model_config(towers=ONE_TOWER, norm_order=norm_order)
    model = build(config)
    dense = copy_to_dense(model, "all")
    batch = pack(random_documents(rng, 6), config)
    hidden = in_sequence(model(batch), batch)
    expected = dense(batch.ids, batch.lengths)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-10)
    weight = torch.randn_like(expected)
    (hidden * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(
        model.blocks[0].ffn["all"].gate.weight.grad, dense.blocks[0].gate.weight.grad, rtol=0, atol=1e-10
    )
    torch.testing.assert_close(model.embed["all"].weight.grad, dense.embed.weight.grad, rtol=0, atol=1e-10)


def same_towers(config: ModelConfig, source: MixtureOfTransformers, tower: str) -> MixtureOfTransformers:
    """A model of ``config`` in which every tower is a copy of the source's one tower."""
    model = build(config)
    state = source.state_dict()
    names = "|".join([*config.towers, "shared"])
    renamed = {}
    for name in model.state_dict():
        plain = re.sub(rf"\.({names})\.", f".{tower}.", name, count=1)
        renamed[name] = state.get(plain, state.get(name))
    model.load_state_dict(renamed)
    return model


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6),
       only=st.sampled_from([None, ("text",), ("image", "speech"), ("speech",)]),
       untied=st.sampled_from([["qkv", "o", "ffn", "norm"], ["ffn"], ["qkv"], [], {"0": ["qkv", "norm"], "1": ["o"]}]),
       pad=st.sampled_from([1, 8, 32]))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_identical_towers_are_dense_and_their_gradients_sum(seed, count, only, untied, pad):
    dense_config = model_config(towers=ONE_TOWER)
    dense = build(dense_config)
    config = model_config(untied=untied)
    model = same_towers(config, dense, "all")
    documents = random_documents(np.random.default_rng(seed), count, only=only)
    batches = pack(documents, dense_config, pad_rows_to=pad), pack(documents, config, pad_rows_to=pad)
    losses = [loss_sums(m, m(b), b, z_loss=1e-3) for m, b in zip((dense, model), batches)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-9)
    for loss in losses:
        loss.sum().backward()
    total: dict[str, torch.Tensor] = {}
    for name, grad in grads(model).items():
        assert grad is not None, name
        plain = re.sub(r"\.(text|image|speech|shared)\.", ".all.", name, count=1)
        total[plain] = total.get(plain, 0) + grad
    for name, grad in grads(dense).items():
        torch.testing.assert_close(total[name], grad, rtol=0, atol=1e-9, msg=name)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), axes=st.sampled_from([1, 3]),
       later_sees=st.sampled_from(["noised", "clean_copy", "nothing"]))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_packed_equals_unpacked(seed, count, axes, later_sees):
    config = model_config(mel=True, position_axes=["time", "height", "width"][:axes], later_sees=later_sees)
    model = build(config)
    documents = random_documents(np.random.default_rng(seed), count, mel=True)
    together = corrupt(pack(documents, config), DiffusionConfig(), 1)
    alone = [corrupt(pack([d], config), DiffusionConfig(), 1) for d in documents]
    loss = loss_sums(model, model(together), together)
    losses = sum(loss_sums(model, model(b), b) for b in alone)
    torch.testing.assert_close(loss, losses, rtol=0, atol=1e-9)
    np.testing.assert_allclose(together.counts, np.sum([b.counts for b in alone], axis=0))
    hidden = in_sequence(model(together), together)
    pieces = torch.cat([in_sequence(model(b), b) for b in alone])
    torch.testing.assert_close(hidden, pieces, rtol=0, atol=1e-10)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_cached_equals_uncached(seed, count):
    """Documents cut at random places and appended bit by bit give the hidden states of the whole."""
    config = model_config()
    model = build(config)
    rng = np.random.default_rng(seed)
    sequences = [spell(d, config) for d in random_documents(rng, count)]
    whole = assemble(sequences, config)
    expected = in_sequence(model(whole), whole).split(whole.lengths)
    tokens = [[(run, i) for run in s for i in range(len(run))] for s in sequences]
    cache = model.new_cache(count, max(whole.lengths))
    rows = [cache.add_row() for _ in sequences]
    done, got = [0] * count, [[] for _ in sequences]
    while any(d < len(t) for d, t in zip(done, tokens)):
        active = [r for r in rows if done[r] < len(tokens[r])]
        steps = [int(rng.integers(1, 4)) if rng.random() < 0.5 else 1 for _ in active]
        steps = [min(n, len(tokens[r]) - done[r]) for n, r in zip(steps, active)]
        cut = [[one_token(*t) for t in tokens[r][done[r] : done[r] + n]] for n, r in zip(steps, active)]
        batch = assemble(cut, config, first_positions=[done[r] for r in active])
        with torch.no_grad():
            hidden = in_sequence(model(batch, cache.step(batch, active)), batch).split(batch.lengths)
        for r, n, h in zip(active, steps, hidden):
            got[r].append(h)
            done[r] += n
    for r in rows:
        torch.testing.assert_close(torch.cat(got[r]), expected[r], rtol=0, atol=1e-10)


def one_token(run, i):
    piece = copy.copy(run)
    piece.ids = run.ids[i : i + 1]
    return piece


def test_dropping_a_cache_row_moves_the_last_one(rng):
    config = model_config()
    model = build(config)
    documents = random_documents(rng, 3)
    sequences = [spell(d, config, close=False) for d in documents]
    batch = assemble(sequences, config)
    cache = model.new_cache(3, 64)
    rows = [cache.add_row() for _ in sequences]
    with torch.no_grad():
        model(batch, cache.step(batch, rows))
        cache.drop_row(0)
        last = assemble([[sequences[0][0]]], config, first_positions=[batch.lengths[2]])
        got = in_sequence(model(last, cache.step(last, [0])), last)
        full = assemble([sequences[2] + [sequences[0][0]]], config)
        expected = in_sequence(model(full), full)[-1:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_towers_of_different_width(rng):
    towers = {
        "text": TowerConfig(width=16),
        "image": TowerConfig(width=24, ffn_width=40),
        "speech": TowerConfig(width=8),
    }
    config = model_config(head_dim=8)
    config = ModelConfig(modalities=config.modalities, towers=towers, num_layers=2, num_heads=2, head_dim=8)
    model = build(config)
    batch = pack(random_documents(rng, 5), config)
    loss_sums(model, model(batch), batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model(batch)[1].shape[1] == 24


class CountedProducts(TorchDispatchMode):
    """Counts matrix products and calls of attention."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "segment_attention")
        return func(*args, **(kwargs or {}))


def test_activation_checkpointing_changes_nothing(rng):
    config = model_config()
    batch = pack(random_documents(rng, 5), config)
    found, products = [], []
    for recompute in ("none", "full", "selective"):
        model = build(config)
        model.recompute_blocks = recompute
        loss = loss_sums(model, model(batch), batch).sum()
        with CountedProducts() as counted:
            loss.backward()
        found.append(grads(model))
        products.append(counted.count)
    torch.testing.assert_close([found[0], found[0]], found[1:], rtol=0, atol=1e-12)
    assert products[0] == products[2] < products[1]  # selective computes no product and no attention again


@pytest.mark.parametrize("settings", [
    {"tie_embeddings": True}, {"qkv_bias": True}, {"rope_scaling": 4.0}, {"qk_norm": False}, {"norm_order": "post"},
    {"num_kv_heads": 2}, {"untied": []}, {"position_axes": ["time", "height", "width"]},
    {"later_sees": "clean_copy"}, {"later_sees": "nothing"}, {"attention": "causal"},
], ids=str)  # fmt: skip
def test_every_setting_trains_and_survives_saving(settings, rng, tmp_path):
    config = model_config(mel=True, **settings)
    model = build(config)
    batch = corrupt(pack(random_documents(rng, 6, mel=True), config), DiffusionConfig(), 0)
    loss = loss_sums(model, model(batch), batch)
    loss.sum().backward()
    assert loss.isfinite().all() and all(p.grad is not None for p in model.parameters())
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path).double()
    torch.testing.assert_close(loss_sums(again, again(batch), batch), loss, rtol=1e-12, atol=1e-12)


def test_tied_embeddings_score_with_the_embedding():
    model = build(model_config(tie_embeddings=True))
    assert not hasattr(model, "head") and model.head_weights() is model.embed


def test_rope_scaling_stretches_positions(rng):
    """Scaled positions are the unscaled ones of a sequence that many times slower."""
    plain, scaled = build(model_config()), build(model_config(rope_scaling=4.0))
    scaled.load_state_dict(plain.state_dict())
    batch = pack(random_documents(rng, 2), plain.config)
    expected = in_sequence(scaled(batch), batch)
    batch.positions = batch.positions / 4
    torch.testing.assert_close(in_sequence(plain(batch), batch), expected, rtol=0, atol=1e-12)


def test_compiled_once_for_all_batches_and_equal_to_eager(rng):
    """200 batches of changing mixes, some without a modality: one graph, no break (the blocks ask for a full one).

    The backend runs the same kernels, so only tracing is tested.
    """
    config = model_config(mel=True)
    eager, compiled = build(config), build(config)
    torch._dynamo.reset()
    counters.clear()
    compiled.compile_blocks(backend="aot_eager")
    sizes = set()
    for number in range(200):
        few = random_documents(rng, int(rng.integers(1, 16)), mel=True)
        if number % 3 == 0:  # one modality alone: the other towers have padding rows only
            few = [Document([part]) for document in few for part in document.parts[:1]]
        batch = corrupt(pack(few, config), DiffusionConfig(), 0)
        sizes.add(tuple(batch.routing.padded_sizes))
        compiled.zero_grad()
        loss_sums(compiled, compiled(batch), batch).sum().backward()
        if number % 40 == 0:
            eager.zero_grad()
            loss_sums(eager, eager(batch), batch).sum().backward()
            torch.testing.assert_close(grads(eager), grads(compiled), rtol=0, atol=1e-10)
    assert len(sizes) > 10
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("moe", [None, "token_choice", "expert_choice"])
def test_no_synchronisation_in_forward_and_backward(rng, moe):
    config = model_config(mel=True)
    if moe:
        towers = {t: TowerConfig(ffn="moe", moe_routing=moe, ffn_width=24) for t in config.towers}
        config = ModelConfig(modalities=config.modalities, towers=towers, width=16, num_layers=2, num_heads=2)
    model = MixtureOfTransformers(config)
    if moe == "token_choice":
        model = model.double()  # torch's own grouped_mm reads the group ends inside its CPU kernel
    batch = corrupt(pack(random_documents(rng, 5, mel=True), config), DiffusionConfig(), 0)
    with Forbidden() as watch:
        loss_sums(model, model(batch), batch).sum().backward()
    assert watch.count > 100
    assert watch.seen == []
    with Forbidden() as watch:  # the watch itself sees what it should
        batch.ids[batch.ids > 3].sum().item()
    assert {"index", "_local_scalar_dense"} <= set(watch.seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_synchronisation_on_cuda(rng):
    config = model_config(width=64)
    model = MixtureOfTransformers(config).cuda()
    batch = pack(random_documents(rng, 5), config).to("cuda")
    loss_sums(model, model(batch), batch)  # compiles the attention kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_sums(model, model(batch), batch).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_initialisation_is_keyed_by_name():
    small, large = MixtureOfTransformers(model_config()), MixtureOfTransformers(model_config(mel=True))
    name = "blocks.1.qkv.image.weight"
    assert torch.equal(small.get_parameter(name), large.get_parameter(name))
    assert not torch.equal(small.get_parameter(name), MixtureOfTransformers(model_config(), seed=1).get_parameter(name))


def test_appending_a_modality_shifts_no_id():
    before, after = model_config().layout, model_config(mel=True).layout
    assert all(before.offsets[n] == after.offsets[n] for n in before.names)
    assert (before.bos, before.opening["speech"]) == (after.bos, after.opening["speech"])


def test_role_routing_sends_one_modality_to_two_towers(rng):
    modalities = {
        "text": ModalityConfig(vocab_size=20, tower="understanding"),
        "image": ModalityConfig(vocab_size=12, tower="understanding", tower_by_role={"generation": "generation"}),
    }
    config = ModelConfig(modalities=modalities, width=16, num_layers=1, num_heads=2)
    documents = random_documents(rng, 2, only=("image",))
    documents[0].parts[0].role = "understanding"
    batch = pack(documents[:1], config)
    first = len(documents[0].parts[0])
    assert batch.routing.sizes == [
        batch.num_tokens - sum(len(p) for p in documents[0].parts[1:]),
        sum(len(p) for p in documents[0].parts[1:]),
    ]
    assert first > 0


def test_an_empty_document_still_runs():
    config = model_config()
    batch = pack([Document([])], config)
    assert batch.num_tokens == 2
    assert [h.shape[0] for h in build(config)(batch)] == [32, 32, 32]


def test_every_axis_has_fast_and_slow_frequencies():
    """A step along any axis turns some pair by about a radian, and some hardly: no axis is left without position."""
    for axis in range(3):
        positions = torch.zeros(2, 3)
        positions[1, axis] = 1
        cos, sin = rotation(positions, frequencies(64, 10000.0), torch.float64)
        turned = torch.atan2(sin, cos)[1, 0]
        turned = turned[turned > 0]
        assert turned.max() > 0.5 and turned.min() < 1e-2 and len(turned) in (10, 11)
