"""Steps that are not finite: skipped and counted, and when they are too many, what caused the last one is kept."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.training import config_for, stopped_at
from safetensors.torch import load_file

from plait.common.errors import PlaitError
from plait.report.run_charts import run_charts
from plait.train.diagnostics import progress_text
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(150)]})


def spoilt(trainer: Trainer, steps) -> list:
    """Make the loss of some steps (from 1) NaN; return the batches of every step as they are trained on."""
    seen, update, factors = [], trainer.update, trainer.loss_factors

    def noted(batches):
        seen.append(batches)
        return update(batches)

    trainer.update = noted
    trainer.loss_factors = lambda counts: [
        f * (np.nan if trainer.state.step + 1 in steps else 1) for f in factors(counts)
    ]
    return seen


@pytest.mark.parametrize("log_every", [1, 4])
def test_the_last_bad_batch_is_kept(folder, tmp_path, log_every):
    trainer = Trainer(config_for(folder, tmp_path, max_bad_steps=1, log_every=log_every, accumulate=2))
    seen = spoilt(trainer, (2, 7))
    with pytest.raises(PlaitError, match=r"2 steps had .*max_bad_steps is 1") as error:
        trainer.run()
    kept = tmp_path / "bad_batches/step-00000007"
    assert f"the batch of the last one is in {str(kept)!r};" in str(error.value)
    facts = json.loads((kept / "rank-0/facts.json").read_text())
    assert facts["step"] == 7 and facts["loader"]["counts"]["batches"] == 12
    for number, batch in enumerate(seen[6]):
        tensors = load_file(kept / f"rank-0/batch-{number}.safetensors")
        assert torch.equal(tensors["ids"], batch.ids) and torch.equal(tensors["targets.ids"], batch.targets.ids)
        assert torch.equal(tensors["routing.to_towers"], batch.routing.to_towers)
        found = json.loads((kept / f"rank-0/batch-{number}.json").read_text())
        assert [d["index"] for d in found["documents"]] == [d.index for d in batch.documents]
        assert found["counts"] == batch.counts and found["lengths"] == batch.lengths


def test_steps_skipped_before_a_resume_count_and_need_no_batch(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path, max_bad_steps=5, log_every=50))
    spoilt(trainer, (1, 2, 3))
    stopped_at(trainer, 4)
    with pytest.raises(PlaitError, match=r"3 steps had .*\(train.max_bad_steps is 2\); try"):
        Trainer(config_for(folder, tmp_path, max_bad_steps=2, log_every=1)).run()
    assert not (tmp_path / "bad_batches").exists()


def logged(trainer) -> list[dict]:
    trainer.run()
    return read_metrics(trainer.out / "metrics.jsonl")


def test_a_skipped_steps_loss_is_left_out_of_the_mean_with_its_count(folder, tmp_path):
    """Two steps a row, the second one skipped: the row has the loss of the first, not half of it."""
    alone = logged(Trainer(config_for(folder, tmp_path / "alone", steps=1)))
    trainer = Trainer(config_for(folder, tmp_path / "run", steps=4, log_every=2, max_bad_steps=5, validate_every=9))
    spoilt(trainer, (2,))
    trainer.measures.restart = lambda begun=None, real=trainer.measures.restart: (
        real(begun) if trainer.state.step != 1 else None
    )  # the first step has a row of its own, which here goes on to the second
    rows = [row for row in logged(trainer) if "loss/text" in row]
    assert [row["step"] for row in rows] == [1, 2, 4] and [row["skipped_steps"] for row in rows] == [0, 1, 1]
    assert rows[1]["loss/text"] == rows[0]["loss/text"] == pytest.approx(alone[0]["loss/text"], rel=1e-5)


def test_a_row_of_skipped_steps_alone_and_a_validation_of_poisoned_weights_are_nan(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path, steps=3, max_bad_steps=9, validate_every=3))
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if p.dim() == 2).fill_(float("nan"))
    rows = logged(trainer)
    trained = [row for row in rows if "skipped_steps" in row]
    assert [row["skipped_steps"] for row in trained] == [1, 2, 3]
    assert all(math.isnan(row["loss/text"]) and math.isnan(row["grad_norm"]) for row in trained)
    assert "text nan" in progress_text(trained[-1], 3)
    assert [v for row in rows for k, v in row.items() if k.startswith("val_loss/") and not math.isnan(v)] == []
    assert '"loss/text": "NaN"' in (tmp_path / "metrics.jsonl").read_text()
    (panel,) = run_charts(rows, ["text"])["loss"].panels
    assert "training is nan at step 1, not finite in 3 of 3 rows" in panel.note
