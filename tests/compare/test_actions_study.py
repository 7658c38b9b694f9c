"""The study `actions`, on made-up documents: its arms cost the same, and train."""

import numpy as np
import pytest
import torch
from helpers.fake_data import write_folder

from plait.batch.documents import Document, Part
from plait.compare import planned_runs
from plait.compare.study import load_study
from plait.config.shipped import study_path
from plait.data.sources import resolve_vocabulary
from plait.train.trainer import Trainer


def latent(codec: str, key: str, channels: int, grid: list[int]) -> dict:
    return {"codec": codec, "key": key, "vocab_size": 0, "latent_channels": channels, "patch_size": 1,
            "default_grid": grid, "fingerprint": key}  # fmt: skip


MODALITIES = {
    "text": {"codec": "text_bpe", "key": "text", "vocab_size": 400, "latent_channels": 0, "default_grid": [],
             "fingerprint": "text"},
    "image": latent("image_pixels", "image", 768, [4, 4]),
    "state": latent("actions", "state", 4, [1]),
    "actions": latent("actions", "actions", 4, [8]),
}  # fmt: skip
SMALL = ["data.num_workers=0", "train.device=cpu", "train.accumulate=1", "data.batch_tokens=256"]


def moment(i: int) -> Document:
    """Return a sentence, what is seen, and what is done."""
    rng = np.random.default_rng(i)
    parts = [Part("text", rng.integers(0, 400, rng.integers(4, 9)))]
    for name in ("image", "state", "actions"):
        grid = MODALITIES[name]["default_grid"]
        values = rng.standard_normal((int(np.prod(grid)), MODALITIES[name]["latent_channels"])).astype(np.float32)
        parts.append(Part(name, latents=values, grid=tuple(grid)))
    return Document(parts, index=i)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": [moment(i) for i in range(40)], "unseen_starts": [moment(100 + i) for i in range(4)]}
    write_folder(folder, splits, modalities=MODALITIES)
    return load_study(study_path("actions"), overrides=[f"data.path={folder}", *SMALL])


def test_towers_are_by_modality_and_by_role(study, tmp_path):
    towers = {arm: study.run_config(arm, seed=0, steps=1, out=tmp_path).model.modalities for arm in study.config.arms}
    by_arm = {arm: {name: m.tower for name, m in modalities.items()} for arm, modalities in towers.items()}
    given = {"text": "text", "image": "text", "state": "text"}
    assert by_arm == {
        "dense": given | {"actions": "text"},
        "mot": {name: name for name in MODALITIES},
        "roles": given | {"actions": "actions"},
    }


def test_arms_cost_the_same_and_train(study, tmp_path, monkeypatch):
    monkeypatch.setattr(planned_runs, "BATCHES", 1)
    monkeypatch.setattr(study.config, "single_pass", False)
    plan = planned_runs.make_plan(study, ["dense", "mot", "roles"])
    planned_runs.check_plan(study, plan)
    for name in ("mot", "roles"):
        for way in ("formula", "counted"):
            ratio = getattr(plan[name].flops, way) / getattr(plan["dense"].flops, way)
            assert ratio == pytest.approx(1, abs=1e-3), (name, way)
    for arm in plan:
        trainer = Trainer(study.run_config(arm, seed=0, steps=2, learning_rate=1e-3, out=tmp_path / arm))
        before = {n: p.clone() for n, p in trainer.model.named_parameters()}
        batches = planned_runs.first_batches(resolve_vocabulary(trainer.config), 1)
        sums, _, norm = trainer.update([trainer._finish(b) for b in batches])
        assert torch.isfinite(sums).all() and norm > 0
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
        assert all(any(f".{tower}." in n for n in moved) for tower in trainer.config.model.towers)


def test_it_is_fair(study):
    config = study.config
    assert len(config.seeds) == 3 and len(config.tuning.learning_rates) >= 3 and config.tolerance <= 0.02
    assert all(arm.tune and arm.about for arm in config.arms.values()) and config.shares == ["success"]
    base = study.base_config()
    assert base.evaluate.trials and not base.evaluate.baseline_minutes
    assert [name for name, m in base.modalities.items() if m.learns] == ["actions"]
