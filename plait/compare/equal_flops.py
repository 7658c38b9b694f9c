"""Operations of a training step, counted by formula (plait.plan.flops) and by torch, without padding.

torch's counter sees what runs: a causal segment's attention as the whole rectangle of queries and keys. Both are
stated; what makes two arms comparable is that they agree by both.
"""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.common.errors import ConfigError
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.model.mask import segments
from plait.model.mot import MixtureOfTransformers
from plait.model.segment_attention import table_of
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt
from plait.plan.flops import BACKWARD, total_operations
from plait.plan.trace import no_tensor_is_kept
from plait.train.parallel import batches_of_a_step


@dataclass(frozen=True)
class Flops:
    """Operations of the forward and backward pass of some batches."""

    formula: float
    counted: float


def unpadded(batch: Batch, config: RunConfig) -> Batch:
    """Return the batch of the same documents without padding rows, noised where its objectives noise."""
    return corrupt(pack(batch.documents, config.model, pad_rows_to=1), config.diffusion, config.seed)


def step_flops(config: RunConfig, batches: list[Batch]) -> Flops:
    """Return the operations of one optimizer step, from some of the run's own batches."""
    batches = [unpadded(b, config) for b in batches]
    scale = batches_of_a_step(config) / len(batches)
    formula = sum((1 + BACKWARD) * sum(forward_flops(config.model, b).values()) for b in batches)
    counted = sum(counted_flops(config.model, b) for b in batches)
    return Flops(formula * scale, counted * scale)


def forward_flops(config: ModelConfig, batch: Batch) -> dict[str, float]:
    """Return the operations of a forward pass by part (`plait.plan.flops.total_operations`).

    Raises ConfigError for other networks than matrices between latents and tokens: those torch alone counts.
    """
    for name in batch.latents:
        network = config.modalities[name].patch_network
        if network != "linear":
            raise ConfigError(
                f"model.modalities.{name}.patch_network: {network!r} is not allowed in a comparison, it must be "
                "linear, as operations are also counted by formula"
            )
    return total_operations(config, batch)


def counted_flops(config: ModelConfig, batch: Batch) -> float:
    """Return the operations of a forward and a backward pass that torch counts, on tensors without values.

    What a CPU runs is counted. Attention by segments is an operation of plait's own, so its count is said here.
    """
    aten, own = torch.ops.aten, torch.ops.plait
    cells = attention_cells(batch)
    formulas = {
        aten.addmm_: lambda out, left, right, **more: 2 * left[0] * left[1] * right[1],
        # two products forward: the scores, and sums of values; five backward: the scores again, and four gradients
        own.segment_attention: lambda query, *rest, **more: 2 * 2 * query[1] * query[2] * cells,
        own.segment_attention_backward: lambda gradient, *rest, **more: 5 * 2 * gradient[1] * gradient[2] * cells,
    }
    if hasattr(aten, "_grouped_mm"):
        # rows [n, K] by weights [E, K, N]; for the weights' gradient [K, n] by [n, N] in groups
        formulas[aten._grouped_mm] = lambda left, right, *rest, **more: 2 * left[0] * left[1] * right[-1]
    with no_tensor_is_kept(), FakeTensorMode(allow_non_fake_inputs=True):
        model = MixtureOfTransformers(config)
        # without values, torch's grouped products have no other precision
        with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            loss_sums(model, model(batch), batch).sum().backward()
    return float(counter.get_total_flops())


def attention_cells(batch: Batch) -> int:
    """Return how many (query, key) pairs a CPU's attention is given, those that a causal mask hides included."""
    return sum(
        (row[1] - row[0]) * sum(b - a for a, b in zip(row[3::2], row[4::2], strict=True))
        for row in table_of(segments(batch.spans)).tolist()
    )
