"""Generation: spans keep their form, and no row depends on the others."""

import numpy as np
import pytest
import torch
from helpers.generation import GRIDS, build, parts_of, requests
from helpers.models import random_part

from plait.batch.assemble import assemble, pack, spell
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.config.generation import SamplingConfig
from plait.generate import Generator, Request, generate
from plait.generate.sampling import sample


@pytest.mark.parametrize("page_size", [0, 1, 5])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_batched_equals_one_by_one(rng, guidance, page_size):
    model = build()
    sampling = {"image": SamplingConfig(guidance=guidance, top_p=0.9), "text": SamplingConfig(temperature=0.7, top_k=5)}
    asked = requests(rng, 10, sampling=sampling)
    together = generate(model, asked, grids=GRIDS, max_rows=4, max_length=128, page_size=page_size)
    alone = [generate(model, [r], grids=GRIDS, max_rows=1, max_length=128)[0] for r in asked]
    assert parts_of(together) == parts_of(alone)


def test_spans_keep_their_form(rng):
    model = build()
    results = generate(model, requests(rng, 40), grids=GRIDS, max_rows=16)
    for result in results:
        wanted = result.request.output
        assert wanted is None or [p.modality for p in result.parts] == [wanted]
        for part in result.parts:
            size = {"text": 20, "image": 12, "speech": 9}[part.modality]
            assert len(part.ids) and part.ids.min() >= 0 and part.ids.max() < size
            if part.modality == "image":
                assert len(part.ids) == 6 and part.grid == (2, 3)
            else:
                assert len(part.ids) <= {"text": 9, "speech": 12}[part.modality]
    modalities = {p.modality for r in results if r.request.output is None for p in r.parts}
    assert modalities == {"text", "image", "speech"}  # free requests opened spans themselves


def test_greedy_equals_the_uncached_model(rng):
    """Each token is the best allowed one under a forward pass over the whole sequence so far."""
    model = build()
    layout = model.config.layout
    request = Request([random_part(rng, "text")], "speech", {"speech": SamplingConfig(temperature=0)}, {"speech": 6})
    result = generate(model, [request], grids=GRIDS)[0]
    so_far: list[int] = []
    for token in [*(result.parts[0].ids + layout.offsets["speech"]), None]:
        document = Document([*request.prompt, Part("speech", np.array(so_far, int) - layout.offsets["speech"])])
        runs = spell(document, model.config, close=False)[:-1]  # without the closing delimiter
        batch = assemble([[r for r in runs if len(r)]], model.config)
        hidden = torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)[-1]
        logits = model.head["shared"](hidden)
        allowed = [*layout.ids("speech"), *([layout.closing["speech"]] if so_far else [])]
        best = allowed[int(logits[allowed].argmax())] if len(so_far) < 6 else layout.closing["speech"]
        assert best == (layout.closing["speech"] if token is None else token)
        so_far.append(int(token or 0))


def test_guidance_of_one_and_two_by_hand(rng):
    """The first guided token follows free + g * (given - free)."""
    model = build()
    layout = model.config.layout
    prompt = [random_part(rng, "text")]

    def first_logits(parts):
        from plait.batch.assemble import Run, assemble

        opening = Run("text", np.array([layout.opening["image"]]))
        batch = assemble([[*spell(Document(parts), model.config, close=False), opening]], model.config)
        hidden = torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)[-1]
        return model.head["shared"](hidden)

    guided = first_logits([]) + 3.0 * (first_logits(prompt) - first_logits([]))
    ids = list(layout.ids("image"))
    result = generate(
        model, [Request(prompt, "image", {"image": SamplingConfig(temperature=0, guidance=3.0)})], grids=GRIDS
    )[0]
    assert result.parts[0].ids[0] == int(guided[ids].argmax())


def test_one_synchronisation_a_step_and_cancel(rng):
    engine = Generator(build(), grids=GRIDS, max_rows=4)
    ids = [engine.add(r) for r in requests(rng, 4)]
    engine.step()
    assert engine.num_syncs == engine.num_steps == 1
    cancelled = engine.cancel(ids[1])
    if cancelled is not None:
        assert cancelled.stopped == "cancelled"
    assert engine.cancel(99) is None
    while engine.rows:
        engine.step()
    assert engine.cache.lengths == []


def test_a_seed_gives_the_same_and_another_another(rng):
    model = build()
    asked = [Request([], "image", seed=s, number=n) for s, n in ((0, 0), (0, 0), (1, 0), (0, 1))]
    a, b, c, d = (r.parts[0].ids.tolist() for r in generate(model, asked, grids=GRIDS))
    assert a == b and a != c and a != d


def test_requests_that_cannot_be_made():
    model = build(mel=True)
    engine = Generator(model, grids=GRIDS)
    with pytest.raises(ConfigError, match=r"imagee.*did you mean 'image'"):
        engine.add(Request([], "imagee"))
    with pytest.raises(ConfigError, match=r"generate.grids.mel.*extent"):
        engine.add(Request([], "mel"))
    with pytest.raises(ConfigError, match=r"generate.grids.mel: \[64, 40\].*positions end at 2048"):
        engine.add(Request([], "mel", grids={"mel": (64, 40)}))
    with pytest.raises(ConfigError, match=r"sampler: 'euler' is not allowed.*'ddpm'"):
        engine.add(Request([], "mel", {"mel": SamplingConfig(sampler="euler")}, grids={"mel": (1, 2)}))
    with pytest.raises(ConfigError, match=r"latents of 'mel'.*\[tokens, 3\]"):
        engine.add(Request([Part("mel", latents=np.zeros((4, 2)), grid=(2, 2))], "text"))
    with pytest.raises(ConfigError, match=r"latents of 'mel'.*finite"):
        engine.add(Request([Part("mel", latents=np.full((4, 3), np.nan), grid=(2, 2))], "text"))
    with pytest.raises(ConfigError, match="top_p"):
        engine.add(Request([], "image", {"image": SamplingConfig(top_p=0.0)}))
    with pytest.raises(ConfigError, match="length"):
        engine.add(Request([Part("text", np.zeros(5000, int))], "image"))


def test_a_full_cache_ends_a_row():
    results = generate(
        build(), [Request([], None, max_tokens={"speech": 99}, number=i) for i in range(8)], grids=GRIDS, max_length=20
    )
    assert all(r.stopped in ("length", "eos") for r in results)
    assert any(r.stopped == "length" for r in results)


def test_sampler_matches_its_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 6, dtype=torch.float64).expand(20_000, 6)
    n = logits.shape[0]
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ones = torch.ones(n, dtype=torch.float64)
    plain = {"scale": ones, "top_k": 0 * ones, "top_p": ones, "keep": 0}
    blocked = torch.zeros(n, 6, dtype=torch.float64)
    blocked[:, 2] = float("-inf")
    ids = sample(logits, blocked, uniform, **plain)
    expected = (logits + blocked)[0].softmax(-1)
    torch.testing.assert_close(torch.bincount(ids, minlength=6).double() / n, expected, rtol=0, atol=1e-3)
    two = sample(logits, blocked, uniform, **{**plain, "top_k": 2 * ones, "keep": 2})
    assert set(two.tolist()) == set(expected.topk(2).indices.tolist())
    nucleus = {**plain, "top_p": ones * (float(expected.max()) - 0.01), "keep": -1}
    assert set(sample(logits, blocked, uniform, **nucleus).tolist()) == {int(expected.argmax())}


def test_prompt_documents_pack(rng):
    """A prompt and its answer, packed as a document, is what training sees."""
    model = build()
    result = generate(model, [Request([random_part(rng, "text")], "image")], grids=GRIDS)[0]
    batch = pack([Document([*result.request.prompt, *result.parts])], model.config)
    assert batch.ids[-1] == model.config.layout.eos


@pytest.mark.parametrize("speculate", [0, 3])
@pytest.mark.parametrize("beside", ["alone", "beside text"])
def test_ids_of_an_image_have_the_positions_of_training(rng, beside, speculate):
    """With several axes an image's ids lie in a grid: greedy ids are the uncached model's, and what follows goes on
    where it would in training."""
    model = build(position_axes=["time", "row", "column"], width=32)
    layout, greedy = model.config.layout, {n: SamplingConfig(temperature=0) for n in ("text", "image")}
    request = Request([random_part(rng, "text")], "image", greedy)
    others = [Request([], "text", greedy, {"text": 9})] if beside == "beside text" else []
    results = generate(model, [request, *others], grids=GRIDS, speculate=speculate)
    ids = next(r for r in results if r.request is request).parts[0].ids

    def spelt(count: int):
        document = Document([*request.prompt, Part("image", ids[:count], grid=(2, 3))])
        return [r for r in spell(document, model.config, close=False) if len(r)]

    images = list(layout.ids("image"))
    for n in range(6):
        batch = assemble([spelt(n)[:-1]], model.config)  # without the closing delimiter
        hidden = torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)[-1]
        assert int(model.head["shared"](hidden)[images].argmax()) == ids[n]

    generator = Generator(model, grids=GRIDS, speculate=speculate)
    generator.add(Request(request.prompt, None, greedy, {"text": 20}))
    row = generator.rows[0]
    generator._open(row, "image")
    while row.span == "image":
        generator.step()
    generator.step()  # feeds the last id and the closing delimiter
    np.testing.assert_array_equal(row.parts[0].ids, ids)
    assert row.main.position == assemble([spelt(6)], model.config).next_positions[0]
