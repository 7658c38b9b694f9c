"""Captions against the known truth: objects, colours, relations, and forced choice among many names.

A caption of the scenes reads "a fox left of a red apple on a blue background". What a caption says is read back by
the scenes' own grammar, so a score counts exact names, not similar words.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plait.batch import Document, Part, Run, assemble, spell
from plait.model.mot import MixtureOfTransformers
from plait.randomness import generator

_CAPTION = re.compile(r"^(?P<what>.*) on an? (?P<background>\w+) background$")
_ARTICLE = re.compile(r"^(an?|the) ")


@dataclass(frozen=True)
class Said:
    """What a caption says: names in order, the relation of the first two, and the ground's colour."""

    objects: tuple[str, ...]
    relation: str | None
    background: str | None


def read_caption(caption: str, relations: Sequence[str]) -> Said:
    """Read a caption by the grammar of the scenes; what does not fit becomes one object name."""
    match = _CAPTION.match(caption.strip().lower())
    what, background = (match["what"], match["background"]) if match else (caption.strip().lower(), None)
    for relation in relations:
        left, found, right = what.partition(f" {relation} ")
        if found:
            return Said((_bare(left), _bare(right)), relation, background)
    return Said(tuple(_bare(n) for n in re.split(r", (?=an? )| and (?=an? )", what)), None, background)


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.strip())


def caption_scores(captions: Sequence[str], truths: Sequence[dict], relations: Sequence[str]) -> dict[str, float]:
    """Return shares over captions and their scenes' truths (`Scene.meta`).

    object: the first drawing's name is among those said. colour: the ground's colour. relation: of scenes that have
    one. exact: the whole caption.
    """
    hits: dict[str, list[bool]] = {"object": [], "colour": [], "relation": [], "exact": []}
    for caption, truth in zip(captions, truths, strict=True):
        said = read_caption(caption, relations)
        true = read_caption(truth["caption"], relations)
        hits["object"].append(true.objects[0] in said.objects)
        hits["colour"].append(said.background == true.background)
        hits["exact"].append(said == true)
        if true.relation:
            hits["relation"].append(said.relation == true.relation)
    return {name: float(np.mean(h)) for name, h in hits.items() if h}


@torch.no_grad()
def continuation_scores(
    model: MixtureOfTransformers, prompt: list[Part], continuations: Sequence[np.ndarray], *, chunk: int = 100
) -> np.ndarray:
    """Return the log-probability of each continuation (local ids of the host) after the prompt, [n].

    The prompt runs once; its row of the cache is copied for the candidates, which go by length to be padded little.
    """
    lengths = np.array([len(c) for c in continuations])
    order = np.argsort(lengths, kind="stable")
    start = assemble([spell(Document(prompt), model.config, close=False, noised=False)], model.config)
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
    batch = assemble([[Run(layout.host, ids)] for ids in padded], model.config,
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
    """Return the share of pictures whose best candidate is the true one, and the same with pictures shuffled.

    scores [pictures, candidates], truth [pictures] index of the true candidate. The shuffled share pairs each
    picture's scores with another picture's truth, over 200 shuffles: what naming without looking reaches.
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


def interval(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    if not trials:
        return 0.0, 1.0
    z, p = 1.96, successes
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, middle - half), min(1.0, middle + half)
