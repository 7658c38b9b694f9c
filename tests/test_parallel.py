"""Losses, gradients and steps do not depend on how the work is cut: one process equals two ranks and four."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import model_config, random_documents
from fake_data import run_config, scene_like, write_folder
from ranks import Steps, Workers, train_steps

from plait.config import ParallelConfig, TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(40)]})


@pytest.fixture(scope="module")
def two():
    workers = Workers(2)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def four():
    workers = Workers(4)
    yield workers
    workers.close()


def config_for(folder, out, *, train=None, **model):
    config = run_config(folder)
    config.out = str(out)
    config.model = model_config(**({"mel": True, "num_kv_heads": 2, "num_heads": 4} | model))
    for name in ("text", "image", "speech"):
        record = config.model.modalities[name]
        record.vocab_size, record.codec = 0, f"fake_{name}"
    config.train = TrainConfig(**({"device": "cpu", "clip": 1e9, "warmup_steps": 1} | (train or {})))
    return config


def dealt(steps=1, data=2, batches=1, *, only=None, **settings):
    """Return documents by step, data rank and batch; ``only`` names the modalities of each data rank."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(steps):
        made.append([[random_documents(rng, 4, only=only[r] if only else None, **settings) for _ in range(batches)]
                     for r in range(data)])  # fmt: skip
    for i, document in enumerate(d for step in made for rank in step for batch in rank for d in batch):
        document.index = i
    return made


def assert_equal(alone: Steps, ranks: list[Steps]) -> None:
    for found in ranks:
        for name in ("counts", "sums", "norms", "gradients", "weights", "buffers"):
            torch.testing.assert_close(
                getattr(found, name), getattr(alone, name), rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


LAYOUTS = {
    2: {"fsdp": {}, "replicas": {"replicate": 2}, "tensor": {"tensor": 2}, "context": {"context": 2}},
}


def layout_of(config, **parallel):
    return dataclasses.replace(config, parallel=ParallelConfig(**parallel))


@pytest.mark.parametrize("layout", LAYOUTS[2])
def test_two_ranks_equal_one_process(layout, folder, tmp_path, two):
    config = config_for(folder, tmp_path)
    parallel = LAYOUTS[2][layout]
    data = 2 // (parallel.get("tensor", 1) * parallel.get("context", 1))
    steps = dealt(steps=2, data=data, batches=2, mel=True)
    alone = train_steps(config, steps)
    assert_equal(alone, two.run(train_steps, layout_of(config, **parallel), steps))
