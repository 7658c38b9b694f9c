"""The studies that are shipped: every arm of every one builds, costs what it should, and trains."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_data import write_folder

from plait.batch.documents import Document, Part
from plait.compare import planned_runs
from plait.compare.study import Study, load_study
from plait.config.shipped import STUDIES, study_path
from plait.data.sources import resolve_vocabulary
from plait.train.trainer import Trainer

NAMES = ["ablation", "bigger_dense", "chameleon", "chameleon_speech", "hybrid", "leave_one_out", "scale", "transfusion"]
OTHERS = ["actions", "upcycled", "world_model"]
"""Those of other documents: tests/compare/test_actions_study.py, test_upcycled_study.py."""
TOKENS = {
    "text": {"codec": "text_bpe", "key": "text", "vocab_size": 2048, "latent_channels": 0},
    "image": {"codec": "image_tokens", "key": "image", "vocab_size": 1000, "latent_channels": 0},
    "speech": {"codec": "speech_tokens", "key": "audio", "vocab_size": 1000, "latent_channels": 0},
}
LATENTS = {"codec": "image_latents", "key": "image", "vocab_size": 0, "latent_channels": 16, "patch_size": 2}
SPEED = ["data.num_workers=0", "train.device=cpu", "train.accumulate=1", "data.batch_tokens=1024"]


def scene(i: int, image: dict) -> Document:
    """Return a document with as many tokens of each kind as the prepared ones have: a fifth are passages of text."""
    rng = np.random.default_rng(i)
    if i % 5 == 0:
        return Document([Part("text", rng.integers(0, 2048, rng.integers(150, 260)))])
    parts = [Part("text", rng.integers(0, 2048, rng.integers(6, 13)))]
    if image["latent_channels"]:
        parts.append(Part("image", latents=rng.standard_normal((64, 16)).astype(np.float32), grid=(8, 8)))
    else:
        parts.append(Part("image", rng.integers(0, 1000, 64), grid=(8, 8)))
    return Document([*parts, Part("speech", rng.integers(0, 1000, rng.integers(40, 60)))])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared folders of both kinds of images."""
    made = {}
    for kind, image in (("tokens", TOKENS["image"]), ("latents", LATENTS)):
        modalities = {name: {"default_grid": [], "fingerprint": name} | r for name, r in TOKENS.items()}
        modalities["image"] = {"default_grid": [8, 8], "fingerprint": kind} | image
        splits = {"train": [scene(i, image) for i in range(120)], "seen": [scene(500 + i, image) for i in range(4)]}
        made[kind] = write_folder(tmp_path_factory.mktemp(kind), splits, modalities=modalities)
    return made


def study_of(name: str, folders: dict):
    is_latents = shipped(name).base_config().modalities["image"].codec == LATENTS["codec"]
    path = folders["latents" if is_latents else "tokens"]
    return load_study(study_path(name), overrides=[f"data.path={path}", *SPEED])


@functools.cache
def shipped(name: str) -> Study:
    """Return a study as it is shipped, read once; nobody changes it."""
    return load_study(study_path(name))


@functools.cache
def arms() -> list[tuple[str, str]]:
    """Return every arm once, with the first study that has it."""
    found = {}
    for name in NAMES:
        config = shipped(name).config
        for arm in config.arms:
            found.setdefault((config.out, arm), (name, arm))
    return list(found.values())


def towers_of(study: str, arm: str) -> dict[str, str]:
    model = shipped(study).run_config(arm, seed=0, steps=1, out=Path("none")).model
    return {name: m.tower for name, m in model.modalities.items()}


def test_all_comparisons_are_there():
    """Every model that the study of the paper's claims asks for is an arm of some shipped study."""
    asked = {
        "chameleon": "dense dense_parameters mot ffn moe_expert_choice moe_causal",
        "chameleon_speech": "dense mot dense_parameters moe_expert_choice",
        "transfusion": "dense mot dense_parameters",
        "ablation": "norms attention ffn ffn_qkv mot bridged roles random widths",
        "leave_one_out": "mot text_alone image_alone speech_alone",
        "hybrid": "mot hybrid hybrid_causal",
        "scale": "dense mot dense_48 mot_48 dense_64 mot_64 dense_128 mot_128",
        "bigger_dense": "dense_48 dense mot",
    }
    for name, arms in asked.items():
        assert set(arms.split()) <= set(shipped(name).config.arms), name
    for alone in ("text", "image", "speech"):
        towers = towers_of("leave_one_out", f"{alone}_alone")
        assert len(set(towers.values())) == 2 and list(towers.values()).count(towers[alone]) == 1


def test_all_studies_are_there():
    assert sorted(p.stem for folder in STUDIES for p in folder.glob("*.yaml")) == sorted([*NAMES, *OTHERS])


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_the_head_says_how(name):
    head = study_path(name).read_text().split("base:")[0]
    assert f"plait compare {name}" in head and "hardware" in head and "time" in head


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_fair(name):
    config = shipped(name).config
    assert config.paper and config.single_pass and config.tolerance <= 0.02
    assert len(config.tuning.learning_rates) >= 3
    for arm in config.arms.values():
        found_before = name == "scale" and arm.learning_rate  # the same trials are in docs/experiments.md
        assert arm.tune or arm.learning_rate_of or found_before, "a rate that was never tuned proves nothing"
        assert arm.about


@pytest.mark.parametrize("name", ["chameleon", "chameleon_speech", "transfusion"])
def test_headlines_have_three_seeds(name):
    assert len(shipped(name).config.seeds) >= 3


def test_studies_of_one_folder_agree_on_what_they_share():
    known = {}
    for name in NAMES:
        study = shipped(name)
        c = study.config
        shared = (study.base, c.settings, c.budget, c.validate_every, c.tuning)
        assert known.setdefault(c.out, shared) == shared, name
        for arm, record in c.arms.items():
            mine = (record.settings, record.tune, record.learning_rate_of, record.seeds[0])
            assert known.setdefault((c.out, arm), mine) == mine, f"{name}: {arm}"


PLANS = {}


def planned(out: str, arm: str, study, plan_arm=planned_runs._plan_arm):
    """Plan an arm once: studies of one folder agree on it."""
    if (out, arm) not in PLANS:
        PLANS[out, arm] = plan_arm(study, arm)
    return PLANS[out, arm]


@pytest.mark.parametrize("name", NAMES)
def test_arms_cost_what_they_should(name, folders, monkeypatch):
    """Equal operations by formula and by torch, equal parameters, on documents like the drawn scenes."""
    monkeypatch.setattr(planned_runs, "BATCHES", 1)
    monkeypatch.setattr(planned_runs, "_plan_arm", lambda study, arm: planned(study.config.out, arm, study))
    study = study_of(name, folders)
    study.config.single_pass = False
    found = planned_runs.make_plan(study, list(study.config.arms))
    planned_runs.check_plan(study, found)
    assert all(p.parameters < 20e6 for p in found.values())


@pytest.mark.parametrize(("name", "arm"), arms(), ids=lambda x: str(x))
def test_every_arm_trains(name, arm, folders, tmp_path):
    study = study_of(name, folders)
    config = study.run_config(arm, seed=0, steps=2, learning_rate=1e-3, out=tmp_path)
    trainer = Trainer(config)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    batches = planned_runs.first_batches(resolve_vocabulary(config), 1)
    sums, counts, norm = trainer.update([trainer._finish(b) for b in batches])
    assert torch.isfinite(sums).all() and all(c > 0 for c in counts) and norm > 0
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[0] for n in moved} >= {"embed", "blocks", "final_norm", "head"}
    assert all(any(f".{tower}." in n or ".shared." in n for n in moved) for tower in config.model.towers)
