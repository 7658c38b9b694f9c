"""Decoding: the step whose shapes are few, what requests share, which are admitted, and what the device is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.generation import GRIDS, General, build, parts_of, requests, run, uneven
from helpers.models import Forbidden, model_config, random_part, with_modality

from plait.batch.assemble import Run
from plait.batch.documents import Part
from plait.common.errors import ConfigError, ResourceError
from plait.config.generation import DiffusionConfig, GenerateConfig, SamplingConfig
from plait.generate import Generator, Request, generate, prefixes
from plait.generate.decoding import Decoder, bucket
from plait.generate.graphs import Graphs
from plait.generate.room import most_tokens
from plait.generate.sampling import Limits, sample
from plait.model.mot import MixtureOfTransformers
from plait.run.load import Pipeline

MIXED = {"image": SamplingConfig(guidance=2.5, top_p=0.9), "text": SamplingConfig(temperature=0.7, top_k=5),
         "speech": SamplingConfig(temperature=0)}  # fmt: skip


@pytest.mark.parametrize("page_size", [0, 4])
@pytest.mark.parametrize("make", [build, uneven])
def test_the_short_way_and_padded_shapes_equal_the_general_step(rng, monkeypatch, make, page_size):
    """Rows of all modalities, guided and not, that finish at different times; shapes padded as for CUDA graphs."""
    model = make()
    asked = requests(rng, 16, sampling=MIXED)
    engines = [
        kind(model, grids=GRIDS, max_rows=6, max_length=64, page_size=page_size) for kind in (General, Generator)
    ]
    padded = Generator(model, grids=GRIDS, max_rows=6, max_length=64, page_size=page_size)
    padded._decoder = Decoder(model, padded.cache, padded._allowed, pad=True)
    shapes = set()
    forward = padded._decoder.forward
    padded._decoder.run = lambda ints, floats, shape: shapes.add(shape) or forward(ints, floats, shape)
    monkeypatch.setattr("plait.generate.decoding.LONGEST_STEP", 16)
    monkeypatch.setattr("plait.model.cache.APART", 8)
    found = [parts_of(run(engine, asked)) for engine in (*engines, padded)]
    assert found[0] == found[1] == found[2]
    assert len(shapes) > 3 and all(bucket(n) == n for s in shapes for n in (*s.towers, s.draw.num_rows))
    assert any(s.num_streams > 2 and sum(s.towers) > s.num_streams for s in shapes)


def test_replayed_steps_equal_those_that_run_every_time(rng, monkeypatch):
    """Graphs keep arrays and output of their own for each shape; here a replay runs the function once more."""

    def capture(function):
        out, number = function(), len(calls)
        calls.append(0)

        def replay():
            calls[number] += 1
            out.ids.copy_(function().ids)

        return replay, out

    calls: list[int] = []
    monkeypatch.setattr("plait.generate.graphs.MOST_GRAPHS", 3)
    model = build()
    asked = requests(rng, 12, sampling=MIXED)
    plain, replayed = (Generator(model, grids=GRIDS, max_rows=6, max_length=64) for _ in range(2))
    replayed._decoder = Decoder(model, replayed.cache, replayed._allowed, pad=True)
    replayed._decoder.run = Graphs(replayed._decoder.forward, capture)
    assert parts_of(run(plain, asked)) == parts_of(run(replayed, asked))
    assert len(replayed._decoder.run.captured) == 3 < len(calls) < sum(calls)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("page_size", [0, 4])
def test_cuda_graphs_equal_steps_without(rng, page_size):
    model = build().cuda()
    asked = requests(rng, 12, sampling=MIXED)
    found = []
    for graphs in (False, True):
        engine = Generator(model, grids=GRIDS, max_rows=6, max_length=64, page_size=page_size, cuda_graphs=graphs)
        found.append(parts_of(run(engine, asked)))
    assert found[0] == found[1] and len(engine._decoder.run.captured) > 3


def test_hidden_states_of_the_short_way(rng):
    """The logits that are drawn from, to the last digits."""
    model, found = build(), []
    for kind, pad in ((General, False), (Generator, False), (Generator, True)):
        engine = kind(model, grids=GRIDS, max_rows=8, max_length=64)
        engine._decoder = Decoder(model, engine.cache, engine._allowed, pad=pad)
        logits, seen = engine._decoder._logits, []
        engine._decoder._logits = lambda h, p, s, logits=logits, seen=seen: seen.append(logits(h, p, s)) or seen[-1]
        for request in requests(np.random.default_rng(1), 5):
            engine.add(request)
        for _ in range(4):
            engine.step()
        found.append([x[: min(len(x), 5)] for x in seen])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            n = min(len(a), len(b))
            torch.testing.assert_close(a[:n], b[:n], rtol=0, atol=1e-10)


@pytest.mark.parametrize("page_size", [0, 4])
def test_rows_of_all_modalities_cost_one_synchronisation_a_step(rng, monkeypatch, page_size):
    """Prompts, decoding and new rows beside old ones; the only thing asked for is the ids, in one piece."""
    asked_for = []
    tolist = torch.Tensor.tolist

    def watched(self):
        if self.ndim == 1:  # tables of segments, which attention on a CPU reads, are on the host everywhere
            asked_for.append(self.shape)
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", watched)
    engine = Generator(build(), grids=GRIDS, max_rows=9, max_length=64, page_size=page_size)
    waiting = [
        Request([random_part(rng, "text")], m, MIXED, {"text": 9, "speech": 9}, number=i)
        for i, m in enumerate(["text", "image", "speech"] * 3)
    ]
    for step in range(4):
        for request in (waiting[:6], [], waiting[6:], [])[step]:
            engine.add(request)
        asked_for.clear()
        with Forbidden() as watch:
            engine.step()
        assert watch.count > 50 and watch.seen == [] and len(asked_for) == 1
        assert engine.num_syncs == engine.num_steps == step + 1
    assert len({row.span for row in engine.rows}) > 1


@pytest.mark.parametrize("page_size", [0, 4])
def test_samples_of_one_prompt_compute_it_once(page_size):
    model = build()
    prompt = [Part("text", np.arange(0)), Part("text", np.arange(18)), Part("image", np.arange(6), grid=(2, 3))]
    sampling = {"speech": SamplingConfig(guidance=2.0, media_guidance=1.5)}
    asked = [Request(prompt, "speech", sampling, {"speech": 5}, number=i) for i in range(4)]
    asked.append(Request([Part("text", np.arange(20))], "text", {}, {"text": 5}, number=4))
    alone = [generate(model, [r], grids=GRIDS, max_rows=1)[0] for r in asked]
    engine = Generator(model, grids=GRIDS, max_rows=5, max_length=64, page_size=page_size)
    for request in asked:
        engine.add(request)
    engine.step()
    length = 1 + 18 + 1 + 6 + 1 + 1  # <bos>, text, <image>, ids, </image>, <speech>
    media, free = length - 18, 2
    once = length + media + free  # those that begin alike, one of each kind
    # media and free begin like the whole with <bos> alone, which is not worth a copy; the last token goes for each
    assert engine.num_tokens <= once + 3 * 3 * free + 3 * media + 4
    late = Request(prompt, "speech", sampling, {"speech": 5}, number=5)
    assert engine.num_tokens < 4 * once
    found = []
    while engine.rows:
        found += engine.step()
    assert parts_of(sorted(found, key=lambda r: r.request.number)) == parts_of(alone)
    assert parts_of(generate(model, [late], grids=GRIDS)) == parts_of(run(engine, [late]))


@pytest.mark.parametrize("page_size", [0, 4])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_what_begins_alike_is_shared_and_changes_nothing(rng, page_size, attention):
    """Prompts with long common beginnings of all kinds, latents included, added at different times."""
    model = MixtureOfTransformers(model_config(mel=True, attention=attention)).double()
    shared = [Part("text", rng.integers(0, 20, 20)), random_part(rng, "mel", 3), Part("text", rng.integers(0, 20, 9))]
    tails = [[], [Part("text", rng.integers(0, 20, 3))], [random_part(rng, "image")], [random_part(rng, "mel")]]
    sampling = {"mel": SamplingConfig(steps=3, guidance=2.0, media_guidance=1.3)}
    asked = [Request([*shared[: 1 + i % 3], *tails[i % 4]], ["text", "mel", "speech"][i % 3], sampling,
                     {"text": 6, "speech": 5}, {"mel": (2, 2)}, number=i) for i in range(14)]  # fmt: skip
    flow = DiffusionConfig(process="flow")
    settings = {"grids": GRIDS, "diffusion": flow}
    alone = [generate(model, [r], max_rows=1, **settings)[0] for r in asked]
    engine = Generator(model, max_rows=5, max_length=96, page_size=page_size, **settings)
    found = run(engine, asked)
    for a, b in zip(alone, found, strict=True):
        for x, y in zip(a.parts, b.parts, strict=True):
            np.testing.assert_allclose(
                x.ids if x.latents is None else x.latents, y.ids if y.latents is None else y.latents, atol=1e-6
            )
    fed_alone = Generator(model, max_rows=1, max_length=96, **settings)
    run(fed_alone, asked)
    assert engine.num_tokens < fed_alone.num_tokens - 100


def test_requests_are_admitted_by_free_pages(rng):
    """A pool that holds two of eight requests at a time runs them all, and never runs out on the way."""
    model = build(mel=True)
    asked = requests(rng, 8, sampling={"image": SamplingConfig(guidance=2.0)})
    for request in asked:
        request.max_spans, request.max_tokens = 2, {"text": 5, "speech": 6}
    alone = [generate(model, [r], grids=GRIDS, max_rows=1)[0] for r in asked]
    engine = Generator(model, grids=GRIDS, max_rows=8, max_length=64, page_size=4, cache_tokens=160)
    most = 0
    waiting, found = list(reversed(asked)), {}
    while waiting or engine.rows:
        while waiting and engine.fits(waiting[-1]):
            engine.add(waiting.pop())
        if waiting and len(engine.rows) < 8:
            with pytest.raises(ResourceError, match="one more does not fit now"):
                engine.add(waiting[-1])
        most = max(most, len(engine.rows))
        found |= {r.request.number: r for r in engine.step()}
        assert engine._num_spare >= 0
    assert 1 < most < 8
    assert parts_of([found[i] for i in range(8)]) == parts_of(alone)
    small = Generator(model, grids=GRIDS, max_rows=8, max_length=64, page_size=4, cache_tokens=24)
    with pytest.raises(
        ConfigError, match=r"may need in the cache: 48 is not allowed.*at most 24; raise generate.cache"
    ):
        small.add(Request([Part("text", np.zeros(40, int))], "text", max_tokens={"text": 4}))


def test_no_request_holds_more_than_it_may_need(rng, monkeypatch):
    """The bound by which requests are admitted, for each branch, against what they held; some reach it."""
    model = build(mel=True)
    grids = {**GRIDS, "mel": (2, 3)}
    asked = requests(rng, 36)
    for i, request in enumerate(asked):
        request.max_spans, request.max_tokens = 3, {"text": 1, "speech": 6}
        request.output = [None, "mel", request.output][i % 3]
        s = SamplingConfig(steps=2, guidance=2.0, media_guidance=[1.5, 1.0][i % 2])
        request.sampling = {"image": s, "mel": s}
    engine = Generator(model, grids=grids, max_rows=4, max_length=96, diffusion=DiffusionConfig(process="flow"))
    # free requests write, and then open all the spans that they may
    engine._allowed.table[:, list(model.config.layout.opening.values())] += 5
    held: dict[tuple[int, int], int] = {}

    def reserve(rows, ends):
        for i, end in zip(rows, ends, strict=True):
            row = engine.streams[i].row
            key = (row.request.number, row.streams.index(engine.streams[i]))
            held[key] = max(held.get(key, 0), end)

    monkeypatch.setattr(engine.cache, "reserve", reserve)
    run(engine, asked)
    reached = set()
    for request in asked:
        bounds = most_tokens(request, model.config, grids=grids, default=256)
        used = [n for (number, _), n in sorted(held.items()) if number == request.number]
        used = [used[0], used[-1]] if len(bounds) == 3 and len(used) == 2 else used
        bounds = [bounds[0], bounds[-1]] if len(used) == 2 else bounds
        assert len(used) <= len(bounds) and all(n <= bound for n, bound in zip(used, bounds, strict=False))
        reached.add((request.output, len(used), used == bounds[: len(used)]))
        fewer = most_tokens(replace(request, max_spans=2), model.config, grids=grids, default=256)
        reached.add((request.output, "spans", used[0] > fewer[0]))
    assert {("mel", 3, True), ("mel", 2, True), ("speech", 1, True), (None, "spans", True)} <= reached


def test_runs_are_cut_where_nothing_before_sees_what_is_after(rng):
    seen = {"understanding": "bidirectional"}
    config = with_modality(model_config(mel=True), "image", objective="diffusion", attention_by_role=seen)
    runs = [Run("text", np.arange(3)), Run("image", np.arange(6), grid=(2, 3)), Run("speech", np.arange(4)),
            Run("image", np.arange(5), role="understanding"), Run("mel", None, np.zeros((4, 3)))]  # fmt: skip
    found = [prefixes.whole_runs(runs, n, config) for n in range(23)]
    assert found == [0, 1, 2, *[3] * 6, 9, 10, 11, 12, *[13] * 5, *[18] * 4, 22]
    for n in (2, 9, 11, 18, 22):
        first, rest = prefixes.cut(runs, n)
        assert sum(map(len, first)) == n
        joined = np.concatenate([r.ids for r in first + rest if r.ids is not None])
        assert joined.tolist() == [*range(3), *range(6), *range(4), *range(5)]


def settings_of(rows: list[SamplingConfig], uniform: list[float], vocabulary: int) -> dict:
    limits = Limits.of(rows, uniform)
    names = ("uniform", "scale", "top_k", "top_p")
    numbers = dict(zip(names, torch.from_numpy(limits.numbers[:4]), strict=True))
    return {"blocked": torch.zeros(len(rows), vocabulary, dtype=torch.float64), "keep": limits.keep, **numbers}


def sorted_draw(logits, uniform, s: SamplingConfig) -> int:
    """One row by hand: sort, cut, renormalise, and walk through the ids in order."""
    if s.temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()) / s.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    kept = (before < s.top_p) & (np.arange(len(p)) < (s.top_k or len(p)))
    chosen = np.zeros_like(p)
    chosen[order[kept]] = p[order[kept]]
    return int(np.searchsorted(np.cumsum(chosen), uniform * chosen.sum(), side="right"))


def test_a_draw_is_that_of_sorted_ids_whatever_the_company(rng):
    kinds = [SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(top_k=3), SamplingConfig(top_p=0.8),
             SamplingConfig(temperature=0.5, top_k=7, top_p=0.9), SamplingConfig(temperature=2.0)]  # fmt: skip
    for company in (kinds[:1], kinds[:3], kinds[1:3], kinds):
        rows = [company[i % len(company)] for i in range(60)]
        logits, uniform = 2 * rng.standard_normal((60, 30)), rng.random(60).tolist()
        got = sample(torch.from_numpy(logits), **settings_of(rows, uniform, 30))
        assert got.tolist() == [sorted_draw(*row) for row in zip(logits, uniform, rows, strict=True)]


def test_draws_at_the_edges():
    """The largest number below 1, ids without probability at both ends, and equals under greed."""
    blocked = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    ones = torch.ones(1)
    for number, dtype in ((0.0, torch.float32), (1 - 2**-53, torch.float32), (1 - 2**-53, torch.float64)):
        arguments = {"scale": ones.to(dtype), "top_k": 0 * ones.to(dtype), "top_p": ones.to(dtype), "keep": 0}
        drawn = sample(
            torch.zeros(1, 4, dtype=dtype), blocked.to(dtype), torch.tensor([number], dtype=dtype), **arguments
        )
        assert drawn.tolist() == [1 if number == 0 else 2]
    greedy = settings_of([SamplingConfig(temperature=0)], [0.9], 4)
    assert sample(torch.tensor([[0.0, 3.0, 3.0, 1.0]]).double(), **greedy).tolist() == [1]


@pytest.mark.parametrize("page_size", [0, 4])
def test_a_cache_in_16_bits_is_as_exact_as_attention_in_16_bits(page_size):
    """Its scores are as near to those in float32 as autocast's are anyway."""
    model, found = build().float(), {}
    for precision in ("float32", "bfloat16"):
        engine = Generator(model, grids=GRIDS, max_rows=4, max_length=64, page_size=page_size, precision=precision)
        assert engine.cache.keys.dtype == getattr(torch, precision)
        logits, seen = engine._decoder._logits, []
        engine._decoder._logits = lambda h, p, s, logits=logits, seen=seen: seen.append(logits(h, p, s)) or seen[-1]
        for i in range(4):
            engine.add(Request([Part("text", np.arange(4 + i))], "image", {"image": SamplingConfig(top_k=1)}, number=i))
        engine.step()
        found[precision] = seen[0].float()
    difference = (found["bfloat16"] - found["float32"]).abs().max() / found["float32"].std()
    assert 0 < difference < 0.1


def test_the_config_chooses_the_cache(monkeypatch):
    class Ids:
        default_grid = ()

        def decode(self, parts):
            return [p.ids.tolist() for p in parts]

    made = []
    start = Generator.__init__
    monkeypatch.setattr(Generator, "__init__", lambda self, *a, **k: made.append(self) or start(self, *a, **k))
    found = []
    for cache in ("static", "paged"):
        config = GenerateConfig(
            cache=cache, page_size=8, cache_tokens=64, grids={"image": [2, 3]}, batch_size=4, speculate=2
        )
        pipeline = Pipeline(build(), {"image": Ids()}, config)
        found.append([s.output for s in pipeline.generate_from_media([[]] * 6, ["image"] * 6)])
    assert found[0] == found[1]
    assert [(e.cache.page_size, e.cache.num_pages) for e in made] == [(9, 4), (8, 8)]  # no more than 4 images need
    assert [e.speculate for e in made] == [2, 2]
    for name, value in (("page_size", 0), ("cache_tokens", -1)):
        with pytest.raises(ConfigError, match=f"generate.{name}"):
            GenerateConfig(**{name: value})
