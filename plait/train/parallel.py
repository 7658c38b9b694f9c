"""Many ranks train one model: the process group, the mesh, weights that are cut, and the sums over ranks.

torch's own parts do the work (docs/parallel.md): FSDP2 shards every block, DTensor cuts weights for tensor ranks, a
DeviceMesh names the groups. A rank of R x S x C x T (replicate, shard, context, tensor) has

- data: its own batches, shared with the ranks that differ from it in C and T only;
- weights: cut by T, then sharded over S x C (context ranks do different rows of one batch, which for a weight is the
  same as different batches), and held R times.

The loss is divided by counts of the whole step before the forward pass, so gradients are sums over ranks, never means.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from plait.common.errors import PlaitError, ResourceError, require
from plait.common.launch import STOPPED, launch
from plait.config.rank_layout import Layout
from plait.config.run import RunConfig
from plait.model.moe import MixtureOfExperts
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import usable
from plait.model.ranks import Ranks
from plait.model.traits import Trait
from plait.train.float8 import MULTIPLE, check_float8, use_float8


def local_device(name: str) -> str:
    """Return the device that a config's ``train.device`` means for this rank: of several GPUs, its own.

    Raises a ConfigError or ResourceError where ranks would share one.
    """
    launched = launch()
    require(launched is None or not name.startswith("cuda:"), "train.device", name,
            "auto, cuda or cpu under a launcher: each rank has its own GPU")  # fmt: skip
    if launched is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    count = torch.cuda.device_count()
    if count == 1 and launched.by == "srun":  # a task of Slurm may see its own GPU only
        return "cuda:0"
    if launched.local_rank >= count:
        raise ResourceError(
            f"train.device: rank {launched.local_rank} of this machine has no GPU, the machine has {count}; start at "
            f"most {count} ranks per machine"
        )
    return f"cuda:{launched.local_rank}"


@contextlib.contextmanager
def process_group(device: str) -> Iterator[bool]:
    """Join the ranks that a launcher started, for the time of a run; yields whether this is rank 0 (or alone).

    ``device`` is ``train.device``.
    """
    launched = launch()
    if launched is None:
        yield True
        return
    device = local_device(device)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    # torchrun's ranks meet in a store that its agent may already hold
    where = "env://" if launched.by == "torchrun" else f"tcp://{launched.address}:{launched.port}"
    dist.init_process_group(backend, init_method=where, rank=launched.rank, world_size=launched.world_size)
    try:
        yield launched.rank == 0
        dist.barrier()  # whoever leaves first takes the store along
    except PlaitError as error:
        if error.exit_code == STOPPED:  # then all do
            dist.barrier()
        raise
    finally:
        dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def rows_multiple(config: RunConfig) -> int:
    """Return what every tower's rows are padded to a multiple of, so that ranks own equal parts."""
    smallest = MULTIPLE if config.train.precision == "float8" else 1
    return math.lcm(config.data.pad_rows_to, smallest * config.parallel.context * config.parallel.tensor)


def layout_of(config: RunConfig) -> Layout:
    """Return how the ranks of this launch share the work (raises ConfigError)."""
    return Layout.of(config.parallel, world_size())


def batches_of_a_step(config: RunConfig) -> int:
    """Return how many batches each rank computes in an optimizer step (raises ConfigError)."""
    tokens, ranks = config.train.global_batch_tokens, layout_of(config).data
    if not tokens:
        return config.train.accumulate
    at_once = config.data.batch_tokens * ranks
    require(tokens % at_once == 0, "train.global_batch_tokens", tokens,
            f"a multiple of {at_once} (data.batch_tokens of {ranks} data ranks)")  # fmt: skip
    return tokens // at_once


def world_size() -> int:
    """Return the number of ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def build(config: RunConfig, device: torch.device) -> MixtureOfTransformers:
    """Return the run's model with its first weights: whole in one process, this rank's part of it among several."""
    layout = layout_of(config)
    if config.train.precision == "float8":
        check_float8(device, tensor=layout.tensor)
    alone = world_size() == 1
    with contextlib.nullcontext() if alone else torch.device("meta"):
        model = MixtureOfTransformers(config.model, seed=config.seed)
    if config.train.precision == "float8":
        use_float8(model)
    if alone:
        return model.to(device)
    parallelize(model, config, layout, device.type)
    model.to_empty(device=device)
    model.init_weights(config.seed)
    for buffer in model.buffers():
        buffer.zero_()
    return model


def parallelize(model: MixtureOfTransformers, config: RunConfig, layout: Layout, device_type: str) -> None:
    """Cut and shard a model's weights over the ranks of the process group, in place, and set ``model.ranks``."""
    data, context, tensor = layout.data, layout.context, layout.tensor
    ids = config.model.layout.size
    require((tensor - 1) * math.ceil(ids / tensor) < ids, "parallel.tensor", tensor,
            f"fewer, so that each rank has some of the {ids} ids")  # fmt: skip
    work = init_device_mesh(device_type, (data, context, tensor), mesh_dim_names=("data", "context", "tensor"))
    rows = init_device_mesh(device_type, (data, context * tensor), mesh_dim_names=("data", "rows"))
    shape = (layout.replicate, layout.sharers, tensor)
    weights = init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
    model.ranks = Ranks.of(work, rows["rows"])
    if tensor > 1:
        cut_weights(model, weights["tensor"])
    if layout.is_gathered:
        mesh = weights["shard"] if layout.replicate == 1 else weights["replicate", "shard"]
        shard_weights(model, mesh, usable(config.train.precision, torch.device(device_type)))


def cut_weights(model: MixtureOfTransformers, mesh: DeviceMesh) -> None:
    """Make every parameter a DTensor over the tensor ranks: cut, or held by each of them as a whole."""
    traits = {parameter: part.trait for part, parameter in model.weights()}
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter.detach(), mesh, [placement(traits[parameter])], src_data_rank=None)
            module.register_parameter(leaf, nn.Parameter(cut, requires_grad=parameter.requires_grad))


def placement(trait: Trait) -> Placement:
    """Return how tensor ranks hold a parameter: cut, or whole."""
    return Replicate() if trait.cut is None else Shard(trait.cut)


def shard_weights(model: MixtureOfTransformers, mesh: DeviceMesh, precision: str) -> None:
    """Shard every block by FSDP2, and what stands around the blocks as one more unit."""
    # products are in bfloat16 either way (autocast): gathering the blocks in it halves what is sent. Gradients are
    # summed in float32, and the weights that the optimizer moves are float32.
    short = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision != "float32" else {}
    policy = MixedPrecisionPolicy(**short, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for unit in sharded_units(model):
        unit.set_gradient_divide_factor(1.0)  # losses are divided by global counts
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def sharded_units(model: nn.Module) -> list[FSDPModule]:
    """Return the modules that FSDP gathers one by one; the setters of torch do not reach those within others."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights: before they are exchanged for averages, and after a forward pass without backward."""
    for unit in sharded_units(model):
        unit.reshard()


def sum_over_replicas(model: nn.Module, now: bool) -> None:
    """Say whether the next backward pass shall sum gradients over replicas; of several in a step, the last one does."""
    for unit in sharded_units(model):
        unit.set_requires_all_reduce(now, recurse=False)


def agreed(ranks: Ranks, values: Sequence[float]) -> list[float]:
    """Return the sums over all ranks of numbers on the host; no device is asked."""
    return ranks.total(torch.tensor(values, dtype=torch.float64)).tolist()


@torch.no_grad()
def sum_balance(model: MixtureOfTransformers) -> None:
    """Sum the loads of token-choice experts over ranks, in one exchange."""
    loads = [
        m.tokens_per_expert for m in model.modules() if isinstance(m, MixtureOfExperts) and m.routing == "token_choice"
    ]
    if model.ranks.mesh is not None and loads:
        _sum_together(loads, None)


@torch.no_grad()
def finish_gradients(ranks: Ranks, parameters: Sequence[DTensor], sums: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Sum what several ranks hold a part of, and clip; return loss sums [M] of all ranks and the norm of the gradient.

    Nothing waits for the device. Weights that every tensor rank holds get the sum of their gradients here, once a step.
    """
    gradients = [p.grad.to_local() for p in parameters]
    if ranks.tensor > 1:
        whole = [g for g, p in zip(gradients, parameters, strict=True) if _is_whole(p)]
        _sum_together(whole, ranks.tensor_mesh.get_group())
    by_copies: dict[int, list[Tensor]] = {}
    for norm, parameter in zip(torch._foreach_norm(gradients), parameters, strict=True):
        by_copies.setdefault(copies(parameter), []).append(norm)
    squares = sum(torch.stack(norms).double().square().sum() / number for number, norms in by_copies.items())
    both = ranks.total(torch.cat([sums.double(), squares[None]]))
    norm = both[-1].sqrt().to(gradients[0].dtype)
    torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
    return both[:-1].to(sums.dtype), norm


def _is_whole(parameter: DTensor) -> bool:
    """Whether each tensor rank holds all of a parameter."""
    return parameter.placements[-1].is_replicate()


def copies(parameter: Tensor) -> int:
    """Return how many ranks hold the same piece of a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    pieces = math.prod(mesh.size(i) for i, p in enumerate(parameter.placements) if not p.is_replicate())
    return dist.get_world_size() // pieces


def _sum_together(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    """Sum tensors over a group, in place, in one exchange."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
