"""Small runs on made documents, stopped where a signal would have it, and damaged files."""

import pytest

from helpers.fake_data import run_config
from helpers.models import model_config, with_modality
from plait.config.run import TrainConfig
from plait.train.trainer import Trainer, TrainingStopped


def config_for(folder, out, **train):
    config = run_config(folder, tasks={"text,image": 1.0, "image,text": 1.0}, batch_tokens=512)
    config.out = str(out)
    config.model = model_config(width=16, num_layers=1)
    for name in config.model.modalities:
        config.model = with_modality(config.model, name, vocab_size=0)
    config.train = TrainConfig(**({"steps": 8, "log_every": 1, "validate_every": 4, "validation_batches": 1,
                                   "checkpoint_every": 3, "warmup_steps": 2, "device": "cpu"} | train))  # fmt: skip
    return config


def stopped_at(trainer: Trainer, step: int) -> None:
    """Train up to a step, as a signal there would have it."""
    original = trainer.update

    def stopping(batches):
        trainer._stop = trainer.state.step + 1 == step
        return original(batches)

    trainer.update = stopping
    with pytest.raises(TrainingStopped, match=f"step {step}"):
        trainer.run()


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
