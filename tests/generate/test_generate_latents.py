"""Denoising among other requests: by hand, in company, guided, interleaved."""

import math

import numpy as np
import pytest
import torch
from helpers.models import random_part, sharp_model

from plait.batch.assemble import Run, assemble, pack, spell
from plait.batch.documents import Document, Part
from plait.common.randomness import generator
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.generate import Generator, Request, generate
from plait.generate.decoding import guided
from plait.objectives.samplers import Denoiser

GRIDS = {"image": (2, 3), "mel": (2, 2)}
FLOW = DiffusionConfig(process="flow")


def predict(model, parts, latents, grid, level):
    """One forward pass over all that was given and the latents, nothing cached."""
    config = model.config
    hidden_run = config.modalities["mel"].later_sees != "noised"
    run = Run("mel", None, latents.numpy(), grid, "generation", noised=True, hidden=hidden_run)
    opening = Run("text", np.array([config.layout.opening["mel"]]))
    batch = assemble([[*spell(Document(parts), config, close=False, noised=False), opening, run]], config)
    group = batch.latents["mel"]
    start = sum(group.lengths[:-1])
    group.values = group.values.double().index_copy(0, torch.arange(start, start + len(latents)), latents)
    times = torch.zeros(len(group.values), dtype=torch.float64)
    times[start:] = level
    group.timesteps = times
    with torch.no_grad():
        return model.predict_latents(model(batch), batch, "mel")[start:]


def by_hand(model, request, diffusion):
    """Denoise one item with a whole forward pass for every branch and level."""
    grid, s = request.grids.get("mel", GRIDS["mel"]), request.sampling_of("mel")
    draw = generator(request.seed, "first noise", item=request.number, position=1)
    latents = torch.from_numpy(draw.standard_normal((math.prod(grid), 3)))
    denoiser = Denoiser(diffusion, s.sampler, s.steps)
    media = [p for p in request.prompt if p.modality != "text"]
    for level in denoiser.levels:
        full, some, none = (predict(model, parts, latents, grid, level) for parts in (request.prompt, media, []))
        if s.media_guidance == 1:
            some = none
        latents = denoiser.step(guided(full, some, none, s.guidance, s.media_guidance), latents)
    return latents


def asked(rng, count: int, diffusion: DiffusionConfig) -> list[Request]:
    """Requests of all kinds: prompts, sizes, guidance and samplers differ, some want ids."""
    samplers = ["auto", "unipc"] if diffusion.process == "ddpm" else ["auto", "dpm_solver"]
    found = []
    for i in range(count):
        names = rng.choice(["text", "mel", "image", "speech"], int(rng.integers(0, 4)))
        s = SamplingConfig(
            steps=int(rng.integers(3, 6)),
            sampler=samplers[i % 2],
            guidance=float(rng.choice([1.0, 3.0])),
            media_guidance=float(rng.choice([1.0, 1.5])),
        )
        grid = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        output = ["mel", "mel", "mel", "image", None][i % 5]
        found.append(Request([random_part(rng, n) for n in names], output, {"mel": s}, {"text": 5, "speech": 6},
                             {"mel": grid} if i % 3 else {}, number=i))  # fmt: skip
    return found


def values_of(results) -> list:
    return [[p.modality, p.ids if p.latents is None else p.latents] for r in results for p in r.parts]


def check_equal(a, b):
    assert [m for m, _ in values_of(a)] == [m for m, _ in values_of(b)]
    for (_, x), (_, y) in zip(values_of(a), values_of(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)  # parts are float32


def test_each_modality_is_denoised_by_its_own_settings(rng):
    model, own = sharp_model(width=32), {"process": "flow", "shift": 3.0}
    requests = [
        Request([random_part(rng, "text")], "mel", {"mel": SamplingConfig(steps=4)}, number=i) for i in range(3)
    ]
    mixed, alone = DiffusionConfig(by_modality={"mel": own}), DiffusionConfig(**own)
    made = [
        generate(model, requests, grids=GRIDS, max_length=64, diffusion=d) for d in (mixed, alone, DiffusionConfig())
    ]
    check_equal(made[0], made[1])
    assert any((x != y).any() for (_, x), (_, y) in zip(values_of(made[0]), values_of(made[2]), strict=True))


@pytest.mark.parametrize("page_size", [0, 4])
@pytest.mark.parametrize("later_sees", ["noised", "clean_copy", "nothing"])
@pytest.mark.parametrize("diffusion", [DiffusionConfig(), FLOW], ids=["ddpm", "flow"])
def test_cached_batched_and_guided_equals_by_hand(rng, later_sees, diffusion, page_size):
    model = sharp_model(later_sees=later_sees, position_axes=["time", "row", "column"], width=32)
    requests = asked(rng, 15, diffusion)
    together = generate(
        model, requests, grids=GRIDS, max_rows=6, max_length=256, diffusion=diffusion, page_size=page_size
    )
    alone = [generate(model, [r], grids=GRIDS, max_rows=1, diffusion=diffusion)[0] for r in requests]
    check_equal(together, alone)
    checked = 0
    for request, result in zip(requests, together, strict=True):
        if request.output == "mel":
            np.testing.assert_allclose(result.parts[-1].latents, by_hand(model, request, diffusion), atol=1e-6)
            assert result.parts[-1].grid == request.grids.get("mel", GRIDS["mel"])
            checked += 1
    assert checked >= 8


def test_ddpm_draws_do_not_depend_on_the_company(rng):
    model = sharp_model()
    sampling = {"mel": SamplingConfig(sampler="ddpm", steps=4)}
    requests = [Request([random_part(rng, "text")], "mel", sampling, number=i) for i in range(4)]
    together = generate(model, requests, grids=GRIDS)
    check_equal(together, [generate(model, [r], grids=GRIDS)[0] for r in requests])
    assert len({r.parts[0].latents.tobytes() for r in together}) == 4


@pytest.mark.parametrize("later_sees", ["noised", "clean_copy", "nothing"])
def test_later_text_sees_the_clean_latents(rng, later_sees):
    """After an item, the model goes on as it would over a document that was given with clean latents."""
    model = sharp_model(later_sees=later_sees, position_axes=["time", "row", "column"], width=32)
    layout = model.config.layout
    with torch.no_grad():  # it opens an item at once, and then writes
        model.head["shared"].weight[layout.opening["mel"]] += 3 * model.head["shared"].weight.abs().mean()
    sampling = {"mel": SamplingConfig(steps=3, guidance=2.0), "text": SamplingConfig(temperature=0)}
    seen = 0
    for i in range(12):
        request = Request([random_part(rng, "text")], None, sampling, {"text": 4}, max_spans=2, number=i)
        result = generate(model, [request], grids=GRIDS, diffusion=FLOW)[0]
        for j, part in enumerate(result.parts):
            if part.modality == "text" and j and result.parts[j - 1].modality == "mel":
                before = [*request.prompt, *result.parts[:j]]
                room = sum(p.modality != "text" for p in result.parts[:j]) < request.max_spans
                if later_sees == "nothing":
                    expected = _next_without_spans(model, before, room)
                else:
                    runs = spell(Document(before), model.config, close=False, noised=False)
                    expected = _best(model, assemble([runs], model.config), room)
                assert expected == part.ids[0]
                seen += 1
    assert seen >= 3


def _best(model, batch, room: bool) -> int:
    """The likeliest id of what may follow a span in a free request whose rest is text."""
    layout = model.config.layout
    with torch.no_grad():
        hidden = torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)[-1]
    logits = model.head["shared"](hidden)
    allowed = [*layout.ids("text"), layout.eos, *(layout.opening.values() if room else [])]
    return allowed[int(logits[allowed].argmax())]


def _next_without_spans(model, parts, room: bool) -> int:
    """The same where nothing sees latents: they are hidden, but keep their positions."""
    runs = spell(Document(parts), model.config, close=False, noised=False)
    for run in runs:
        run.hidden = run.latents is not None
    return _best(model, assemble([runs], model.config), room)


def test_cancelling_one_leaves_the_others(rng):
    model = sharp_model()
    sampling = {"mel": SamplingConfig(steps=5, guidance=3.0, sampler="unipc")}
    requests = [Request([random_part(rng, "text")], "mel", sampling, number=i) for i in range(4)]
    expected = generate(model, requests, grids=GRIDS)
    engine = Generator(model, grids=GRIDS)
    ids = [engine.add(r) for r in requests]
    found = engine.step() + engine.step()
    assert engine.cancel(ids[1]).parts == []
    while engine.rows:
        found += engine.step()
    check_equal(sorted(found, key=lambda r: r.request.number), [expected[i] for i in (0, 2, 3)])
    assert engine.cache.lengths == [] and engine.num_steps == 5
    assert engine.num_syncs == 3  # one for each finished item


def test_texts_that_begin_beside_latents_go_ahead(rng):
    """Their first ids come before the latents move on, which they do at every second step at least."""
    model = sharp_model()
    settings = {"grids": GRIDS, "max_length": 64, "diffusion": FLOW}
    engine = Generator(model, max_rows=16, **settings)
    image = Request([random_part(rng, "text")], "mel", {"mel": SamplingConfig(steps=4)}, seed=0)
    requests, ended, moved = [image], [], []
    engine.add(image)
    (drawing,) = engine.rows
    engine.step()
    while drawing in engine.rows:  # one more text joins before each step
        requests.append(Request([random_part(rng, "text")], "text", {}, {"text": 3}, seed=len(requests)))
        engine.add(requests[-1])
        joined, before = engine.rows[-1], drawing.open_canvas.latents.clone()
        ended += engine.step()
        assert joined.tokens or joined not in engine.rows
        moved.append(drawing.canvas is None or not torch.equal(before, drawing.canvas.latents))
    assert moved == [False, True] * 3
    while engine.rows:
        ended += engine.step()
    alone = generate(model, requests, max_rows=1, **settings)
    check_equal(sorted(ended, key=lambda r: r.request.seed), alone)


def test_snapshots_go_from_noise_to_clean(rng):
    model = sharp_model()
    request = Request([], "mel", {"mel": SamplingConfig(steps=10)}, num_snapshots=4)
    result = generate(model, [request], grids=GRIDS)[0]
    levels = [level for level, _ in result.snapshots]
    assert len(levels) == 4 and levels == sorted(levels, reverse=True) and levels[0] > 0.9
    assert all(part.latents.shape == (4, 3) and part.grid == (2, 2) for _, part in result.snapshots)
    noise = generator(0, "first noise", item=0, position=1).standard_normal((4, 3))
    np.testing.assert_allclose(result.snapshots[0][1].latents, noise, atol=1e-6)


def test_what_was_made_packs_for_training(rng):
    model = sharp_model(later_sees="clean_copy")
    result = generate(model, [Request([random_part(rng, "text")], "mel", number=1)], grids=GRIDS)[0]
    batch = pack([Document([*result.request.prompt, *result.parts, Part("text", np.arange(3))])], model.config)
    assert [s.noised for s in batch.spans if s.modality == "mel"] == [True, False]
