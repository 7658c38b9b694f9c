"""Reading captions back, and scoring candidates through the cache."""

import numpy as np
import pytest
import torch
from helpers.models import model_config, random_part

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.evaluate.forced_choice import continuation_scores, forced_choice
from plait.evaluate.measures import wilson
from plait.model.mot import MixtureOfTransformers
from plait.objectives import next_token
from plait.scenes.truths import Said, caption_scores, read_caption

RELATIONS = ("left of", "right of", "above", "below")


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a red apple on a blue background", Said(("red apple",), None, "blue")),
        ("a fox left of an owl on an orange background", Said(("fox", "owl"), "left of", "orange")),
        ("a dog, a cat and a rock and roll on a red background", Said(("dog", "cat", "rock and roll"), None, "red")),
        ("gibberish", Said(("gibberish",), None, None)),
        ("", Said(("",), None, None)),
    ],
)
def test_read_caption(caption, said):
    """A name that holds the joining word (rock and roll) stays whole."""
    assert read_caption(caption, RELATIONS) == said


def test_caption_scores():
    truths = [{"caption": "a fox on a red background"}, {"caption": "a fox above an owl on a blue background"}]
    scores = caption_scores(
        ["a fox on a blue background", "an owl above a fox on a blue background"], truths, RELATIONS
    )
    assert scores == {"object": [True, True], "colour": [False, True], "relation": [None, True],
                      "exact": [False, None], "exact_several": [None, False]}  # fmt: skip
    several = caption_scores(["a fox", truths[1]["caption"]], truths, RELATIONS)
    assert (several["exact"], several["exact_several"]) == ([False, None], [None, True])
    assert caption_scores(["a cat on a red background", ""], truths, RELATIONS)["object"] == [False, False]
    assert "relation" not in caption_scores(["a fox"], truths[:1], RELATIONS)


def test_continuation_scores_equal_whole_documents(rng):
    model = MixtureOfTransformers(model_config()).double()
    prompt = [random_part(rng, "image")]
    candidates = [rng.integers(0, 20, int(rng.integers(1, 6))) for _ in range(11)]
    got = continuation_scores(model, prompt, candidates, chunk=4)
    for score, ids in zip(got, candidates, strict=True):
        batch = pack([Document([*prompt, Part("text", ids)])], model.config)
        with torch.no_grad():
            losses, _ = next_token.target_losses(model, model(batch), batch)
        by_position = torch.full((batch.num_tokens,), float("nan"), dtype=torch.float64)
        rows = [r + sum(batch.routing.padded_sizes[:k]) for k, r in enumerate(batch.targets.rows)]
        by_position[batch.routing.to_towers[torch.cat(rows)]] = losses
        text = batch.spans[-2]
        assert score == pytest.approx(-float(by_position[text.start - 1 : text.stop - 1].sum()), abs=1e-9)


def test_forced_choice():
    rng = np.random.default_rng(0)
    truth = rng.permutation(40)
    perfect = forced_choice(np.eye(40)[truth], truth)
    assert perfect["accuracy"] == 1.0 and perfect["shuffled"] == 0.0 and perfect["chance"] == 1 / 40
    blind = np.tile(rng.standard_normal(40), (40, 1))
    assert forced_choice(blind, truth)["accuracy"] == pytest.approx(forced_choice(blind, truth)["shuffled"], abs=0.02)


def test_interval():
    low, high = wilson(0.5, 100)
    assert 0.40 < low < 0.41 and 0.59 < high < 0.60
