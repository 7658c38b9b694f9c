"""The judges: they know good from bad, and say so the same way every time."""

import numpy as np
import pytest
import torch

from plait.codecs.images import psnr
from plait.common.errors import DataError, ResourceError
from plait.common.randomness import generator
from plait.evaluate.extractors import EfficientNetLite0
from plait.evaluate.image_sets import frechet_distance
from plait.evaluate.recogniser import Recogniser, recognise, recognised_share
from plait.evaluate.reference_classifier import similarity
from plait.scenes import source, truths
from plait.scenes.drawings import split_concepts
from plait.scenes.world import World


@pytest.fixture(scope="module")
def judge() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def spoken() -> tuple[list[np.ndarray], list[str]]:
    shown = [World(0).scene("seen", i) for i in range(24)]
    return source.speak_scenes(shown), [s.caption for s in shown]


# images


def test_psnr_by_hand():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 51))
    assert psnr(black, black) == 100


def test_nearest_reference_is_the_right_concept(judge):
    chosen = split_concepts(0)["train"][::80]
    references = [truths.reference(c.code, 32) for c in chosen]
    known = judge.features(references)
    places = similarity(known, known).argmax(1)
    assert places.tolist() == list(range(len(chosen)))
    noisy, garbage = ([noised(image, deviation) for image in references] for deviation in (25, 400))
    right = [float(np.mean(similarity(judge.features(x), known).argmax(1) == places)) for x in (noisy, garbage)]
    assert right[0] > 0.6 > right[1]


def noised(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = generator(0, "test noise").normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_frechet_distance_orders_sets(judge):
    drawn = [source.draw(World(0).scene("seen", i), 32) for i in range(96)]
    one, other = drawn[:48], drawn[48:]
    sets = [one, one, other, [noised(p, 60) for p in other], [noised(p, 400) for p in one]]
    first, *features = (judge.features(images) for images in sets)
    same, halves, noisy, garbage = (frechet_distance(first, x) for x in features)
    assert same < 1e-6 * halves and halves < noisy < garbage


def test_frechet_distance_of_known_gaussians():
    rng = generator(0, "test gaussians")
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a = torch.from_numpy(rng.standard_normal((40_000, 6)))
    b = torch.from_numpy(2 * rng.standard_normal((40_000, 6)) @ basis + 3)
    # equal directions: |3|^2 per axis, and (2 - 1)^2 per axis
    assert frechet_distance(a, b) == pytest.approx(6 * 9 + 6 * 1, rel=0.02)
    assert frechet_distance(a[:3], a[:3]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(a[:1], b)


def test_no_images(judge):
    with pytest.raises(DataError, match="no images"):
        judge.features([])


# speech


def test_captions_are_recognised_and_noise_is_not(spoken):
    clips, captions = spoken
    result = recognised_share(clips, captions)
    assert result.share >= 0.85 and result.trials + result.left_out == len(clips) and result.trials >= 18
    noise = [generator(0, "test noise", item=i).normal(0, 0.1, 24_000).astype(np.float32) for i in range(6)]
    assert recognised_share(noise, captions[:6]).share <= 0.34
    swapped = recognised_share(clips, captions[1:] + captions[:1])
    assert swapped.share <= 0.05


def test_recognising_is_deterministic_and_returns_the_captions(spoken):
    clips, captions = spoken
    heard = recognise(clips[:8], captions[:8])
    assert heard == recognise(clips[:8], captions[:8])
    assert set(heard) <= {*captions[:8], ""}
    assert np.mean([a == b for a, b in zip(heard, captions)]) > 0.7


def test_what_is_heard_does_not_depend_on_the_clip_before(spoken):
    """pocketsphinx takes the noise of one clip for that of the next."""
    clips, captions = spoken
    judge = Recogniser([captions])
    alone = [judge.hear(clips[1], 1), judge.hear(clips[5], 5)]
    loud = generator(0, "test noise").normal(0, 0.5, 32_000).astype(np.float32)
    judge.hear(loud)
    assert judge.hear(clips[1], 1) == alone[0]
    judge.hear(np.zeros(16_000, np.float32))
    assert judge.hear(clips[5], 5) == alone[1]


def test_unknown_words_are_left_out_and_counted():
    judge = Recogniser([["a red apple", "a xqzvian apple", "a T-shirt", "a high-voltage sign"]])
    assert judge.left_out == ["a xqzvian apple"]
    assert judge.spoken("a high-voltage sign") == "a high voltage sign" and judge.spoken("A T-shirt!") == "a t-shirt"
    with pytest.raises(DataError, match="none of 1 choices"):
        Recogniser([["xqzvian"]])
    silent = np.zeros(16_000, np.float32)
    result = recognised_share([silent, silent], ["a xqzvian apple", "a red apple"])
    assert (result.trials, result.left_out, result.hits) == (1, 1, [None, False])


@pytest.mark.parametrize(
    ("module", "make"),
    [("pocketsphinx", lambda: Recogniser([["a fox"]])), ("efficientnet_lite_pytorch", EfficientNetLite0)],
)
def test_a_missing_judge_says_what_to_install(monkeypatch, module, make):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ResourceError, match=rf"{module}.*pip install 'plait\[judges\]'"):
        make()
