"""What is read off a trained model on some batches: where activations lie, what attention looks at, and whether the
modalities' gradients agree.

Shapes: T tokens in sequence order, L layers, M modalities, D the width, H heads, d their size.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.batch import Batch
from plait.model.mask import document_starts, segments
from plait.model.mot import MixtureOfTransformers
from plait.model.routing import to_sequence
from plait.objectives import loss_sums

MOST_TOKENS = 1000
"""Tokens of each modality that principal components are taken of."""
SHOWN_TOKENS = 120
"""Tokens of each modality whose place is kept."""
PARTS = {"qkv": ("qkv",), "o": ("o",), "ffn": ("ffn",), "norm": ("attention_norm", "ffn_norm")}
"""Components of a block, as in `model.untied`, with the modules that hold them."""


def modality_of_tokens(batch: Batch, names: Sequence[str]) -> np.ndarray:
    """Return the number of each token's modality [T]; delimiters count for the modality that they belong to."""
    return np.repeat([names.index(s.modality) for s in batch.spans], [s.length for s in batch.spans])


# -- activations ------------------------------------------------------------------------------------------------


@torch.no_grad()
def activations(model: MixtureOfTransformers, batch: Batch) -> list[Tensor]:
    """Return the residual stream [T, D] before the first block and after each one, L + 1 in all.

    Towers must have one width (raises ValueError): streams of different widths share no space.
    """
    if not model.config.same_width:
        raise ValueError("towers of different widths have no activations in common")
    residuals: list[Tensor] = []

    def keep(streams: list[Tensor]) -> None:
        residuals.append(to_sequence(streams, batch.routing).float().cpu())

    with _hooks(
        model.blocks[0].register_forward_pre_hook(lambda block, arguments: keep(arguments[0])),
        *(block.register_forward_hook(lambda block, arguments, out: keep(out)) for block in model.blocks),
    ):
        model(batch)
    return residuals


def components(model: MixtureOfTransformers, batches: Sequence[Batch]) -> tuple[list[dict], list[dict]]:
    """Return the first two principal components of activations by layer: rows of tokens' places, and rows of layers.

    As many tokens of each modality count, so that none draws the components its way. Of tokens, a row has ``layer,
    modality, x, y`` with the places of some in two lists. Of layers, it has ``layer, first, second`` (shares of the
    variance) and ``separation``, the share of the variance in all D dimensions that lies between the modalities' means
    (0 where they have one mean, 1 where each is a point).
    """
    names = model.config.layout.names
    layers = [torch.cat(pieces) for pieces in zip(*(activations(model, b) for b in batches), strict=True)]
    owner = np.concatenate([modality_of_tokens(b, names) for b in batches])
    places = {m: np.flatnonzero(owner == m) for m in range(len(names))}
    count = min([MOST_TOKENS, *(len(p) for p in places.values() if len(p))])
    places = {m: p[np.linspace(0, len(p) - 1, count).astype(int)] for m, p in places.items() if len(p)}
    tokens, rows = [], []
    for layer, x in enumerate(layers):
        group = {m: x[torch.from_numpy(p)].double() for m, p in places.items()}
        both = torch.cat(list(group.values()))
        mean = both.mean(0)
        _, values, axes = torch.linalg.svd(both - mean, full_matrices=False)
        share = values.square() / values.square().sum()
        between = torch.stack([g.mean(0) - mean for g in group.values()]).square().sum() * count
        rows.append({"layer": layer, "first": share[0].item(), "second": share[1].item(),
                     "separation": (between / values.square().sum()).item()})  # fmt: skip
        shown = np.linspace(0, count - 1, min(count, SHOWN_TOKENS)).astype(int)
        # an axis has no direction of its own: the first modality lies on the left, and below
        axes = axes[:2].T
        axes = axes * torch.where((group[next(iter(group))].mean(0) - mean) @ axes > 0, -1.0, 1.0)
        for m, g in group.items():
            x, y = ((g[shown] - mean) @ axes).T.tolist()
            tokens.append({"layer": layer, "modality": names[m], "x": x, "y": y})
    return tokens, rows


# -- attention --------------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_mass(model: MixtureOfTransformers, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Return how much of the attention of each modality's tokens lies on keys of each modality, by layer.

    Rows of ``layer, query, key, mass, even``: the mean over tokens and heads, and what it would be if all visible
    keys got the same. Over the keys, both sum to 1.
    """
    names, layers = model.config.layout.names, len(model.blocks)
    sums, even = (torch.zeros(layers, len(names), len(names), dtype=torch.float64) for _ in range(2))
    counts = np.zeros(len(names))
    for batch in batches:
        owner = torch.from_numpy(modality_of_tokens(batch, names))
        is_of = torch.nn.functional.one_hot(owner, len(names)).double()
        counts += is_of.sum(0).numpy()

        def look(layer: int, query: Tensor, key: Tensor, batch=batch, is_of=is_of) -> None:
            for rows, mass, flat in _masses(query, key, batch, is_of):
                sums[layer] += is_of[rows].T @ mass
                even[layer] += is_of[rows].T @ flat

        with _hooks(*(_look_at_heads(block, look) for block in model.blocks)):
            model(batch)
    return [{"layer": layer, "query": names[q], "key": names[k], "mass": (sums[layer, q, k] / counts[q]).item(),
             "even": (even[layer, q, k] / counts[q]).item()}
            for layer in range(layers) for q in np.flatnonzero(counts).tolist()
            for k in np.flatnonzero(counts).tolist()]  # fmt: skip


def _look_at_heads(block, look: Callable[[int, Tensor, Tensor], None]):
    """Call ``look(layer, query, key)`` with what the block is going to attend."""

    def hook(block, arguments) -> None:
        streams, step = arguments
        x = block.attention_norm(streams) if block.pre_norm else streams
        query, key, _ = block._heads(block._projected(x), step)
        look(block.layer, query.float().cpu(), key.float().cpu())

    return block.register_forward_pre_hook(hook)


def _masses(query: Tensor, key: Tensor, batch: Batch, is_of: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield, for each segment, its queries and where their attention lies [n, M], as it is and if it were even."""
    batch_segments = segments(batch.spans)
    starts = document_starts(batch_segments)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    for s in batch_segments:
        places = torch.cat([torch.arange(low, high) for low, high in s.keys]) + starts[s.document]
        scores = torch.einsum("nhd,mhd->hnm", query[s.start : s.stop].double(), key[places].double())
        visible = torch.ones(s.num_queries, len(places), dtype=torch.bool)
        if s.causal:  # the last keys are the queries' own tokens
            visible = visible.tril(len(places) - s.num_queries)
        scores = (scores / math.sqrt(query.shape[2])).masked_fill(~visible, -math.inf)
        flat = visible.double() / visible.sum(1, keepdim=True)
        yield slice(s.start, s.stop), scores.softmax(-1).mean(0) @ is_of[places], flat @ is_of[places]


# -- gradients --------------------------------------------------------------------------------------------------


def gradient_conflict(model: MixtureOfTransformers, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Return the cosine between the gradients of two modalities' losses, by layer and component.

    Rows of ``layer, component, first, second, cosine, ratio``: component is one of `PARTS` or "all", ratio the length
    of the second gradient over the first one's. Below 0 the two pull apart. Losses are the means over all batches. In
    parameters that one modality alone has, there is no conflict to measure and the row is left out.

    Gradients are noisy, and noise hides what they have in common. So a modality has a row with itself too, where there
    are two batches: the cosine between its gradients on every other batch and on those between.
    """
    names = model.config.layout.names
    counts = np.sum([b.counts for b in batches], axis=0)
    before = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(True)
    halves = {
        m: [_gradient(model, half, m, float(counts[m])) for half in (batches[::2], batches[1::2]) if half]
        for m in np.flatnonzero(counts).tolist()
    }
    for parameter, wanted in zip(model.parameters(), before, strict=True):
        parameter.requires_grad_(wanted)
    whole = {m: {n: sum(half[n] for half in some) for n in some[0]} for m, some in halves.items()}
    sides = {(a, b): (whole[a], whole[b]) for a, b in itertools.combinations(whole, 2)}
    sides |= {(m, m): tuple(some) for m, some in halves.items() if len(some) == 2}
    rows = []
    for layer in range(len(model.blocks)):
        for component, modules in {**PARTS, "all": sum(PARTS.values(), ())}.items():
            held = [name for name, part in model.parts.items()
                          if part.place.layer == layer and part.place.component in modules]  # fmt: skip
            for (a, b), gradients in sides.items():
                row = _cosine(*gradients, held)
                if row:
                    rows.append({"layer": layer, "component": component, "first": names[a], "second": names[b], **row})
    return rows


def _gradient(model: MixtureOfTransformers, batches: Sequence[Batch], modality: int, count: float) -> dict[str, Tensor]:
    """Return the gradient of a modality's summed loss over ``count``, by the parameters' names."""
    model.zero_grad(set_to_none=True)
    for batch in batches:
        (loss_sums(model, model(batch), batch)[modality] / count).backward()
    gradients = {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def _cosine(first: dict[str, Tensor], second: dict[str, Tensor], among: Sequence[str]) -> dict[str, float] | None:
    names = [n for n in among if n in first and n in second]
    dot = sum((first[n] * second[n]).sum().item() for n in names)
    lengths = [math.sqrt(sum(g[n].square().sum().item() for n in names)) for g in (first, second)]
    return {"cosine": dot / math.prod(lengths), "ratio": lengths[1] / lengths[0]} if math.prod(lengths) else None


@contextlib.contextmanager
def _hooks(*handles) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
