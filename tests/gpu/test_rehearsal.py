"""A dress rehearsal without a GPU: every shipped config goes a GPU's way, on tensors that have shapes and no values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.rehearsal import (
    DEVICE,
    SHIPPED,
    drawn_batches,
    drawn_part,
    made_up_gpu,
    model_on_the_gpu,
    sized,
    tensors_of,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor

from plait.batch.documents import Part
from plait.data.loader import document_limit
from plait.generate import Generator, Request
from plait.generate.latent_batches import Canvas
from plait.model import cache
from plait.model.attention import MAX_KEYS
from plait.model.block import has_triton
from plait.model.mask import segments, varlen_calls
from plait.model.precision import shorten
from plait.objectives import loss_sums, weighted_loss
from plait.train import trainer as trainer_module

pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler  # noqa: B018  # it is looked for when it is first named
LAYERS = 2

OWN_HEADS = ("quickstart_robot", "robot_all", "smollm2_images")
"""Configs that the kernel for heads does not serve: 40 or 48 numbers a head, or towers that norm unlike each other."""

WAITS_IN_TRAINING = {"trainer.update", "diagnostics.look"}
"""Where training waits: for the factors of the losses, once a step, and once for each row of the log."""
WAITS_IN_GENERATION = {"samplers.step", "allowed.__init__"}
"""Where generation waits besides for what it made: for noise that is drawn on the way, and once for all steps."""

every_config = pytest.mark.parametrize("number", range(len(SHIPPED)), ids=[p.stem for p in SHIPPED])


def rehearsed(number):
    """Return a shipped config with few layers, and batches of a few of its longest documents at most."""
    config, grids = sized(SHIPPED[number])
    data = replace(config.data, batch_tokens=min(config.data.batch_tokens, 4 * document_limit(config)))
    return replace(config, data=data, model=replace(config.model, num_layers=LAYERS)), grids


def watched(model) -> list[list[torch.Tensor]]:
    """Return where the hidden states of each of the model's passes will be."""
    passes = []
    model.register_forward_hook(lambda model, given, hidden: passes.append(hidden))
    return passes


def check_passes(passes, model):
    for hidden in passes:
        assert {(x.device, x.dtype) for x in hidden} == {(DEVICE, torch.float32)}
        assert [x.shape[1] for x in hidden] == [t.width for t in model.config.towers.values()]


def uses_kernel(number) -> bool:
    return has_triton() and SHIPPED[number].stem not in OWN_HEADS


def trainer_of(config, monkeypatch):
    """Return a run's trainer, which finds all that it asks of a step but the gradients, which are made up."""

    def gradients(parameters, batches, loss, pool):
        sums = [loss(batch)[1] for batch in batches]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        return torch.stack(sums).sum(0)

    monkeypatch.setattr(trainer_module, "resolve_vocabulary", lambda config: config)
    monkeypatch.setattr(trainer_module, "first_weights", lambda *_: [])
    monkeypatch.setattr(trainer_module.parallel, "build", lambda config, _: model_on_the_gpu(config.model))
    monkeypatch.setattr(trainer_module, "add_gradients", gradients)
    return trainer_module.Trainer(config)


@every_config
def test_a_step_of_training(number, tmp_path, monkeypatch):
    """From the loader's threads through pinned memory to the losses, and in 16 bits on to the optimizer."""
    config, grids = rehearsed(number)
    settings = {"device": str(DEVICE), "compile": False, "global_batch_tokens": 0}
    config = replace(config, out=str(tmp_path), train=replace(config.train, **settings))
    batch = next(drawn_batches(config, grids, np.random.default_rng(0), 1))
    cuts = sum(len(call.keys) for call in varlen_calls(segments(batch.spans)))
    with made_up_gpu(monkeypatch) as gpu:
        trainer = trainer_of(config, monkeypatch)
        passes = watched(trainer.model)
        factors = torch.ones(len(config.model.modalities), device=DEVICE)
        for precision in ("float32", "bfloat16"):
            trainer.config = replace(config, train=replace(config.train, precision=precision))
            ahead = trainer._finish(replace(batch))
            for noted in (gpu.copied_from, gpu.waits, gpu.calls):
                noted.clear()
            moved = ahead.to(trainer.device)
            parts, plan = tensors_of(moved), moved.attention
            assert {x.device for x in parts} == {DEVICE} and len(parts) == len(gpu.copied_from)
            assert set(gpu.copied_from) <= {x.untyped_storage()._cdata for x in gpu.pinned}
            assert plan.made_for == ("cuda", precision == "bfloat16")
            assert bool(plan.flex) == (precision == "float32" or cuts > MAX_KEYS * batch.num_tokens)
            if precision == "float32":
                total, sums = weighted_loss(trainer.model, trainer.model(moved), moved, factors, z_loss=1e-4)
                assert total.device == DEVICE and gpu.waits == []
            else:
                sums, _, norm = trainer.update([moved])
                trainer.measures.stepped(sums, batch.counts, norm, batch.num_tokens)
                assert norm.device == DEVICE and gpu.calls["_fused_adamw_"]
            validation = loss_sums(trainer.model, passes[-1], moved)
            assert sums.shape == validation.shape == factors.shape and {sums.device, validation.device} == {DEVICE}
            assert sums.dtype == validation.dtype == torch.float32
            assert [len(x) for x in passes[-1]] == batch.routing.padded_sizes
            assert gpu.calls["flex"] == (LAYERS if plan.flex else 0)
            assert gpu.calls["_varlen_attn"] == LAYERS * len(plan.varlen or [])
            assert gpu.calls["heads_to_sequence"] == (LAYERS if uses_kernel(number) else 0)
            assert gpu.calls["_scores"] > 1 and gpu.calls["segment_attention"] == 0
            assert gpu.seen == [] and set(gpu.waits) <= WAITS_IN_TRAINING
    assert len(passes) == 2
    check_passes(passes, trainer.model)


def test_what_a_made_up_gpu_finds(monkeypatch):
    """Tensors of two devices in one operation, results that the host asks for, copies that it waits for."""
    with made_up_gpu(monkeypatch) as gpu:
        x, on_host = torch.ones(3, device=DEVICE), torch.arange(3)
        assert on_host.tolist() == [0, 1, 2] and on_host.sum().item() == 3 and (x + 1)[None, ..., 1:].shape == (1, 2)
        x[1:] = x[:1] * 2
        x[on_host.to(DEVICE, non_blocking=True)] = 1.0
        assert gpu.seen == gpu.waits == [] and x.device == DEVICE
        for mixed in (lambda: x + torch.zeros(3), lambda: x.index_select(0, on_host), lambda: x[on_host]):
            with pytest.raises(AssertionError, match="mixes devices"):
                mixed()
        for asked in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0]):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                asked()
        assert gpu.seen == ["_local_scalar_dense", "nonzero", "index"]
        on_host.to(DEVICE), x.cpu()
        assert len(gpu.waits) == 2
        with pytest.raises(AssertionError, match="no copy from the host"):
            gpu.capture(lambda: on_host.to(DEVICE, non_blocking=True))


def asked_of(config, grids) -> list[Request]:
    """Return a request for each modality that can be made, given something of all others."""
    rng, records = np.random.default_rng(0), config.model.modalities
    requests = []
    for output in (name for name, record in records.items() if record.objective != "input"):
        others = [name for name, record in records.items() if name != output and not record.reads]
        prompt = [drawn_part(config, grids, rng, name, True) for name in others]
        sampling = {n: replace(s, steps=2) for n, s in config.generate.sampling.items() if n == output}
        lengths = dict.fromkeys(records, 3)
        requests.append(Request(prompt, output, sampling, max_tokens=lengths, number=len(requests)))
    return requests


def answer(engine, monkeypatch) -> list:
    """Let the engine find ids and latents where it asks for them; return what it was given."""
    allowed, given = engine._allowed, []

    def ids(drawn):
        assert drawn.device == DEVICE and drawn.dtype == torch.int64
        rows = [row for row in engine.rows if not row.canvas]
        found = []
        for row in rows:
            low, high = allowed.ranges[allowed.state_of(row)]
            one = low if high - low == 1 else engine.layout.offsets[row.span or engine.layout.host] + 3
            found += [one] * (1 + len(row.guesses))
        assert drawn.shape == (len(found),)
        given.append(found)
        return found

    def part(canvas, latents):
        assert latents.device == DEVICE and latents.dtype == torch.float32
        given.append(canvas)
        return Part(canvas.modality, latents=np.zeros(latents.shape, np.float32), grid=canvas.grid)

    monkeypatch.setattr(FakeTensor, "tolist", ids)
    monkeypatch.setattr(Canvas, "part", part)
    return given


def planned(monkeypatch) -> list[cache.CacheStep]:
    """Return where the plans of all passes through the cache but those of single ids will be."""
    steps, plan_step = [], cache.plan_step
    monkeypatch.setattr(cache, "plan_step", lambda *given: steps.append(plan_step(*given)) or steps[-1])
    return steps


@every_config
def test_generation(number, monkeypatch):
    """Prompts, decoding by graphs and denoising, of rows that differ and of rows that are alike; caches take turns."""
    config, grids = rehearsed(number)
    precision, page_size, speculate = (("bfloat16", 0, 0), ("float32", 16, 2), ("bfloat16", 16, 0))[number % 3]
    requests = asked_of(config, grids)
    continuous = [r for r in requests if config.model.modalities[r.output].objective == "diffusion"]
    alike = [replace(r, number=i) for r in continuous[: number % 2] for i in (8, 9)]
    grids = {name: grid for name, grid in grids.items() if config.model.modalities[name].objective != "input"}
    with made_up_gpu(monkeypatch) as gpu:
        monkeypatch.setattr("plait.generate.engine.CudaCapture", lambda: gpu.capture)
        model = model_on_the_gpu(config.model)
        if precision == "bfloat16":
            shorten(model)
        passes = watched(model)
        engine = Generator(model, grids=grids, max_rows=len(requests), max_length=config.model.max_positions,
                           diffusion=config.diffusion, precision=precision, page_size=page_size, cuda_graphs=True,
                           speculate=speculate)  # fmt: skip
        given, results, steps = answer(engine, monkeypatch), [], planned(monkeypatch)
        engine.reserve(requests)
        for together in (requests, alike):
            for request in together:
                engine.add(request)
            stop = engine.num_steps + 5
            while engine.rows and engine.num_steps < stop:
                results += engine.step()
            results += [engine.cancel(row.id) for row in list(engine.rows)]  # images of many ids
    assert {r.request.output for r in results if r.stopped != "cancelled"} >= {
        name for name in engine.layout.names if name not in grids and config.model.modalities[name].objective != "input"
    }
    for result in results:
        if (record := config.model.modalities[result.request.output]).objective == "diffusion":
            (part,) = result.parts
            assert result.stopped == "done" and part.latents.shape[1] == record.latent_channels
    check_passes(passes, model)
    assert engine.cache.keys.device == DEVICE
    assert engine.cache.keys.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    assert any(s.num_rows for s in steps) == bool(alike), "canvases of one size are attended together"
    is_planned = any(s.plan for s in steps)
    assert is_planned == (gpu.calls["_varlen_attn"] > 0) and not (is_planned and precision == "float32")
    assert is_planned or continuous or precision == "float32", "prompts of ids alone are attended as in training"
    assert engine.num_syncs == len(given) and len(passes) > 3
    assert gpu.calls["capture"] and gpu.calls["replay"] and gpu.calls["scaled_dot_product_attention"]
    assert gpu.calls["flex"] == gpu.calls["segment_attention"] == gpu.calls["baddbmm"] == 0
    cut = [s for request in requests for s in request.sampling.values() if s.temperature > 0 and s.top_p < 1]
    assert bool(gpu.calls["sort"]) == bool(cut)
    assert bool(gpu.calls["heads_to_sequence"]) == uses_kernel(number)
    assert gpu.seen == [] and set(gpu.waits) <= WAITS_IN_GENERATION
