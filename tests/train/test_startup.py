"""What a run says of itself before its first step, and what it records of chosen steps."""

import gc
import json
import logging
from dataclasses import replace

import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.models import model_config
from helpers.training import config_for, stopped_at

from plait.common.errors import ConfigError
from plait.common.progress import QuietProgress
from plait.common.units import count
from plait.config.model import TowerConfig
from plait.config.rank_layout import Layout
from plait.config.run import TrainConfig
from plait.data.sources import data_fingerprint
from plait.model.mot import MixtureOfTransformers
from plait.train.profile import COLLECT_EVERY
from plait.train.startup import batch_facts, frozen_facts, model_facts, ranks_facts
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    splits = {"train": [scene_like(i) for i in range(40)], "seen": [scene_like(i, seed=1) for i in range(8)]}
    return write_folder(tmp_path_factory.mktemp("data"), splits)


def test_a_run_says_what_it_is_about_to_do(folder, tmp_path, caplog):
    config = config_for(folder, tmp_path, accumulate=2)
    with caplog.at_level(logging.INFO, "plait.train"):
        trainer = Trainer(config, QuietProgress())
        stopped_at(trainer, 3)
        said = caplog.text
        assert f"{count(trainer.model.num_parameters())} parameters: text" in said and "active" in said
        assert "ranks   1" in said and "1,024 tokens = 512 x 2 batches" in said
        assert f"{folder} (40 documents), digest {data_fingerprint(config)}" in said
        assert "device  cpu (" in said and "from step 0" in said and "resumed" not in said
        caplog.clear()
        stopped_at(Trainer(config, QuietProgress()), 5)
        assert "resumed at step 3" in caplog.text


def test_without_instructions_for_bfloat16_a_run_is_that_of_float32(folder, tmp_path, caplog, monkeypatch):
    """A CPU that ends at AVX2 computes bfloat16 tens of times slower: a run that asks for it says what it does."""
    monkeypatch.setattr("plait.model.precision.is_fast_in_bfloat16", lambda kind: False)
    weights = {}
    for precision in ("float32", "bfloat16"):
        with caplog.at_level(logging.INFO, "plait.train"):
            trainer = Trainer(config_for(folder, tmp_path / precision, precision=precision), QuietProgress())
            trainer.run()
        weights[precision] = trainer.model.state_dict()
    assert "threads), float32 in place of bfloat16, for which it has no instructions" in caplog.text
    for name, weight in weights["float32"].items():
        assert torch.equal(weight, weights["bfloat16"][name]), name


def test_a_program_hears_nothing_unless_it_asks(folder, tmp_path, capsys, caplog):
    Trainer(config_for(folder, tmp_path, steps=1), QuietProgress()).run()
    assert "parameters" not in caplog.text and capsys.readouterr().err == ""


def test_parameters_of_towers_add_up_and_idle_experts_are_not_active():
    experts = TowerConfig(ffn="moe", moe_routing="token_choice", num_experts=4, top_k=1)
    model = MixtureOfTransformers(model_config())
    assert count(model.num_parameters()) in model_facts(model).split(" parameters")[0]
    config = model.config
    sparse = MixtureOfTransformers(replace(config, towers={**config.towers, "text": experts}))
    idle = config.num_layers * 3 * config.width * sparse.config.towers["text"].ffn_width * 3
    active = sparse.passed_parameters()["text"] - idle
    assert f"text {count(_owned(sparse, 'text'))} ({count(active)} active)" in model_facts(sparse)


def _owned(model: MixtureOfTransformers, tower: str) -> int:
    return sum(p.numel() for part, p in model.weights() if part.tower == tower)


def test_arithmetic_of_ranks_and_batches(folder, tmp_path):
    config = config_for(folder, tmp_path)
    assert batch_facts(config, 8, 4) == "16,384 tokens = 512 x 4 batches x 8 data ranks"
    assert batch_facts(config, 1, 1) == "512 tokens"
    assert ranks_facts(Layout(replicate=2, shard=4, tensor=2)) == "16 (replicate 2, shard 4, tensor 2)"
    assert [count(n) for n in (12, 1234, 12_345_678, 7_000_000_000)] == ["12", "1.23k", "12.3M", "7B"]


def test_chosen_steps_are_recorded(folder, tmp_path):
    Trainer(config_for(folder, tmp_path, steps=4, profile=[2, 3]), QuietProgress()).run()
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "trace-2-3.json"
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert sum("Optimizer.step" in name for name in names) == 2 and any("aten::mm" in name for name in names)


def test_no_step_is_recorded_unless_asked(folder, tmp_path):
    Trainer(config_for(folder, tmp_path, steps=2), QuietProgress()).run()
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [[3], [3, 2], [0, 1], [1, 2, 3]])
def test_wrong_steps_to_record(steps):
    with pytest.raises(ConfigError, match=r"train\.profile"):
        TrainConfig(profile=steps)


def test_garbage_is_collected_at_steps_alone(folder, tmp_path, monkeypatch):
    collected, enabled = [], []
    monkeypatch.setattr("plait.train.profile.gc.collect", lambda *generation: collected.append(generation))
    trainer = Trainer(config_for(folder, tmp_path, steps=2 * COLLECT_EVERY, validate_every=1000), QuietProgress())
    original = trainer.update
    trainer.update = lambda batches: (enabled.append(gc.isenabled()), original(batches))[1]
    trainer.run()
    assert gc.isenabled() and not any(enabled) and collected.count((1,)) == 2


def test_frozen_facts():
    """Fixed parameters and rows; and what of a frozen tower is shared, so that it trains."""
    model = MixtureOfTransformers(model_config())
    assert frozen_facts(model, ["text"]) == f"text: {count(_owned(model, 'text'))} parameters, and 22 rows of ids"
    shared = frozen_facts(MixtureOfTransformers(model_config(untied=["qkv", "ffn"])), ["text"])
    names = "attention_norm, ffn_norm, final_norm, o"
    assert shared.endswith(f"; {names} of its blocks are shared with other towers, and train")
