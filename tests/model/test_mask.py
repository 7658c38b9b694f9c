"""The mask rule, and that all of its forms say the same."""

import numpy as np
import pytest
import torch
from helpers.flash import flash_by_sequence
from helpers.models import model_config, random_documents, random_part
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, flex_attention

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.model import attention
from plait.model.attention import AttentionPlan, attend, flex_length, new_plan, plan_for
from plait.model.mask import dense_mask, flex_tables, segments, varlen_calls
from plait.model.segment_attention import LONG, PIECE, table_of


def rule(batch) -> torch.Tensor:
    """The rule token by token: own document, up to itself but for hidden spans, all of its own bidirectional span."""
    span_of = {t: s for s in batch.spans for t in range(s.start, s.stop)}
    n = batch.num_tokens
    seen = torch.zeros(n, n, dtype=torch.bool)
    for q in range(n):
        for k in range(n):
            a, b = span_of[q], span_of[k]
            if a is b:
                seen[q, k] = k <= q or a.bidirectional
            else:
                seen[q, k] = a.document == b.document and k <= q and not b.hidden
    return seen


SCHEMES = [
    (sees, attention) for sees in ("noised", "clean_copy", "nothing") for attention in ("bidirectional", "causal")
]


def random_batch(seed: int, count: int):
    """Documents of all schemes in turn: what later tokens see, and attention within a span."""
    sees, attention = SCHEMES[seed % len(SCHEMES)]
    config = model_config(mel=True, later_sees=sees, attention=attention)
    return pack(random_documents(np.random.default_rng(seed), count, mel=True), config)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_dense_mask_is_the_rule(seed, count):
    batch = random_batch(seed, count)
    assert torch.equal(dense_mask(segments(batch.spans), batch.num_tokens), rule(batch))


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), block=st.sampled_from([4, 16, 128]))
@settings(max_examples=25, deadline=None)
def test_block_mask_equals_dense_mask(seed, count, block):
    batch = random_batch(seed, count)
    found, n = segments(batch.spans), batch.num_tokens
    expected = dense_mask(found, n)
    flex = flex_tables(found, n, block).block_mask()
    assert torch.equal(create_mask(flex.mask_mod, 1, 1, n, n, device="cpu")[0, 0], expected)
    padded = torch.zeros(-(-n // block) * block, -(-n // block) * block, dtype=torch.bool)
    padded[:n, :n] = expected
    tiles = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block))
    any_seen = tiles.any(dim=3).any(dim=1)
    listed = flex.to_dense()[0, 0].bool()
    assert torch.equal(listed, any_seen)


@pytest.mark.parametrize("groups", [1, 2])
def test_segment_attention_equals_masked_attention(groups):
    for seed in range(12):
        batch = random_batch(seed, 4)
        found, n = segments(batch.spans), batch.num_tokens
        q, k, v = (torch.randn(n, h, 8, dtype=torch.float64) for h in (2, groups, groups))
        out = attend(q, k, v, AttentionPlan.of(found, n, torch.device("cpu")))
        wide = [x.repeat_interleave(2 // x.shape[1], 1).transpose(0, 1) for x in (q, k, v)]
        expected = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=dense_mask(found, n))
        torch.testing.assert_close(out, expected.transpose(0, 1), rtol=0, atol=1e-12)


def test_long_causal_runs_go_through_whole():
    text = [Document([Part("text", np.zeros(n, np.int64))]) for n in (40, LONG, 200)]
    found = segments(pack(text, model_config()).spans)
    table = table_of(found)[:-1]
    assert [b - a for a, b, *_ in table.tolist()] == [42, LONG + 2, PIECE, 202 - PIECE]
    n = found[-1].stop
    q, k, v = (torch.randn(n, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    gradient = torch.randn(n, 2, 8, dtype=torch.float64)
    attend(q, k, v, AttentionPlan.of(found, n, torch.device("cpu"))).backward(gradient)
    expected = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    sides = [x.transpose(0, 1) for x in expected]
    out = torch.nn.functional.scaled_dot_product_attention(*sides, attn_mask=dense_mask(found, n))
    out.backward(gradient.transpose(0, 1))
    for mine, wanted in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_varlen_calls_equal_masked_attention(seed, count):
    """Each sequence attends to its own keys alone, causal ones aligned at the end, as flash attention does."""
    batch = random_batch(seed, count)
    found, n = segments(batch.spans), batch.num_tokens
    q, k, v = (torch.randn(2, n, 8, dtype=torch.float64) for _ in range(3))
    out = torch.full_like(q, torch.nan)
    calls = varlen_calls(found)
    for call in calls:
        for i in range(len(call.query_offsets) - 1):
            queries = call.queries[call.query_offsets[i] : call.query_offsets[i + 1]]
            keys = call.keys[call.key_offsets[i] : call.key_offsets[i + 1]]
            mask = torch.ones(len(queries), len(keys), dtype=torch.bool)
            mask = mask.tril(len(keys) - len(queries)) if call.causal else mask
            sides = q[:, queries], k[:, keys], v[:, keys]
            out[:, queries] = torch.nn.functional.scaled_dot_product_attention(*sides, attn_mask=mask)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(found, n))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert sorted(np.concatenate([c.queries for c in calls])) == list(range(n))  # every token attends once
    assert len(calls) <= 2


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_attention_by_varlen_calls_equals_masked_attention(seed, count):
    """The plan of a GPU, with torch's kernel written out, outputs and gradients; two heads share a key."""
    batch = random_batch(seed, count)
    found, n = segments(batch.spans), batch.num_tokens
    inputs = [torch.randn(n, h, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_attention", lambda: flash_by_sequence)
        plan = AttentionPlan.by_varlen(found, varlen_calls(found))
        out = attend(*inputs, plan)
    q, k, v = (x.repeat_interleave(4 // x.shape[1], 1).transpose(0, 1) for x in inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(found, n))
    weight = torch.randn_like(out)
    torch.testing.assert_close(out, expected.transpose(0, 1), rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, inputs, weight) for x in (out, expected.transpose(0, 1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_the_scheme_of_cosmos_needs_no_copies_of_keys(rng):
    """Where nothing sees diffusion tokens, a document's causal tokens are one sequence with its own keys."""
    documents = [
        Document([random_part(rng, name) for name in ("text", "mel", "text", "mel", "text")]) for _ in range(3)
    ]
    for part in (p for d in documents for p in d.parts):
        part.role = "generation"
    batch = pack(documents, model_config(mel=True, later_sees="nothing"))
    causal, spans = varlen_calls(segments(batch.spans))
    assert causal.causal and not spans.causal
    np.testing.assert_array_equal(causal.queries, causal.keys)
    assert len(causal.query_offsets) - 1 == 3 and len(spans.query_offsets) - 1 == 6


def test_a_gpus_kernel_is_compiled_for_few_shapes():
    """FlexAttention's kernel is compiled anew for each number of ranges and each length: both come in few sizes."""
    found = [segments(random_batch(seed, 4).spans) for seed in range(30)]
    counts = {max(len(s.keys) for s in one) for one in found}
    tables = [flex_tables(one, flex_length(one[-1].stop)) for one in found]
    assert counts == {1, 2, 3} and {t.first.shape[1] for t in tables} == {1, 2, 4}
    lengths = {flex_length(n) for n in range(4096, 65536, 7)}
    assert len(lengths) == 17 and all(flex_length(n) >= n for n in lengths)
    assert all(flex_length(n) <= 1.26 * n for n in range(4097, 65536, 11))


def test_a_plan_that_came_with_the_batch_is_used(monkeypatch):
    """Made by the loader's threads, for the device and the precision that attends; another one is made anew."""
    batch, cpu = random_batch(3, 4), torch.device("cpu")
    batch.attention = new_plan(batch, cpu, torch.float32)
    moved = batch.to("cpu").attention
    assert moved.segments is batch.attention.segments and torch.equal(moved.table, batch.attention.table)
    made = []
    monkeypatch.setattr(attention, "new_plan", lambda *given: made.append(given) or new_plan(*given))
    assert plan_for(batch, cpu, torch.bfloat16) is batch.attention and not made
    batch.attention = AttentionPlan(batch.attention.segments, ("cuda", True))
    assert plan_for(batch, cpu, torch.float32).table is not None and len(made) == 1


def test_flex_attention_takes_the_block_mask():
    batch = random_batch(1, 6)
    found, n = segments(batch.spans), batch.num_tokens
    q, k, v = (torch.randn(1, 2, n, 16) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(found, n))
    out = flex_attention(q, k, v, block_mask=flex_tables(found, n, 16).block_mask())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    longer = n + 37  # padded, as on a GPU
    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 37)) for x in (q, k, v))
    out = flex_attention(q, k, v, block_mask=flex_tables(found, longer, 16).block_mask())
    torch.testing.assert_close(out[:, :, :n], expected, rtol=1e-4, atol=1e-5)
    assert out.isfinite().all()
