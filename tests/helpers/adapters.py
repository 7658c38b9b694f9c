"""Adapters with random matrices, as peft writes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from plait.model.adapters import CONFIG, PREFIX, WEIGHTS
from plait.model.lora import linears_in
from plait.model.mot import MixtureOfTransformers


def random_adapter(model: MixtureOfTransformers, folder: Path, seed: int, *, rank: int = 2, size: float = 0.3) -> Path:
    """Write an adapter for a random half of the matrices of the blocks; returns its folder."""
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for name, matrix in linears_in(model.blocks).items():
        if torch.rand((), generator=draw) < 0.5:
            outputs, inputs = matrix.weight.shape
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                values = torch.randn(shape, generator=draw, dtype=torch.float64) * size
                tensors[f"{PREFIX}blocks.{name}.lora_{side}.weight"] = values
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 3}))
    return folder
