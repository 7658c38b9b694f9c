"""The cache is as large as the requests at hand, and grows where more are added."""

import math

import numpy as np
import pytest
from helpers.generation import GRIDS, build, parts_of, run

from plait.batch.documents import Part
from plait.common.errors import ConfigError
from plait.config.file import load
from plait.config.generation import SamplingConfig
from plait.config.shipped import config_path
from plait.generate import Generator, Request, generate
from plait.generate.graphs import Graphs
from plait.generate.room import Room, most_tokens


def test_one_guided_prompt_of_a_large_model_takes_what_it_needs():
    """By arithmetic: 137 GB of bfloat16 before, for rows that nobody asked for and positions that nobody reaches."""
    config = load(config_path("mot_7b"), [f"model.modalities.{n}.vocab_size=65536" for n in ("text", "image")])
    grids = {"image": (32, 32)}
    sampling = {"image": SamplingConfig(guidance=3.0)}
    request = Request([Part("text", np.arange(20))], "image", sampling)
    need = most_tokens(request, config.model, grids=grids, default=256)
    assert need == [1 + 20 + 1 + 1024, 1 + 1 + 1024]
    shape = Room.of([need], config.generate.batch_size).cache_shape(config.model)
    c = config.model
    assert shape == (c.num_layers, 2, c.num_kv_heads, 1046, c.head_dim)
    whole = Room(2 * config.generate.batch_size, c.max_positions).cache_shape(c)
    assert 2 * 2 * math.prod(shape) < 1.2e9 and 2 * 2 * math.prod(whole) > 100 * 2 * 2 * math.prod(shape)


@pytest.mark.parametrize("page_size", [0, 4])
def test_the_cache_has_room_for_the_requests_at_hand_alone(monkeypatch, page_size):
    made, start = [], Generator.__init__
    monkeypatch.setattr(Generator, "__init__", lambda self, *a, **k: made.append(self) or start(self, *a, **k))
    model = build()
    generate(
        model, [Request([], "text", {}, {"text": 7}, number=i) for i in range(2)], grids=GRIDS, page_size=page_size
    )
    cache = made[0].cache
    assert cache.num_rows == 2 and cache.max_length == 1 + 7
    assert cache.num_pages == (4 if page_size else 2)
    generate(model, [Request([], "image", {"image": SamplingConfig(guidance=2.0)})], grids=GRIDS, page_size=page_size)
    assert made[1].cache.num_rows == 2 and made[1].cache.max_length == 1 + 1 + 6


@pytest.mark.parametrize("speculate", [0, 3])
@pytest.mark.parametrize("page_size", [0, 4])
def test_requests_that_need_more_let_a_running_generator_grow(rng, page_size, speculate):
    model = build()
    guided = {"image": SamplingConfig(guidance=2.0), "speech": SamplingConfig(guidance=1.5)}
    asked = [
        Request([], "text", {}, {"text": 5}, number=0),
        Request([Part("text", np.arange(9))], "image", guided, number=1),
        Request([Part("text", np.arange(20))], "speech", guided, {"speech": 30}, number=2),
        Request([Part("text", np.arange(3))], "text", {}, {"text": 40}, number=3),
    ]
    settings = {"grids": GRIDS, "page_size": page_size, "speculate": speculate}
    alone = [generate(model, [r], max_rows=1, **settings)[0] for r in asked]
    engine, sizes, found = Generator(model, max_rows=4, max_length=64, **settings), [], {}
    for request in asked:
        engine.add(request)
        sizes.append((engine.cache.num_rows, engine.cache.max_length, engine.cache.num_pages))
        found |= {r.request.number: r for _ in range(2) for r in engine.step()}
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]
    assert sizes[-1][0] <= 4 * 3 and sizes[-1][1] <= 64 + max(0, speculate - 1)
    while engine.rows:
        found |= {r.request.number: r for r in engine.step()}
    assert parts_of([found[i] for i in range(4)]) == parts_of(alone)
    kept = (engine.cache.num_rows, engine.cache.max_length)
    assert parts_of(run(engine, asked)) == parts_of(alone)
    assert (engine.cache.num_rows, engine.cache.max_length) == kept  # it does not shrink, and need not grow again


def test_a_request_that_cannot_be_made_is_refused_before_any_is(monkeypatch):
    monkeypatch.setattr(Generator, "step", None)
    with pytest.raises(ConfigError, match=r"generate\.max_tokens\.text: 0 is not allowed, it must be at least 1"):
        generate(build(), [Request([], "text"), Request([], "text", max_tokens={"text": 0})], grids=GRIDS)


def test_graphs_of_a_cache_that_grew_are_captured_anew():
    """They know where the cache was: none may be replayed once it was moved."""
    model, captured = build(), []
    engine = Generator(model, grids=GRIDS, max_rows=2, max_length=64)

    def capture(function):
        captured.append(engine.cache.keys.data_ptr())
        return lambda: None, function()

    engine._decoder.pad = True
    engine._graphs = engine._decoder.run = Graphs(engine._decoder.forward, capture)
    engine.add(Request([], "text", {}, {"text": 30}, number=0))
    engine.step()
    engine.step()
    assert len(captured) == len(engine._graphs.captured) > 0
    engine.add(Request([Part("text", np.arange(9))], "text", {}, {"text": 40}, number=1))
    assert not engine._graphs.captured
    engine.step()
    engine.step()
    assert captured[-1] == engine.cache.keys.data_ptr() != captured[0]
