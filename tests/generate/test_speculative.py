"""Several ids a pass: the model's own distribution, and the same ids whatever the window, the cache and the batch."""

import importlib
import itertools
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.generation import GRIDS, General, build, parts_of, requests, run, uneven
from helpers.models import model_config, random_part, with_modality

from plait.batch.assemble import Run, assemble, spell
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.config.generation import DiffusionConfig, GenerateConfig, SamplingConfig
from plait.generate import Generator, Request, generate
from plait.generate.decoding import Decoder
from plait.generate.rows import Row, keys_of
from plait.generate.sampling import Limits, weights_of
from plait.generate.speculation import exponentials, num_right, race
from plait.model.mot import MixtureOfTransformers

decoding = importlib.import_module("decoding")

NUM_IDS = 3


def tiny() -> MixtureOfTransformers:
    """Images of 3 ids out of 3, whose order matters."""
    config = with_modality(model_config(), "image", vocab_size=NUM_IDS)
    config = type(config)(modalities=config.modalities, width=16, num_layers=2, num_heads=2, ffn_width=24)
    model = MixtureOfTransformers(config).double()
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(12)
    return model


def logits_of(model: MixtureOfTransformers, prompt: list[Part]) -> dict[tuple[int, ...], np.ndarray]:
    """The scores of the next image id after each beginning of an image, without any cache."""
    layout = model.config.layout
    beginnings = [b for n in range(3) for b in itertools.product(range(NUM_IDS), repeat=n)]
    given = [r for r in spell(Document(prompt), model.config, close=False) if len(r)]
    opening = Run("text", np.array([layout.opening["image"]]))
    ids = [Run("image", np.array(b, np.int64) + layout.offsets["image"]) for b in beginnings]
    batch = assemble([[*given, opening, *([i] if len(i) else [])] for i in ids], model.config)
    hidden = torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)
    last = torch.from_numpy(np.cumsum(batch.lengths) - 1)
    scores = model.head["shared"](hidden.index_select(0, last))[:, list(layout.ids("image"))]
    return dict(zip(beginnings, scores.detach().numpy(), strict=True))


def distribution(scores: dict[tuple[int, ...], np.ndarray], s: SamplingConfig) -> np.ndarray:
    """The probability of each image [3, 3, 3], by hand."""
    table = np.zeros((NUM_IDS,) * 3)
    for image in itertools.product(range(NUM_IDS), repeat=3):
        table[image] = np.prod([softmax_cut(scores[image[:i]], s)[image[i]] for i in range(3)])
    return table


def softmax_cut(logits: np.ndarray, s: SamplingConfig) -> np.ndarray:
    p = np.exp((logits - logits.max()) / s.temperature)
    p[np.argsort(-p)[s.top_k or NUM_IDS :]] = 0
    p /= p.sum()
    order = np.argsort(-p)
    p[order[np.cumsum(p[order]) - p[order] >= s.top_p]] = 0
    return p / p.sum()


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("s", [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=2), SamplingConfig(top_p=0.8),
                               SamplingConfig(guidance=1.7)])  # fmt: skip
def test_images_have_the_distribution_of_the_model(rng, monkeypatch, window, s):
    """Chi-square of 3,000 images against the probabilities of all 27; guesses do hold, and fail, on the way."""
    model, count, rows = tiny(), 3000, 250
    prompt = [random_part(rng, "text")]
    given, free = (logits_of(model, p) for p in (prompt, []))
    expected = distribution({b: free[b] + s.guidance * (given[b] - free[b]) for b in given}, s)
    monkeypatch.setattr(Generator, "_share_prefixes", lambda self: None)  # it compares all with all
    engine = Generator(model, grids={"image": (1, 3)}, max_rows=rows, max_length=16, max_branches=2, speculate=window)
    seen, passes = np.zeros_like(expected), []
    for start in range(0, count, rows):
        for i in range(start, start + rows):
            engine.add(Request(prompt, "image", {"image": s}, number=i))
        before = engine.num_steps
        while engine.rows:
            for result in engine.step():
                seen[tuple(result.parts[0].ids)] += 1
                passes.append(engine.num_steps - before)
    assert seen.sum() == count and seen[expected == 0].sum() == 0
    likely = expected * count > 5
    chi = ((seen - count * expected)[likely] ** 2 / (count * expected[likely])).sum()
    freedom = likely.sum() - 1
    assert freedom > 3 and abs(chi - freedom) < 4 * np.sqrt(2 * freedom)
    assert set(passes) == {2, 3}  # the prompt's, and one or two for what follows


@pytest.mark.parametrize("page_size", [0, 4])
@pytest.mark.parametrize("make", [build, uneven, lambda: build(mel=True)])
def test_the_window_the_cache_and_the_batch_change_nothing(rng, page_size, make):
    """Rows of all kinds, guided and cut; those of other spans draw what they draw without speculation."""
    model = make()
    sampling = {"image": SamplingConfig(guidance=2.5, media_guidance=1.5, top_p=0.9), "text": SamplingConfig(top_k=5)}
    asked = requests(rng, 14, sampling=sampling)
    settings = {"grids": GRIDS, "max_length": 128, "diffusion": DiffusionConfig(process="flow")}
    latents = []
    if "mel" in model.config.modalities:
        latents = [Request([], "mel", {"mel": SamplingConfig(steps=5)}, grids={"mel": (2, 2)}, number=50)]
    alone = [generate(model, [r], max_rows=1, speculate=1, **settings)[0] for r in asked]
    for window in (2, 4, 9):
        engines = [
            kind(model, max_rows=6, page_size=page_size, speculate=window, **settings) for kind in (Generator, General)
        ]
        padded = Generator(model, max_rows=6, page_size=page_size, speculate=window, **settings)
        padded._decoder = Decoder(model, padded.cache, padded._allowed, pad=True)
        for engine in (*engines, padded):
            for request in latents:
                engine.add(request)
            assert parts_of(run(engine, asked)) == parts_of(alone)
    plain = [generate(model, [r], max_rows=1, **settings)[0] for r in asked]
    spans = [(a, b) for a, b in zip(alone, plain, strict=True) if a.request.output in ("text", "speech")]
    assert len(spans) > 3 and all(parts_of([a]) == parts_of([b]) for a, b in spans)


@pytest.mark.parametrize("page_size", [0, 4])
def test_greedy_equals_plain_decoding(rng, page_size):
    model = build()
    sampling = {"image": SamplingConfig(temperature=0, guidance=2.0)}
    asked = [Request([random_part(rng, "text")], "image", sampling, number=i) for i in range(12)]
    plain, found = (Generator(model, grids=GRIDS, max_rows=8, page_size=page_size, speculate=w) for w in (0, 4))
    assert parts_of(run(plain, asked)) == parts_of(run(found, asked))
    assert found.num_steps < plain.num_steps


@pytest.mark.parametrize("page_size", [0, 1])
def test_each_id_is_drawn_from_what_stands_before_it_without_a_cache(rng, page_size):
    """The numbers of a request's places, raced by hand on scores of the uncached model."""
    model, prompt = tiny(), [random_part(rng, "text")]
    scores = logits_of(model, prompt)
    offset = model.config.layout.offsets["image"]
    asked = [Request(prompt, "image", seed=3, number=i) for i in range(30)]
    found = generate(model, asked, grids={"image": (1, 3)}, max_rows=7, max_length=16, speculate=3, page_size=page_size)
    for i, result in enumerate(found):
        numbers = exponentials(torch.from_numpy(keys_of(3, i, 1, 0)[:3]), offset, offset + NUM_IDS, torch.float64)
        image: list[int] = []
        for place in numbers.numpy():
            p = softmax_cut(scores[tuple(image)], SamplingConfig())
            image.append(int((p / place).argmax()))
        assert result.parts[0].ids.tolist() == image


def test_a_pass_of_a_window_runs_the_short_way(rng, monkeypatch):
    """Images alone never take the general step after their prompts, and ask the device for one piece of numbers."""
    engine = Generator(build(), grids=GRIDS, max_rows=4, max_length=32, speculate=3)
    for i in range(4):
        engine.add(Request([random_part(rng, "text")], "image", number=i))
    engine.step()
    monkeypatch.setattr(engine, "_forward", None)
    while engine.rows:
        engine.step()
    assert engine.num_syncs == engine.num_steps and engine.cache.lengths == []


def test_windows_stay_one_call_beside_prompts(rng, monkeypatch):
    """But not where a first row is one of latents that see each other."""
    engine = Generator(build(mel=True), grids=GRIDS, max_rows=6, max_length=64, speculate=4)
    engine.add(Request([random_part(rng, "text")], "image", number=0))
    engine.add(Request([random_part(rng, "text", 5)], "image", number=1))
    engine.step()
    engine.add(Request([Part("text", np.arange(9))], "image", number=2))
    steps = []
    step = engine.cache.step
    monkeypatch.setattr(engine.cache, "step", lambda *a, **k: steps.append(step(*a, **k)) or steps[-1])
    engine.step()
    assert [(s.num_rows, s.num_new, s.plan is not None) for s in steps] == [(2, 4, True)]
    latents = [Run("mel", None, np.zeros((4, 3), np.float32), (2, 2)) for _ in range(2)]
    batch = assemble([[latents[0]], [latents[1]], [Run("text", np.arange(3))]], engine.model.config)
    cache = engine.model.new_cache(3, 16)
    assert cache.step(batch, [cache.add_row() for _ in range(3)]).num_rows == 0


@pytest.mark.parametrize("max_length", range(8, 16))
@pytest.mark.parametrize("page_size", [0, 4])
def test_a_full_cache_ends_the_same_rows(max_length, page_size):
    """Where the last id of an image just fits, or just does not, with guesses far beyond it."""
    asked = [Request([], None, number=i) for i in range(6)]
    asked += [Request([Part("text", np.arange(n))], "image", number=9 + n) for n in range(1, 7)]
    found = []
    for window in (1, 8):
        engine = Generator(
            build(), grids=GRIDS, max_rows=4, max_length=max_length, speculate=window, page_size=page_size
        )
        found.append(parts_of(run(engine, asked)))
    assert found[0] == found[1]
    assert {r[-1] for r in found[0]} >= {"length"}


def test_guesses_have_room_and_leave_none_behind(rng):
    """A pool of pages that a few requests fill to the last one; what failed gives its pages back at once."""
    asked = [Request([random_part(rng, "text")], "image", number=i) for i in range(9)]
    for window in (1, 8):
        engine = Generator(
            build(), grids=GRIDS, max_rows=9, max_length=32, page_size=1, cache_tokens=64, speculate=window
        )
        run(engine, asked)
    for request in asked[:3]:
        engine.add(request)
    for _ in range(4):
        engine.step()
        assert [engine.cache.num_held(i) for i in range(len(engine.streams))] == engine.cache.lengths


def test_every_place_has_numbers_of_its_own():
    blocks = [keys_of(*of) for of in ((0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 2, 0), (0, 0, 1, 1))]
    assert len(np.unique(np.concatenate(blocks))) == 5 * 256 and min(b.min() for b in blocks) > 0
    row = Row(0, Request(seed=2, number=3), [])
    row.num_spans = 4
    assert [row.key(i) for i in (5, 256)] == [keys_of(2, 3, 4, 0)[5], keys_of(2, 3, 4, 1)[0]]


def test_ids_are_final_up_to_the_first_that_differs():
    assert [num_right([5, 6, 7], drawn) for drawn in ([5, 6, 7, 8], [5, 6, 1, 8], [5, 1, 7, 8], [1, 6, 7, 8])] == \
        [4, 3, 2, 1]  # fmt: skip
    assert num_right([], [3]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_race_draws_from_the_distribution(dtype):
    """And its numbers depend on key and id alone."""
    rng = np.random.default_rng(0)
    keys = torch.from_numpy(rng.integers(1, 2**63, 50_000))
    numbers = exponentials(keys, 0, 7, dtype)
    assert (numbers > 0).all() and torch.equal(numbers[:, 3:5], exponentials(keys, 3, 5, dtype))
    moments = [float((numbers**n).mean()) for n in (1, 2, 3)]
    np.testing.assert_allclose(moments, [1, 2, 6], rtol=0.03)
    correlation = torch.corrcoef(torch.cat([numbers[:-1], numbers[1:]], dim=1).T) - torch.eye(14, dtype=dtype)
    assert correlation.abs().max() < 0.02
    p = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.0999, 0.0001, 0.0], dtype=dtype)
    drawn = race(3 * p.expand(len(keys), 7), keys, 0)
    seen = torch.bincount(drawn, minlength=7).double() / len(keys)
    torch.testing.assert_close(seen, p.double(), rtol=0, atol=0.007)
    assert seen[1] == seen[6] == 0
    other = race(p.expand(len(keys), 7)[:, 2:], keys, 2)
    assert torch.equal(other[drawn > 1] + 2, drawn[drawn > 1])


def test_limits_of_races_keep_their_settings():
    settings = [SamplingConfig(temperature=0.5, top_k=2), SamplingConfig(temperature=0)]
    limits = Limits.of(settings, [0.0, 0.0])
    scale, top_k, top_p = torch.from_numpy(limits.numbers[1:4])
    logits = torch.tensor([[1.0, 2.0, 3.0]]).double().expand(2, 3)
    weights = weights_of(logits, torch.zeros_like(logits), scale, top_k, top_p, keep=limits.keep)
    assert ((weights > 0) == torch.tensor([[False, True, True], [False, False, True]])).all()


def test_the_benchmark_counts_ids_and_takes_both_ways(rng, monkeypatch):
    model = build()
    captions = [SimpleNamespace(parts=[random_part(rng, "text"), random_part(rng, "image")]) for _ in range(3)]
    config = SimpleNamespace(name="small", generate=GenerateConfig())
    monkeypatch.setattr(decoding, "run_config", lambda folder: config)
    monkeypatch.setattr(decoding, "load", lambda folder, device: SimpleNamespace(model=model, grids=GRIDS))
    monkeypatch.setattr(decoding, "validation_splits", lambda config: ["validation"])
    source = SimpleNamespace(document=captions.__getitem__)
    monkeypatch.setattr(decoding, "open_sources", lambda config, split: [source])
    rows = {r["name"]: r["value"] for r in decoding.speculation(Path(), (1, 3), 2, "cpu")}
    promised = decoding.measurements(Namespace(grid="tiny", device="cpu", turns=1, run=Path()))[-1].names
    assert [n.replace("rows8", "rows3") for n in promised if "rows32" not in n] == list(rows)
    ids = {name: value for name, value in rows.items() if "ids_a_pass" in name}
    assert all(1 <= value <= min(5, int(name.rpartition("window")[2])) for name, value in ids.items())
    assert max(ids.values()) > 1 and len(ids) == 8


def test_a_window_that_cannot_be():
    with pytest.raises(ConfigError, match=r"generate\.speculate: -1"):
        GenerateConfig(speculate=-1)
