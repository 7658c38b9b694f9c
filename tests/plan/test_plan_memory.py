"""The planned memory of a training step against what torch's allocator hands out when the step is run.

Measured are the bytes that the CPU's allocator holds, each allocation and release as torch's profiler records it, from
before the model is made to the end of the second step: exact, and the same every time. The resident memory of a
process is neither: it also holds the interpreter, and memory that was released and is kept.
"""

import dataclasses

import pytest
import torch
from harness import cpu_peak_bytes
from helpers.fake_data import run_config, scene_like

from plait.batch.assemble import pack
from plait.config.model import ModelConfig, TowerConfig
from plait.config.rank_layout import Layout
from plait.config.run import TrainConfig
from plait.model import precision
from plait.plan.layouts import sizes
from plait.plan.memory import rank_memory
from plait.plan.trace import trace_pass
from plait.train import trainer as trainer_module

VOCABULARY = {"text": 2048, "image": 1024, "speech": 512}
TOLERANCE = 0.03
"""Far below the tenth that is promised, so that a tensor more or less is seen."""


def config_for(folder, *, train, frozen=(), **model):
    config = run_config(folder)
    config.out, config.train = str(folder), TrainConfig(device="cpu", **train)
    modalities = {n: dataclasses.replace(config.model.modalities[n], vocab_size=v) for n, v in VOCABULARY.items()}
    config.model = ModelConfig(modalities, **({"width": 128, "num_heads": 4, "num_layers": 4} | model))
    for tower in frozen:
        config.towers[tower].frozen = True
    return config


def planned_and_measured(config, batches, monkeypatch) -> tuple[float, float]:
    monkeypatch.setattr(trainer_module, "resolve_vocabulary", lambda c: c)  # there is no prepared data
    monkeypatch.setattr(precision, "is_fast_in_bfloat16", lambda kind: True)  # the plan does not know the processor

    def two_steps():
        trainer = trainer_module.Trainer(config)
        for _ in range(2):  # the first one makes the optimizer's state
            trainer.update(batches)

    largest = max(batches, key=lambda b: b.num_tokens)
    once = trace_pass(config, largest.documents, device="cpu")
    planned = rank_memory(
        config, Layout(), sizes(config.model, config.frozen_towers), once, batches=len(batches), width=4
    )
    return planned.peak, cpu_peak_bytes(two_steps)


TEXT_MOE = {"text": TowerConfig(ffn="moe", num_experts=4, top_k=2), "image": TowerConfig(), "speech": TowerConfig()}
WIDTHS = {"text": TowerConfig(), "image": TowerConfig(width=64, ffn_width=256), "speech": TowerConfig()}


@pytest.mark.parametrize(
    ("train", "model"),
    [
        ({}, {}),
        ({"checkpoint_activations": "full"}, {"num_layers": 6}),
        ({"precision": "bfloat16"}, {}),
        ({"precision": "bfloat16", "checkpoint_activations": "full"}, {"width": 192}),
        ({"ema": 0.99}, {"num_layers": 2, "width": 384}),
        ({}, {"num_kv_heads": 1, "qk_norm": False, "norm_order": "post"}),
        ({}, {"untied": ["ffn"], "tie_embeddings": True}),
        ({}, {"towers": WIDTHS, "head_dim": 32}),
        ({"checkpoint_activations": "full"}, {"towers": TEXT_MOE}),
        ({}, {"frozen": ["text"]}),
        ({"checkpoint_activations": "selective"}, {}),
    ],
    ids=["plain", "recomputed", "bfloat16", "bfloat16, recomputed", "averages, wide", "post-norm, grouped queries",
         "only ffn untied", "widths", "experts, recomputed", "frozen",
         "partly recomputed"],
)  # fmt: skip
def test_the_peak_is_what_the_allocator_says(tmp_path, monkeypatch, train, model):
    config = config_for(tmp_path, train=train, **model)
    batch = pack([scene_like(i) for i in range(10)], config.model)
    planned, measured = planned_and_measured(config, [batch], monkeypatch)
    assert planned == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_accumulated_batches_add_their_gradients(tmp_path, monkeypatch, recompute):
    config = config_for(tmp_path, train={"checkpoint_activations": recompute, "accumulate": 2}, width=256)
    batches = [pack([scene_like(i)], config.model) for i in range(2)]
    planned, measured = planned_and_measured(config, batches, monkeypatch)
    assert planned == pytest.approx(measured, rel=0.05)


def test_any_depth_follows_from_two(tmp_path):
    kept = []
    for num_layers in (2, 3, 9):
        config = config_for(tmp_path, train={}, num_layers=num_layers)
        kept.append(trace_pass(config, [scene_like(0)], device="cpu").kept)
    assert kept[1] > kept[0] and kept[2] - kept[0] == pytest.approx(7 * (kept[1] - kept[0]))


def test_a_gpus_operations_keep_less_and_need_no_gpu(tmp_path):
    config = config_for(tmp_path, train={"precision": "bfloat16"})
    cpu, gpu = (trace_pass(config, [scene_like(0)], device=device) for device in ("cpu", "cuda"))
    assert 0.4 * cpu.kept < gpu.kept < 0.9 * cpu.kept
    x = torch.ones(2, 4)
    assert torch.equal(torch.nn.functional.rms_norm(x, (4,), eps=0.0), x), "what stood in for a GPU is gone again"


def test_ranks_that_share_a_batch_share_its_activations(tmp_path):
    config = config_for(tmp_path, train={})
    documents = [scene_like(i) for i in range(8)]
    alone, tensor, context = (
        trace_pass(config, documents, device="cpu", **shared) for shared in ({}, {"tensor": 4}, {"context": 4})
    )
    assert alone.tensor == alone.context == tensor.context == context.tensor == 0
    assert context.kept == pytest.approx(alone.kept / 4, rel=0.1)
    assert alone.kept / 4 < tensor.kept < alone.kept / 2, "what goes into a matrix is gathered, and kept"
    rows, width, layers = 1600, 128, 4
    rows = sum(pack(documents, config.model).routing.padded_sizes)
    # twice gathered and twice scattered in each block, forward and again backward, and once around the loss
    stream = 4 * width * rows * 3 / 4
    assert tensor.tensor == pytest.approx((8 * layers + 3) * stream, rel=0.05)
    # queries, keys and values to heads, the output back; the same for their gradients
    assert context.context == pytest.approx(2 * layers * 4 * stream / 4, rel=0.01)
