"""The KV caches: what went through one bit by bit equals the whole, however its rows come, go and share."""

import copy

import numpy as np
import pytest
import torch
from helpers.models import model_config, random_documents, random_part
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.batch.assemble import Run, assemble, spell
from plait.common.errors import ResourceError
from plait.model import cache as cache_module
from plait.model.mot import MixtureOfTransformers
from plait.model.pages import PagedKVCache

PAGE_SIZES = [0, 1, 3, 16]
"""0 is the static cache."""


def build(**settings) -> MixtureOfTransformers:
    return MixtureOfTransformers(model_config(mel=True, **settings)).double().requires_grad_(False)


def new_cache(model, page_size: int, num_rows: int, max_length: int, num_tokens: int = 0):
    cache = model.new_cache(num_rows, max_length)
    if not page_size:
        return cache
    return PagedKVCache.beside(cache, max_length, page_size=page_size, num_tokens=num_tokens)


def in_sequence(hidden, batch) -> torch.Tensor:
    return torch.cat(hidden).index_select(0, batch.routing.to_sequence)


class Feeder:
    """Sequences of runs fed to rows of a cache piece by piece, compared with the whole in one pass."""

    def __init__(self, model, cache, sequences):
        self.model, self.cache = model, cache
        whole = assemble(sequences, model.config)
        self.expected = in_sequence(model(whole), whole).split(whole.lengths)
        # latents go whole, ids one by one or together
        self.pieces = [[p for run in s for p in pieces_of(run)] for s in sequences]
        self.done, self.position, self.got = [0] * len(sequences), [0.0] * len(sequences), [[] for _ in sequences]

    def feed(self, sequences: list[int], rows: list[int], counts: list[int]) -> None:
        fed = [self.pieces[d][self.done[d] : self.done[d] + n] for d, n in zip(sequences, counts, strict=True)]
        batch = assemble(fed, self.model.config, first_positions=[self.position[d] for d in sequences])
        hidden = in_sequence(self.model(batch, self.cache.step(batch, rows)), batch).split(batch.lengths)
        for d, n, h, after in zip(sequences, counts, hidden, batch.next_positions, strict=True):
            self.got[d].append(h)
            self.done[d] += n
            self.position[d] = after

    def left(self, d: int) -> int:
        return len(self.pieces[d]) - self.done[d]

    def check(self) -> None:
        for got, expected in zip(self.got, self.expected, strict=True):
            torch.testing.assert_close(torch.cat(got), expected, rtol=0, atol=1e-10)


def pieces_of(run) -> list:
    if run.ids is None or run.grid:
        return [run]
    pieces = [copy.copy(run) for _ in range(len(run))]
    for i, piece in enumerate(pieces):
        piece.ids = run.ids[i : i + 1]
    return pieces


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), heads=st.sampled_from([1, 2]))
@settings(max_examples=12, deadline=None)
def test_bit_by_bit_equals_the_whole(page_size, seed, count, heads):
    """Rows of all lengths, some fed and some not; each is dropped when it is done, and the last takes its place."""
    model = build(num_kv_heads=heads, num_heads=2, position_axes=["time", "row", "column"], head_dim=8)
    rng = np.random.default_rng(seed)
    sequences = [spell(d, model.config, noised=False) for d in random_documents(rng, count, mel=True)]
    cache = new_cache(model, page_size, count, max(sum(map(len, s)) for s in sequences))
    feeder = Feeder(model, cache, sequences)
    owner = [d for d in range(count) if cache.add_row() == d]  # by row
    while owner:
        rows = list(range(len(owner))) if rng.random() < 0.5 else [r for r in range(len(owner)) if rng.random() < 0.7]
        if not rows:
            continue
        most = 1 if rng.random() < 0.3 else int(rng.integers(2, 40))
        counts = [min(int(rng.integers(1, most + 1)), feeder.left(owner[r])) for r in rows]
        feeder.feed([owner[r] for r in rows], rows, counts)
        for row in reversed(range(len(owner))):
            if not feeder.left(owner[row]):
                cache.drop_row(row)
                owner[row] = owner[-1]
                owner.pop()
    feeder.check()
    assert cache.num_free == cache.num_pages and cache.lengths == []


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_rows_that_share_a_beginning_go_their_own_ways(rng, page_size):
    """A row takes the first tokens of another; the other goes on, is cut back, or leaves, and nothing is mixed up."""
    model = build()
    documents = random_documents(rng, 3, only=("text", "speech"))
    for document in documents[1:]:
        document.parts = [documents[0].parts[0], *document.parts]
    sequences = [spell(d, model.config) for d in documents]
    cache = new_cache(model, page_size, 3, 64)
    feeder = Feeder(model, cache, sequences)
    common = 1 + len(documents[0].parts[0])
    assert cache.add_row() == 0
    feeder.feed([0], [0], [min(common + 2, feeder.left(0))])
    for d in (1, 2):
        assert cache.add_row() == d
        cache.share(d, 0, common)
        feeder.done[d] = common
        feeder.position[d] = float(common)
        feeder.got[d] = [feeder.expected[d][:common]]
    feeder.feed([1], [1], [2])
    while feeder.left(0):
        feeder.feed([0], [0], [1])
    cache.drop_row(0)  # row 2 takes its place
    while feeder.left(1) and feeder.left(2):
        feeder.feed([2, 1], [0, 1], [1, 1])
    for d in range(3):
        got = torch.cat(feeder.got[d])
        torch.testing.assert_close(got, feeder.expected[d][: len(got)], rtol=0, atol=1e-10)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_shared_pages_are_held_once(page_size):
    model = build()
    cache = new_cache(model, page_size, 8, 64)
    cache.add_row()
    cache.reserve([0], [33])
    cache.lengths[0] = 33
    cache.keys[:, cache.table[0, : cache.num_held(0)]] = 1.0
    used = cache.num_pages - cache.num_free
    rows = cache.spread(0, 5)
    tail = 33 % page_size > 0
    assert rows == [0, 1, 2, 3, 4] and cache.lengths == [33] * 5
    assert cache.num_pages - cache.num_free == used + 4 * tail
    cache.truncate(32 - page_size // 2)
    for row in rows:  # each writes to a page of its own
        cache.reserve([row], [cache.lengths[row] + 1])
    written = {int(cache.table[row, cache.lengths[row] // page_size]) for row in rows}
    assert len(written) == 5
    for _ in rows:
        cache.drop_row(0)
    assert cache.num_free == cache.num_pages and not cache.users.any()


def test_a_cache_that_is_full_says_so():
    model = build()
    assert new_cache(model, 16, 3, 17).num_pages == 6  # whole rows for everyone
    cache = new_cache(model, 4, 2, 64, num_tokens=16)
    cache.add_row()
    cache.reserve([0], [16])
    cache.add_row()
    with pytest.raises(ResourceError, match=r"4 pages of 4 tokens are all in use; drop a row"):
        cache.reserve([1], [1])
    with pytest.raises(ResourceError, match=r"2 rows are all in use; drop a row"):
        cache.add_row()


@pytest.mark.parametrize("page_size", [0, 3])
def test_long_prompts_go_together(rng, monkeypatch, page_size):
    """Rows that begin are attended by one call a layer, beside rows that decode, which are another."""
    model = build(num_heads=4, num_kv_heads=2)
    documents = random_documents(rng, 6, mel=True)
    for document in documents:
        document.parts.append(random_part(rng, "text", 80))
    sequences = [spell(d, model.config, noised=False) for d in documents]
    cache = new_cache(model, page_size, 6, 160)
    feeder = Feeder(model, cache, sequences)
    calls = []
    for name in ("attend", "attend_rows", "attend_one_token", "attend_segments"):
        function = getattr(cache_module, name)
        monkeypatch.setattr(cache_module, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
    for d in range(6):
        assert cache.add_row() == d
    feeder.feed([0, 1, 2], [0, 1, 2], [feeder.left(d) - 5 for d in range(3)])
    assert calls == ["attend"] * model.config.num_layers
    calls.clear()
    feeder.feed(list(range(6)), list(range(6)), [1, 1, 1, *(feeder.left(d) - 5 for d in (3, 4, 5))])
    assert sorted(calls) == sorted(["attend", "attend_one_token"] * model.config.num_layers)
    while feeder.left(0):
        rows = [r for r in range(6) if feeder.left(r)]
        feeder.feed(rows, rows, [1] * len(rows))
    feeder.feed([3, 4, 5], [3, 4, 5], [1] * 3)
    feeder.check()


def test_one_token_attends_as_the_plain_kernel(rng, monkeypatch):
    """Two batched products equal scaled_dot_product_attention, with heads that share keys."""
    model = build(num_heads=4, num_kv_heads=2)
    sequences = [spell(d, model.config) for d in random_documents(rng, 4, only=("text",))]
    found = []
    for by_products in (True, False):
        monkeypatch.setattr(cache_module, "attends_by_products", lambda keys, b=by_products: b)
        cache = new_cache(model, 0, 4, 64)
        feeder = Feeder(model, cache, sequences)
        rows = [cache.add_row() for _ in sequences]
        for _ in range(min(map(len, feeder.pieces))):
            feeder.feed(rows, rows, [1] * 4)
        found.append(torch.cat([torch.cat(g) for g in feeder.got]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_few_long_rows_go_apart():
    assert cache_module.together([10, 10, 200]) == (200, [])
    assert cache_module.together([10, 3000, 12, 11]) == (12, [(1, 3000)])
    assert cache_module.together([3000, 3001, 2999]) == (3001, [])
    assert cache_module.together([4000, 20, 20, 5000, 20, 20]) == (20, [(3, 5000), (0, 4000)])
    assert cache_module.together([7]) == (7, [])
    rng = np.random.default_rng(0)
    for _ in range(50):  # against all sets of longest rows
        ends = sorted((10 ** rng.uniform(0, 4, 6)).astype(int), reverse=True)
        costs = [6 * ends[k] + sum(ends[:k]) + k * cache_module.APART for k in range(6)]
        longest, apart = cache_module.together(ends)
        assert 6 * longest + sum(n for _, n in apart) + len(apart) * cache_module.APART == min(costs)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_rows_apart_equal_rows_together(rng, monkeypatch, page_size):
    """With no cost of their own, all but the shortest rows go apart, in every step."""
    monkeypatch.setattr(cache_module, "APART", 0)
    model = build(num_heads=4, num_kv_heads=2)
    sequences = [[Run("text", rng.integers(0, 20, 20))] for _ in range(5)]
    cache = new_cache(model, page_size, 5, 64)
    feeder = Feeder(model, cache, sequences)
    rows = [cache.add_row() for _ in sequences]
    feeder.feed(rows, rows, [1, 9, 2, 1, 12])
    apart = 0
    while all(feeder.left(r) > 1 for r in rows):
        apart += len(cache_module.together([n + 1 for n in cache.lengths])[1])
        feeder.feed(rows, rows, [1] * 5)
        feeder.feed(rows, rows, [2 if all(feeder.left(r) > 1 for r in rows) else 1] * 5)
    assert apart > 5
    for got, expected in zip(feeder.got, feeder.expected, strict=True):
        got = torch.cat(got)
        torch.testing.assert_close(got, expected[: len(got)], rtol=0, atol=1e-10)
