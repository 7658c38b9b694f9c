"""Log-probabilities of what is written: those of a forward pass over the whole text, and nothing else changes."""

import numpy as np
import pytest
import torch
from helpers.generation import GRIDS, build, parts_of, requests, run
from helpers.models import random_part

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.config.generation import SamplingConfig
from plait.generate import Generator, Request, generate

GREEDY = {"text": SamplingConfig(temperature=0.0)}


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@torch.no_grad()
def test_scores_are_those_of_a_forward_pass(rng, temperature):
    model, prompt = build(), [random_part(rng, "text")]
    sampling = {"text": SamplingConfig(temperature=temperature, top_k=5)}
    asked = [Request(prompt, "text", sampling, {"text": 9}, number=i, logprobs=4) for i in range(6)]
    for result in generate(model, asked, grids=GRIDS, max_length=64):
        ids = np.concatenate([part.ids for part in result.parts]) if result.parts else np.array([], np.int64)
        assert [score.id for score in result.scores] == ids.tolist()
        if not len(ids):
            continue
        batch = pack([Document([*prompt, Part("text", ids)])], model.config)
        logits = model.logits(model(batch), [torch.arange(n) for n in batch.routing.sizes])
        logits = logits.index_select(0, batch.routing.to_sequence)[len(prompt[0]) :]
        for score, row in zip(result.scores, logits, strict=False):
            (first, best), *others = score.top
            assert len(others) == 3 and best == max(p for _, p in score.top) >= score.logprob
            for token, logprob in [*others, (score.id, score.logprob)]:
                assert abs((row[token] - row[first]) - (logprob - best)) < 1e-9
            assert sum(np.exp(p) for _, p in score.top) <= 1 + 1e-12


def test_nothing_else_changes(rng):
    """Text, images and free requests, some with scores and some without, in one batch."""
    model, asked = build(), requests(rng, 12)
    plain = parts_of(run(Generator(model, grids=GRIDS, max_rows=6, max_length=64), asked))
    for i, request in enumerate(asked):
        request.logprobs = (None, 0, 3)[i % 3]
    results = run(Generator(model, grids=GRIDS, max_rows=6, max_length=64), asked)
    assert parts_of(results) == plain
    for request, result in zip(asked, results, strict=True):
        written = [i for part in result.parts if part.modality == "text" for i in part.ids.tolist()]
        wanted = written if request.logprobs is not None else []
        assert [score.id for score in result.scores] == wanted
        assert all(len(score.top) == request.logprobs for score in result.scores)
