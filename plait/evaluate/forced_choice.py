"""Captions: scores of candidates, and forced choice among many names."""

from collections.abc import Sequence

import numpy as np
import torch

from plait.batch.assemble import Run, assemble, spell_prompt
from plait.batch.documents import Part, role_of
from plait.common.randomness import generator
from plait.model.mot import MixtureOfTransformers


@torch.no_grad()
def continuation_scores(
    model: MixtureOfTransformers, prompt: list[Part], continuations: Sequence[np.ndarray], *, chunk: int = 100
) -> np.ndarray:
    """Return the log-probability of each continuation (local ids of the host) after the prompt, [n].

    The prompt runs once; its row of the cache is copied for the candidates, which go by length to be padded little.
    """
    lengths = np.array([len(c) for c in continuations])
    order = np.argsort(lengths, kind="stable")
    start = assemble([spell_prompt(prompt, model.config)], model.config)
    cache = model.new_cache(min(chunk, len(order)), start.num_tokens + int(lengths.max()))
    moved = start.to(model.device)
    hidden = model(moved, cache.step(moved, [cache.add_row()]))
    first = _log_probabilities(model, hidden, moved)[-1]
    scores = np.empty(len(order))
    for some in np.split(order, range(chunk, len(order), chunk)):
        scores[some] = _chunk_scores(model, cache, first, start, [continuations[i] for i in some])
        while len(cache.lengths) > 1:
            cache.drop_row(len(cache.lengths) - 1)
        cache.truncate(start.num_tokens)
    return scores


def _chunk_scores(model, cache, first, start, continuations) -> np.ndarray:
    layout, longest = model.config.layout, max(len(c) for c in continuations)
    offset = layout.offsets[layout.host]
    padded = np.full((len(continuations), longest), layout.eos - offset, np.int64)
    for row, ids in zip(padded, continuations, strict=True):
        row[: len(ids)] = ids
    padded += offset
    lengths = torch.tensor([len(c) for c in continuations])
    rows = cache.spread(0, len(continuations))
    batch = assemble([[Run(layout.host, ids, role=role_of(given=False))] for ids in padded], model.config,
                     first_positions=start.next_positions * len(rows)).to(model.device)  # fmt: skip
    log_p = _log_probabilities(model, model(batch, cache.step(batch, rows)), batch)
    log_p = log_p.unflatten(0, (len(rows), longest))
    before = torch.cat([first.expand(len(rows), 1, -1), log_p[:, :-1]], dim=1)
    ids = torch.from_numpy(padded).to(log_p.device)
    each = before.gather(2, ids[:, :, None]).squeeze(2).cpu()
    return (each * (torch.arange(longest) < lengths[:, None])).sum(1).double().numpy()


def _log_probabilities(model, hidden, batch) -> torch.Tensor:
    """Return log-probabilities [T, V] in sequence order."""
    rows = [torch.arange(h.shape[0], device=h.device) for h in hidden]
    logits = model.logits(hidden, rows).index_select(0, batch.routing.to_sequence)
    return logits.float().log_softmax(-1) if logits.dtype != torch.float64 else logits.log_softmax(-1)


def forced_choice(scores: np.ndarray, truth: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Return the share of images whose best candidate is the true one, and the same with images shuffled.

    scores [images, candidates], truth [images] index of the true candidate. The shuffled share pairs each
    image's scores with another image's truth, over 200 shuffles: what naming without looking reaches.
    """
    best = scores.argmax(1)
    rng = generator(seed, "forced choice: shuffles")
    shuffled = np.mean([np.mean(best == truth[_derangement(rng, len(truth))]) for _ in range(200)])
    return {"accuracy": float(np.mean(best == truth)), "shuffled": float(shuffled), "chance": 1 / scores.shape[1]}


def _derangement(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return a permutation that leaves nothing in place: a rotation of a random order."""
    order = rng.permutation(n)
    result = np.empty(n, np.int64)
    result[order] = np.roll(order, 1)
    return result
