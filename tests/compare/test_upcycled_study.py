"""The study `upcycled`, small: a random model of transformers stands where SmolLM2 does."""

import numpy as np
import pytest
import torch
from helpers import language_models as llms
from helpers.fake_data import write_folder

from plait.batch.documents import Document, Part
from plait.common.progress import QuietProgress
from plait.compare import planned_runs
from plait.compare.study import load_study
from plait.config.shipped import study_path
from plait.data.sources import resolve_vocabulary
from plait.train.trainer import Trainer
from plait.upcycle.write import upcycle

MODALITIES = {
    "text": {"codec": "text_pretrained", "key": "text", "vocab_size": 300, "latent_channels": 0, "default_grid": [],
             "ends": {"bos": "none", "eos": 1, "stops": []}, "fingerprint": "text"},
    "image": {"codec": "image_components", "key": "image", "vocab_size": 0, "latent_channels": 7, "patch_size": 1,
              "default_grid": [4, 4], "fingerprint": "image"},
}  # fmt: skip
SMALL = ["model.width=48", "model.num_layers=4", "model.num_heads=4", "model.num_kv_heads=2", "model.head_dim=12",
         "model.ffn_width=80", "model.norm_eps=1e-6", "model.rope_theta=10000", "model.towers.image.width=32",
         "model.towers.image.ffn_width=64", "data.num_workers=0", "train.device=cpu",
         "data.batch_tokens=256", "data.max_document_tokens=256"]  # fmt: skip


def scene(i: int) -> Document:
    rng = np.random.default_rng(i)
    image = Part("image", latents=rng.standard_normal((16, 7)).astype(np.float32), grid=(4, 4))
    return Document([Part("text", llms.random_ids(9, i)), image], index=i)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study on made-up documents, in a folder where an upcycled model lies."""
    monkeypatch.chdir(tmp_path)
    llms.save(llms.model("llama tied").float(), tmp_path / "source")
    upcycle("source", "smollm2", ["text"], QuietProgress())
    splits = {"train": [scene(i) for i in range(40)], "seen": [scene(100 + i) for i in range(4)]}
    write_folder(tmp_path / "data", splits, modalities=MODALITIES)
    return load_study(study_path("upcycled"), overrides=[f"data.path={tmp_path / 'data'}", *SMALL])


def test_both_arms_train_the_same_model_from_other_weights(study, tmp_path):
    study.config.single_pass = False
    planned = planned_runs.make_plan(study, ["random", "upcycled"])
    planned_runs.check_plan(study, planned)
    assert planned["random"].parameters == planned["upcycled"].parameters
    weights = {}
    for arm in planned:
        config = study.run_config(arm, seed=0, steps=2, learning_rate=1e-3, out=tmp_path / arm)
        trainer = Trainer(config)
        before = {n: p.clone() for n, p in trainer.model.named_parameters()}
        batches = planned_runs.first_batches(resolve_vocabulary(config), 1)
        sums, counts, norm = trainer.update([trainer._finish(b) for b in batches])
        assert torch.isfinite(sums).all() and all(c > 0 for c in counts) and norm > 0
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
        assert all(any(f".{tower}." in n for n in moved) for tower in ("text", "image"))
        weights[arm] = before
    same = {n for n, p in weights["random"].items() if torch.equal(p, weights["upcycled"][n])}
    assert same and all(".image." in n or n.startswith("latent") or "_norm" in n for n in same)
    assert "blocks.0.ffn.text.down.weight" not in same and "embed.image.weight" in same


def test_it_is_fair(study):
    config = study.config
    assert config.single_pass and len(config.seeds) == 2 and len(config.tuning.learning_rates) >= 3
    assert all(arm.tune and arm.about for arm in config.arms.values())
