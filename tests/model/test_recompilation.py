"""What torch compiles for a GPU is compiled a few times, whatever documents come: a graph is traced, never computed."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.flash import flash
from helpers.rehearsal import SHIPPED, drawn_batches, drawn_document, sized
from torch.nn.attention import flex_attention as flex_module

from plait.batch.assemble import pack
from plait.model import attention
from plait.model.attention import MAX_KEYS, MOST_GRAPHS, AttentionPlan, attend, flex_length
from plait.model.mask import flex_tables, segments, varlen_calls
from plait.model.mot import MixtureOfTransformers
from plait.objectives import next_token, weighted_loss
from plait.objectives.diffusion import corrupt

LIMIT = 8
"""Graphs that torch keeps of one function, unless it is told to keep more (`plait.model.attention.allow_graphs`)."""
FEW = 3
"""A limit that is passed sooner."""
VALIDATED = 5
"""Every so many batches, one goes without gradients, as in validation."""


@pytest.fixture
def recompiled(monkeypatch):
    """Let FlexAttention trace on a CPU as it does on a GPU; compiled functions begin anew, and afterwards again."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)  # a CPU has no backward pass of it
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        attention._compiled_flex.cache_clear()
        next_token._fused.cache_clear()
        yield
    torch._dynamo.reset()
    attention._compiled_flex.cache_clear()
    next_token._fused.cache_clear()


class Compiler:
    """Stands before torch in a module, which compiles by another backend then."""

    def __init__(self, backend):
        self.compile = functools.partial(torch.compile, backend=backend)

    def __getattr__(self, name):
        return getattr(torch, name)


class Traced:
    """Stands in for torch's compiler: it keeps the graphs, and computes nothing."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        shapes = [node.meta["example_value"] for node in output.args[0]]
        return lambda *_: [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in shapes]


def compilations(path, count: int, monkeypatch, batch_tokens: int = 0) -> tuple[int, dict]:
    """Return the number of graphs of FlexAttention over some batches of a config, and what the batches were like."""
    config, grids = sized(path)
    if batch_tokens:
        config = replace(config, data=replace(config.data, batch_tokens=batch_tokens, max_document_tokens=0))
    traced, kinds = Traced(), {}
    monkeypatch.setattr(attention, "torch", Compiler(traced))
    for i, batch in enumerate(drawn_batches(config, grids, np.random.default_rng(0), count)):
        plan = AttentionPlan.of(segments(batch.spans), batch.num_tokens, torch.device("cuda")).ready()
        trains = i % VALIDATED > 0
        query, key = (torch.empty(batch.num_tokens, heads, 16, requires_grad=trains) for heads in (4, 2))
        with torch.set_grad_enabled(trains):
            out = attend(query, key, key, plan)
        assert out.shape == query.shape
        kind = (*plan.flex.first.shape, trains)
        kinds[kind] = kinds.get(kind, 0) + 1
    assert sum(kinds.values()) > 0.9 * count
    return len(traced.graphs), kinds


@pytest.mark.parametrize("name", ["bagel_like", "quickstart_worlds", "robot_all"])
def test_flex_attention_compiles_for_few_kinds_of_batches(recompiled, monkeypatch, name):
    """Over 200 batches, of at most 1024 tokens so that the documents are fewer, and the masks as different."""
    (path,) = (p for p in SHIPPED if p.stem == name)
    count, kinds = compilations(path, 200, monkeypatch, batch_tokens=1024)
    assert 1 < count <= LIMIT, f"{name}: {count} graphs for (tokens, ranges, gradients): batches {kinds}"


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_flex_attention_compiles_for_few_kinds_of_whole_batches(recompiled, monkeypatch, path):
    count, kinds = compilations(path, 200, monkeypatch)
    assert count <= LIMIT, f"{path.stem}: {count} graphs for (tokens, ranges, gradients): batches {kinds}"


def test_batches_of_any_size_are_attended_by_compiled_kernels(recompiled, monkeypatch):
    """Lengths of three doublings, as in fine-tuning by someone else's loop: none is left to torch's unfused way."""
    traced = Traced()
    monkeypatch.setattr(attention, "torch", Compiler(traced))
    config, grids = sized(next(p for p in SHIPPED if p.stem == "quickstart_transfusion"))
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(40):
        count = int(rng.integers(1, 60))
        batch = pack([drawn_document(config, grids, rng, i, 512) for i in range(count)], config.model)
        plan = AttentionPlan.of(segments(batch.spans), batch.num_tokens, torch.device("cuda")).ready()
        kinds.add(tuple(plan.flex.first.shape))
        with torch.no_grad():
            attend(*(torch.empty(batch.num_tokens, heads, 16) for heads in (4, 2, 2)), plan)
    assert LIMIT < len(kinds) == len(traced.graphs) <= MOST_GRAPHS // 4, kinds


@pytest.mark.parametrize(
    ("name", "count"),
    [("bagel_like", 5), *(pytest.param(n, 200, marks=pytest.mark.slow) for n in ("bagel_like", "quickstart_worlds"))],
)
def test_compiled_blocks_of_batches_that_differ_in_everything(recompiled, monkeypatch, name, count):
    """Both kinds of attention, any number of tokens, with gradients and without: training is not stopped for them."""

    def of(cls, found, num_tokens, device, dtype=torch.float32):
        calls = varlen_calls(found)
        if sum(len(call.keys) for call in calls) <= MAX_KEYS * num_tokens:
            return cls.by_varlen(found, calls, ("cpu", False))
        return cls(found, ("cpu", False), flex=flex_tables(found, flex_length(num_tokens)))

    def traced(graph, inputs):
        graphs.append(graph)
        for node in graph.graph.nodes:
            if node.target is torch.ops.higher_order.flex_attention:  # [T, T], where it is not compiled
                node.target = lambda query, *_: (query, None, None)
        graph.recompile()
        return graph

    monkeypatch.setattr(AttentionPlan, "of", classmethod(of))
    monkeypatch.setattr(attention, "varlen_attention", lambda: flash)
    config, grids = sized(next(p for p in SHIPPED if p.stem == name))
    small = {"width": 32, "ffn_width": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    towers = {n: replace(tower, width=32, ffn_width=32) for n, tower in config.model.towers.items()}
    model = MixtureOfTransformers(replace(config.model, towers=towers, **small))
    torch._dynamo.config.recompile_limit = FEW
    model.compile_blocks(backend=traced)
    graphs, flex, rng = [], set(), np.random.default_rng(0)
    for i in range(count):
        documents = [drawn_document(config, grids, rng, j, 512) for j in range(int(rng.integers(1, 12)))]
        batch = pack(documents, model.config)
        trains = i % VALIDATED > 0
        with torch.set_grad_enabled(trains):
            model(corrupt(batch, config.diffusion, i))
        flex.add(AttentionPlan.of(segments(batch.spans), batch.num_tokens, model.device).flex is not None)
    assert flex == {True, False} and FEW < len(graphs) <= MOST_GRAPHS // 2, len(graphs)


def test_losses_compile_for_any_number_of_targets(recompiled, monkeypatch):
    """What reads the logits on a GPU, of towers with many targets, few and none."""
    traced = []
    monkeypatch.setattr(next_token, "torch", Compiler(lambda graph, _: traced.append(graph) or graph))
    monkeypatch.setattr(next_token, "_fuses", lambda _: True)
    monkeypatch.setattr(next_token, "has_triton", lambda: True)
    config, grids = sized(next(p for p in SHIPPED if p.stem == "quickstart"))
    rng = np.random.default_rng(0)
    model = MixtureOfTransformers(replace(config.model, num_layers=1))
    for count in (3, 1, 9, 2, 1, 5, 4, 30, 1, 1, 2, 7):
        batch = pack([drawn_document(config, grids, rng, i, 512) for i in range(count)], config.model)
        corrupt(batch, config.diffusion, 0)
        widths = [tower.width for tower in config.model.towers.values()]
        sizes = zip(batch.routing.padded_sizes, widths, strict=True)
        hidden = [torch.zeros(size, requires_grad=True) for size in sizes]
        total, _ = weighted_loss(model, hidden, batch, torch.ones(len(config.model.modalities)), z_loss=1e-4)
        total.backward()
    assert 2 <= len(traced) <= LIMIT, len(traced)
