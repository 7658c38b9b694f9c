"""Tiny prepared folders and codecs for tests: no drawing, no speaking, no training."""

from pathlib import Path

import numpy as np

from plait.batch import Document, Part
from plait.config import DataConfig, ModalityConfig, ModelConfig, RunConfig
from plait.data.shards import SHARD_SCHEMA_VERSION, write_json, write_shard

MODALITIES = {
    "text": {"codec": "fake_text", "key": "text", "vocab_size": 256, "latent_channels": 0},
    "image": {"codec": "fake_image", "key": "image", "vocab_size": 64, "latent_channels": 0},
    "speech": {"codec": "fake_speech", "key": "audio", "vocab_size": 128, "latent_channels": 0},
    "depth": {"codec": "fake_depth", "key": "depth", "vocab_size": 0, "latent_channels": 3},
}
for _record in MODALITIES.values():
    _record |= {"default_grid": [], "fingerprint": _record["codec"]}


def model_config(names=("text", "image", "speech"), **settings) -> ModelConfig:
    """Return a tiny model of some of MODALITIES."""
    modalities = {}
    for name in names:
        continuous = bool(MODALITIES[name]["latent_channels"])
        modalities[name] = ModalityConfig(
            objective="diffusion" if continuous else "next_token",
            attention="bidirectional" if continuous else "causal",
        )
    return ModelConfig(modalities=modalities, width=16, num_heads=2, num_layers=1, **settings)


def run_config(path, names=("text", "image", "speech"), *, seed=0, max_positions=8192, **data) -> RunConfig:
    """Return a run on the prepared folder at ``path``."""
    data = {"batch_tokens": 512, "num_workers": 0} | data
    model = model_config(names, max_positions=max_positions)
    return RunConfig(model=model, seed=seed, data=DataConfig(path=str(path), **data))


def scene_like(i: int, seed: int = 0) -> Document:
    """Return a caption, a picture of 8 by 8 ids, and speech; the first id of the text tells the document."""
    rng = np.random.default_rng((seed, i))
    text = np.concatenate([[i % 256], rng.integers(0, 256, rng.integers(5, 20))])
    parts = [
        Part("text", text),
        Part("image", rng.integers(0, 64, 64), grid=(8, 8)),
        Part("speech", rng.integers(0, 128, rng.integers(30, 90))),
    ]
    return Document(parts, meta={"number": i})


def write_folder(folder: Path, splits: dict[str, list[Document]], *, per_shard=64, modalities=None) -> Path:
    """Write documents as a prepared folder."""
    modalities = modalities or MODALITIES
    index = {"schema_version": SHARD_SCHEMA_VERSION, "modalities": modalities, "splits": {}}
    for split, documents in splits.items():
        starts = range(0, len(documents), per_shard)
        shards = [
            write_shard(Path(folder), split, n, documents[at : at + per_shard], modalities)
            for n, at in enumerate(starts)
        ]
        index["splits"][split] = {"documents": len(documents), "shards": shards}
    write_json(Path(folder) / "index.json", index)
    return Path(folder)
