"""Scores of texts against examples that were computed by hand, and their intervals."""

import math
import sys

import numpy as np
import pytest

from plait.common.errors import ResourceError
from plait.evaluate.judge import Found
from plait.evaluate.measures import Measure, difference, mean_of, ratio_of, share_of, wilson
from plait.evaluate.texts import cider, error_measures, nearest_texts, rouge_l, text_measures, words

pytest.importorskip("sacrebleu")


def test_words():
    said = words("A fox’s den, isn't it? Ça va: 3 fois – 東京!")
    assert said == ["a", "fox's", "den", "isn't", "it", "ça", "va", "3", "fois", "東京"]


def test_error_rates_by_hand():
    """One word replaced, one left out and one too many, of 4 + 3 words; case and punctuation do not count."""
    heard = ["The fox on red", "an owl sat there"]
    references = ["the fox on blue.", "an owl sat"]
    errors = error_measures(heard, references)
    assert errors["wer"].value == pytest.approx(2 / 7) and errors["wer"].count == 2
    # blue -> red: 3 letters replaced and 1 left out of 15; " there": 6 too many beside 10
    assert errors["cer"].value == pytest.approx((4 + 6) / (15 + 10))
    assert error_measures([""], ["an owl"])["wer"].value == 1.0
    assert error_measures(["a"], ["..."]) == {}


def test_bleu_by_hand():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; equal lengths, so that nothing is taken off."""
    found = text_measures(["the cat sat on a mat", "an owl sat on the roof"] * 2,
                          ["the cat sat on the mat", "an owl sat on the roof"] * 2)  # fmt: skip
    matches, total = np.array([5 + 6, 3 + 5, 2 + 4, 1 + 3]), np.array([12, 10, 8, 6])
    assert found["bleu"].value == pytest.approx(100 * math.exp(np.log(matches / total).mean()))
    assert found["exact"].value == 0.5 and found["rouge_l"].value == pytest.approx((1 + 5 / 6) / 2)
    assert found["bleu"].low < found["bleu"].value <= found["bleu"].high <= 100 + 1e-9


def test_cider_by_hand():
    """Two items whose words differ wholly: a right text scores 10 over the n-grams that it has, a wrong one 0."""
    assert cider(
        ["a red fox runs home", "one old owl sits still"], ["a red fox runs home", "one old owl sits still"]
    ) == (pytest.approx([10.0, 10.0]))
    assert cider(["one old owl sits still"] * 2, ["a red fox runs home", "one old owl sits still"]) == (
        pytest.approx([0.0, 10.0])
    )
    # half of the words: 2 of 4 single words with the same weights, 1 of 3 pairs, none longer; of the same length
    said, references = ["a red owl sits", "x y z w"], ["a red fox runs", "x y z w"]
    assert cider(said, references)[0] == pytest.approx(10 * (2 / 4 + 1 / 3 + 0 + 0) / 4)


def test_rouge_by_hand():
    """The longest common sequence is "the on mat" of 5 and 4 words."""
    assert rouge_l(["the dog on green mat"], ["the cat on mat"]) == [pytest.approx(2 * 3 / (5 + 4))]
    assert rouge_l(["лиса"], ["лиса"]) == [1.0]


def test_sets_with_little_in_common_have_intervals_too():
    found = text_measures(["zzz q", "a fox on red", "x y z"], ["a fox on red"] * 3)
    assert found["bleu"].low < found["bleu"].value < found["bleu"].high <= 100 + 1e-9
    assert text_measures(["zzz"] * 3, ["a fox"] * 3)["bleu"].high < 1


def test_the_right_texts_are_the_ceiling_and_noise_the_floor():
    references = [
        f"a {thing} on a {ground} background" for thing in ("fox", "owl", "pear") for ground in ("red", "blue")
    ]
    best, worst = text_measures(references, references), text_measures(["zzz qqq"] * 6, references)
    assert (best["exact"].value, best["bleu"].value, best["chrf"].value) == (
        1.0,
        pytest.approx(100),
        pytest.approx(100),
    )
    assert worst["cider"].value == 0.0 and worst["bleu"].value < 5 and worst["exact"].value == 0.0
    assert error_measures(references, references)["wer"] == Measure(0.0, 0.0, 0.0, 6)


def test_intervals():
    rng = np.random.default_rng(3)
    values = rng.normal(2.0, 1.0, 400)
    found = mean_of(values)
    assert found == mean_of(values), "the same items give the same digits"
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    parts, wholes = rng.integers(0, 3, 200), rng.integers(3, 9, 200)
    ratio = ratio_of(parts, wholes)
    assert ratio.low < ratio.value == parts.sum() / wholes.sum() < ratio.high
    assert mean_of([0.5]) == Measure(0.5, 0.5, 0.5, 1) and ratio_of([0, 0], [0, 0]).value == 0.0
    # about 95 of 100 intervals hold the truth
    held = [m.low <= 2.0 <= m.high for m in (mean_of(rng.normal(2.0, 1.0, 60)) for _ in range(100))]
    assert 88 <= sum(held) <= 100


def test_shares():
    """None counts for nothing; where all agree the interval is Wilson's; of nothing there is no score."""
    found = share_of([True, None, False, True, None])
    assert (found.value, found.count) == (2 / 3, 3) and found.low < found.value < found.high
    everywhere = share_of([True] * 20)
    assert everywhere.high == everywhere.value == 1.0 and everywhere.low == wilson(1.0, 20)[0] < 0.9
    nothing = Found({"right": share_of([None, None]), "left": everywhere}, {"right_real": 1.0})
    assert nothing.figures().keys() == {"left", "left_low", "left_high", "left_count", "right_real"}
    errors = ratio_of([1, 0, 2], [4, 5, 6])
    whole = Found(
        {"wer": errors, "copied": everywhere, "kid": Measure(1.0, 0.0, 2.0, 3)}, {"wer_real": 0.1, "kid_real": 0}
    )
    assert whole.of_items().figures().keys() == {"wer", "wer_low", "wer_high", "wer_count", "wer_real"}


def test_what_two_differ_by():
    """Of the same items, so that what makes all of them hard for both counts for nothing."""
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 5, 300)
    worse, better = mean_of(hard), mean_of(hard + rng.normal(0.5, 0.5, 300))
    assert worse.low < better.value < worse.high, "each by itself cannot tell"
    found = difference(better.items, worse.items)
    assert 0.4 < found.low < found.value < found.high < 0.6 and found.count == 300
    assert difference(worse.items, worse.items) == Measure(0.0, 0.0, 0.0, 300)
    errors, words_said = rng.integers(0, 3, 80), rng.integers(4, 9, 80)
    a, b = ratio_of(errors, words_said), ratio_of(errors + 1, words_said)
    assert difference(b.items, a.items).value == pytest.approx(80 / words_said.sum())


def test_nearest_texts():
    others = ["a fox on red", "an owl on blue", ""]
    assert nearest_texts(["an owl on red", "a fox"], others) == [0, 0] or nearest_texts(["an owl on blu"], others) == [
        1
    ]


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(
        ResourceError, match=r"evaluate: package 'jiwer' is not installed.* pip install 'plait\[judges\]'"
    ):
        error_measures(["a"], ["a"])
