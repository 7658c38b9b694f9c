"""A study of two tiny models, as tests write and read it."""

import json
from pathlib import Path

import yaml

from helpers.fake_data import scene_like, write_folder

BASE = {
    "model": {"width": 16, "num_layers": 1, "num_heads": 2, "modalities": {"text": {}, "image": {}}},
    "data": {"batch_tokens": 256, "num_workers": 0, "tasks": {"text,image": 1, "image,text": 1}},
    "train": {
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "log_every": 1,
        "validation_batches": 1,
        "checkpoint_every": 2,
        "device": "cpu",
    },
}
STUDY = {
    "base": "base.yaml",
    "validate_every": 1,
    "budget": {"steps": 6},
    "seeds": [0, 1],
    "arms": {
        "dense": {"settings": {"model.modalities.image.tower": "text"}, "about": "one tower"},
        "mot": {"about": "a tower for each modality"},
    },
    "paper": [
        {"claim": "image", "arm": "mot", "modality": "image", "value": 0.35, "unit": "of the steps", "model": "7B"},
        {"claim": "distance", "value": 15.8, "figure": ""},
    ],
}


def write_data(folder: Path, *, seed: int = 0) -> Path:
    sizes = {"train": (150, seed), "seen": (20, 1), "unseen": (20, 2)}
    return write_folder(folder, {name: [scene_like(i, seed=s) for i in range(n)] for name, (n, s) in sizes.items()})


def write_base(folder: Path, data: Path) -> Path:
    base = yaml.safe_load(yaml.safe_dump(BASE))
    base["data"]["path"] = str(data)
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    return folder


def arm_and_seed(trainer) -> tuple[str, str]:
    """Return whose run it is, from its folder: <arm>/<learning rate>/seed-<n>."""
    return trainer.out.parts[-3::2]


def write(folder, **changes):
    values = yaml.safe_load(yaml.safe_dump(STUDY | {"out": str(folder / "out")}))
    for key, value in changes.items():
        at = values
        *parents, last = key.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "tiny.yaml"


def results(folder) -> dict:
    return json.loads((folder / "out" / "results" / "tiny" / "results.json").read_text())
