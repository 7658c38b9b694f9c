"""The sampling benchmark, small: its four ways end in the same latents, and its operation counts are right."""

import importlib.util

import pytest
import torch
from helpers import ROOT

from plait.batch.assemble import assemble

spec = importlib.util.spec_from_file_location("sampling", ROOT / "benchmarks/sampling.py")
sampling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sampling)


def test_quick_prints_every_row_with_its_floor(capsys):
    rows = sampling.main(["--quick", "--requests", "2"])
    assert [r["way"] for r in rows] == list(sampling.WAYS)
    assert rows[0]["ratio"] == rows[0]["floor"] == rows[1]["floor"] == 1.0
    assert rows[2]["floor"] == rows[3]["floor"] > 1.5
    assert all(r["images_per_second"] > 0 for r in rows)
    assert "recomputed, one by one" in capsys.readouterr().out


def test_other_latents_are_no_table():
    plait = torch.randn(4, 3)
    with pytest.raises(SystemExit, match="'cached, one by one' ends in other latents"):
        sampling.check_equal({"plait": plait, "cached, one by one": plait + 0.1})


def test_branches_saw_what_they_should():
    options = sampling.parse(["--quick"])
    model = sampling.build(options)
    everything, image, nothing = sampling.branches_of(sampling.request_of(0, 80, options), model)
    assert sum(map(len, everything)) == 80
    assert [r.modality for r in everything] == ["text", "text", "image", "text", "text", "text"]
    assert [r.modality for r in image] == ["text", "text", "image", "text", "text"]
    assert [len(r) for r in nothing] == [1, 1]


def test_operations_of_a_causal_text_by_hand():
    options = sampling.parse(["--quick"])
    model = sampling.build(options)
    config = model.config
    run = sampling.Run("text", torch.arange(5).numpy())
    towers = [part["generation"] for b in model.blocks for part in (b.qkv, b.o, b.ffn)]
    weights = sum(p.numel() for tower in towers for p in tower.parameters() if p.ndim == 2)
    pairs = 1 + 2 + 3 + 4 + 5
    expected = 5 * 2 * weights + pairs * 4 * config.num_layers * config.num_heads * config.head_dim
    assert sampling.Work(model).of(assemble([[run]], config)) == expected
