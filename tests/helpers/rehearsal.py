"""Batches of the shipped configs as training would see them, and a GPU that is made up."""

import contextlib
import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from helpers import ROOT
from helpers.models import Forbidden
from plait.batch.assemble import pack, spell
from plait.batch.batch import Batch
from plait.batch.documents import Document, Part, role_of
from plait.config.file import load
from plait.config.run import RunConfig
from plait.config.shipped import FOLDERS
from plait.config.tasks import AS_WRITTEN_TASK, mentions_of
from plait.data.loader import document_limit
from plait.data.packing import plan_bins
from plait.model import attention
from plait.model.mot import MixtureOfTransformers
from plait.objectives import next_token
from plait.plan.trace import no_tensor_is_kept
from plait.plan.workload import known_sizes

Grids = dict[str, tuple[int, ...]]

SHIPPED = sorted(p for folder in FOLDERS for p in folder.glob("*.yaml"))
"""The files of the shipped configs."""

SIZES = {
    "text_pretrained": {"vocab_size": 1000},
    "image_features": {"latent_channels": 48, "patch_size": 1},
    "actions": {"latent_channels": 8, "patch_size": 1},
}
"""What only files that are not here would tell of codecs: sizes of ids and latents, made up."""

EXTENTS = {"image_features": (14, 14), "image_tokens_pretrained": (32, 32)}
"""Extents of their items; those of actions have one token a step."""

LONGEST = {"text": 64, "speech": 160}
"""Longest part of a modality of open length, in tokens; of others it is `ITEM`."""
ITEM = 96


def sized(path) -> tuple[RunConfig, Grids]:
    """Return a shipped config with all sizes filled in, and the extents of items of a modality that has one."""
    config, grids = load(path), {}
    modalities, settings = {}, {}
    for name, record in config.model.modalities.items():
        codec, options = config.modalities[name].codec, config.modalities[name].codec_options
        known = {field: getattr(record, field) or size for field, size in SIZES.get(codec, {}).items()}
        modalities[name] = replace(record, **known)
        settings[name] = replace(config.modalities[name], codec_options={k: options[k] for k in options if k != "path"})
        if codec == "actions":
            grids[name] = (options["steps"],)
        elif codec in EXTENTS:
            grids[name] = EXTENTS[codec]
    model = replace(config.model, modalities=modalities)
    data = replace(config.data, path="not prepared", sources={})  # whatever this checkout holds
    config, found = known_sizes(replace(config, model=model, modalities=settings, data=data))
    return config, {**grids, **found}


def drawn_batches(config: RunConfig, grids: Grids, rng: np.random.Generator, count: int) -> Iterator[Batch]:
    """Yield batches of documents drawn at random, packed as the loader packs them."""
    limit, documents, lengths = document_limit(config), [], []
    budget, room = config.data.batch_tokens, count * config.data.batch_tokens
    while room > 0:
        document = drawn_document(config, grids, rng, len(documents), limit)
        documents.append(document)
        lengths.append(_length(document, config))
        room -= lengths[-1]
    for chosen in plan_bins(lengths, budget)[:count]:
        yield pack([documents[i] for i in chosen], config.model, pad_rows_to=config.data.pad_rows_to)


def drawn_document(
    config: RunConfig, grids: Grids, rng: np.random.Generator, index: int, limit: int, *, written: float = 0.3
) -> Document:
    """Return a document of one of the run's tasks, or as a user's own may be, parts of any kind in any order.

    ``written`` is the share of these; it is all where the run has no tasks.
    """
    tasks = {task: weight for task, weight in config.data.tasks.items() if task != AS_WRITTEN_TASK}
    if not tasks or rng.random() < written:
        names = [name for name, record in config.model.modalities.items() if not record.reads]
        order = [names[i] for i in rng.integers(len(names), size=rng.integers(1, 8))]
        given = (rng.random(len(order)) < 0.3).tolist()
    else:
        weights = np.array(list(tasks.values()), float)
        order = mentions_of(list(tasks)[rng.choice(len(tasks), p=weights / weights.sum())])
        given = [True] * (len(order) - 1) + [False]
        if rng.random() < config.data.drop_condition:
            order, given = order[-1:], given[-1:]
    parts = [drawn_part(config, grids, rng, n, is_given) for n, is_given in zip(order, given, strict=True)]
    while _length(Document(parts), config) > limit:
        parts.pop()
    return Document(parts or [drawn_part(config, grids, rng, config.model.layout.host, False)], index=index)


def drawn_part(config: RunConfig, grids: Grids, rng: np.random.Generator, name: str, is_given: bool) -> Part:
    """Return a part of a modality, with features where something reads it."""
    record, grid = config.model.modalities[name], grids.get(name, ())
    n = math.prod(grid) if grid else int(rng.integers(1, LONGEST.get(name, ITEM) + 1))
    given_loss = 1.0 if config.data.given_loss else 0.0
    loss = given_loss if is_given else 1.0
    values = {"role": role_of(given=is_given, loss=loss), "loss": loss, "grid": grid}
    if record.objective == "next_token":
        return Part(name, ids=rng.integers(0, record.vocab_size, n), **values)
    part = Part(name, latents=np.zeros((n, record.latent_channels), np.float32), **values)
    if reader := config.model.readers.get(name):
        extent, channels = grids[reader], config.model.modalities[reader].latent_channels
        latents = np.zeros((math.prod(extent), channels), np.float32)
        part.features = Part(reader, latents=latents, grid=extent, role=role_of(given=True))
    return part


def _length(document: Document, config: RunConfig) -> int:
    return sum(len(run) for run in spell(document, config.model))


DEVICE = torch.device("cuda:0")
aten = torch.ops.aten


class MadeUpGpu(Forbidden):
    """A GPU of which nothing is there but the shapes: its tensors are torch's fake ones, the host computes.

    An operation that mixes it with the host raises. `seen` are operations whose result the host must know, `waits`
    copies that the host waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        """How often each operation and each stand-in was called on it."""
        self.waits: list[str] = []
        self.is_capturing = False
        self.copied_from: list[int] = []
        """Storages that were copied to it, and those that were pinned before."""
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name, device = func.overloadpacket.__name__, kwargs.get("device")
        if not any(isinstance(x, FakeTensor) for x in tensors) and (device is None or device.type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.calls[name] += 1
        if name == "copy_":
            self._copied(args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        elif name == "_to_copy":
            self._copied(args[0], device or args[0].device, kwargs.get("non_blocking", False))
        elif device is None:
            assert all(x.device.type == "cuda" or not x.ndim for x in tensors), f"{name} mixes devices"
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _copied(self, x: Tensor, device: torch.device, non_blocking: bool) -> None:
        assert not (self.is_capturing and x.device.type != device.type), "a graph holds no copy from the host"
        if x.device.type == "cpu" and device.type == "cuda":
            self.copied_from.append(x.untyped_storage()._cdata)
        if x.device.type != device.type and not non_blocking:
            self.waits.append(_caller())

    def pin(self, x: Tensor) -> Tensor:
        """Stand in for Tensor.pin_memory."""
        self.pinned.append(x.clone())
        return self.pinned[-1]

    def flex(self) -> Callable:
        """Stand in for the compiled FlexAttention."""

        def attend(query, key, value, *, block_mask, enable_gqa):
            self.calls["flex"] += 1
            tensors = [query, key, value, *(t for t in block_mask.as_tuple() if isinstance(t, Tensor))]
            assert len(tensors) > 3 and {t.device for t in tensors} == {DEVICE}
            assert block_mask.seq_lengths == (query.shape[2], key.shape[2]) and key.shape == value.shape
            assert enable_gqa == (query.shape[1] != key.shape[1]) and query.dtype == key.dtype == value.dtype
            return torch.empty_like(query)

        return attend

    def attention(self, query, key, value, attn_mask=None, is_causal=False) -> Tensor:
        """Stand in for scaled_dot_product_attention, which is one operation on a GPU and many without."""
        self.calls["scaled_dot_product_attention"] += 1
        tensors = [x for x in (query, key, value, attn_mask) if x is not None]
        assert {x.device for x in tensors} == {DEVICE} and len({x.dtype for x in tensors[:3]}) == 1
        assert key.shape == value.shape and query.shape[:2] == key.shape[:2] and query.shape[3] == key.shape[3]
        scores = (*query.shape[:3], key.shape[2])
        assert attn_mask is None or torch.broadcast_shapes(attn_mask.shape, scores) == scores
        assert not is_causal or query.shape == key.shape
        return torch.empty_like(query)

    def fused(self, function: Callable) -> Callable:
        """Stand in for a function of the loss that is compiled."""

        def called(*arguments):
            self.calls[function.__name__] += 1
            return function(*arguments)

        return called

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Stand in for the capture of a CUDA graph; a replay runs the function once more."""

        def captured() -> Any:
            self.is_capturing = True
            try:
                return function()
            finally:
                self.is_capturing = False

        def replay() -> None:
            self.calls["replay"] += 1
            out.ids.copy_(captured().ids)

        self.calls["capture"] += 1
        out = captured()
        return replay, out


@contextlib.contextmanager
def made_up_gpu(monkeypatch) -> Iterator[MadeUpGpu]:
    """Enter a context in which there is a made-up GPU, and in which no gradients are made."""
    gpu = MadeUpGpu()
    # methods of torch that ask CUDA itself for the device of a tensor
    methods = {"__getitem__": _part, "__setitem__": _set_part, "contiguous": aten.contiguous,
               "__invert__": aten.bitwise_not, "copy_": aten.copy_, "nonzero": aten.nonzero}  # fmt: skip
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        for name, method in methods.items():
            patch.setattr(Tensor, name, _on_its_device(getattr(Tensor, name), method))
        patch.setattr(Tensor, "pin_memory", gpu.pin)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
        patch.setattr(attention, "_compiled_flex", gpu.flex)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", gpu.attention)
        patch.setattr(next_token, "_fused", gpu.fused)
        for context in (no_tensor_is_kept(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), gpu):
            stack.enter_context(context)
        yield gpu


def model_on_the_gpu(config) -> MixtureOfTransformers:
    """Return a model whose weights lie on the made-up GPU."""
    with torch.device("meta"):
        model = MixtureOfTransformers(config)
    return model.to_empty(device=DEVICE)


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors in a batch, and in its parts."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [x for item in items for x in tensors_of(item)]


def _caller() -> str:
    """Return the file and the function of plait that is being run."""
    frame = sys._getframe(1)
    while frame.f_back and not frame.f_code.co_filename.startswith(f"{ROOT / 'plait'}"):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


def _on_its_device(own: Callable, made_up: Callable) -> Callable:
    """Return a method of tensors that is ``made_up`` on a GPU."""

    def called(x, *arguments, **settings):
        return (made_up if x.device.type == "cuda" else own)(x, *arguments, **settings)

    return called


def _part(x: Tensor, index: Any) -> Tensor:
    x, places = _cut(x, index)
    return aten.index.Tensor(x, places) if places else x


def _set_part(x: Tensor, index: Any, value: Any) -> None:
    x, places = _cut(x, index)
    if places:
        aten.index_put_(x, places, value if isinstance(value, Tensor) else x.new_full((), value))
    else:
        x.copy_(value) if isinstance(value, Tensor) else x.fill_(value)


def _cut(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Return the view of a tensor by slices and numbers, and the tensors of an index by dimension."""
    index = index if isinstance(index, tuple) else (index,)
    at = next((k for k, i in enumerate(index) if i is Ellipsis), len(index))
    missing = x.ndim - sum(i is not None and i is not Ellipsis for i in index)
    index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    dim, places = 0, {}
    for i in index:
        if i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, slice):
            x = aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, Tensor):
            places[dim] = i
        else:
            x, dim = x.select(dim, operator.index(i)), dim - 1
        dim += 1
    return x, [places.get(d) for d in range(max(places, default=-1) + 1)]
