"""Products in 8-bit floating point through torchao, on GPUs that have them (arXiv 2209.05433)."""

import importlib.util

import torch
from torch import nn

from plait.common.errors import ConfigError, ResourceError
from plait.model.layers import Linear
from plait.model.mot import MixtureOfTransformers

CAPABILITY = (8, 9)
"""First compute capability of CUDA with products of 8-bit floats (Ada, Hopper)."""

MULTIPLE = 16
"""What the sizes of such a product are multiples of."""


def check_float8(device: torch.device, *, tensor: int) -> None:
    """Raise a ConfigError or ResourceError, with the reason, where ``train.precision: float8`` cannot run."""
    refused = "train.precision: 'float8' is not allowed here, it must be bfloat16 or float32:"
    if device.type != "cuda":
        raise ConfigError(f"{refused} a device of type {device.type!r} has no products of 8-bit floats")
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        need, have = (".".join(map(str, c)) for c in (CAPABILITY, capability))
        raise ConfigError(f"{refused} it needs a GPU of compute capability {need}, this one has {have}")
    if tensor > 1:
        raise ConfigError(f"{refused} torchao's layers cannot be cut by parallel.tensor ({tensor})")
    if importlib.util.find_spec("torchao") is None:
        raise ResourceError("train.precision: 'float8' needs the package torchao; run `pip install torchao`")


def use_float8(model: MixtureOfTransformers, **options) -> None:
    """Let the output and feed-forward matrices of every block multiply in float8, scaled by tensor.

    Weights keep their precision and names. Queries, keys and values, experts, heads, latents and matrices with LoRA
    stay in bfloat16. ``options`` are those of torchao's Float8LinearConfig.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def chosen(module: nn.Module, name: str) -> bool:
        fits = type(module) is Linear and all(size % MULTIPLE == 0 for size in module.weight.shape)
        return fits and module.lora is None

    for block in model.blocks:
        convert_to_float8_training(block, config=Float8LinearConfig(**options), module_filter_fn=chosen)
