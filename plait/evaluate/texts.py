"""How good are texts? Against the reference texts of the same items, by kept libraries and without Java.

- BLEU and chrF by sacrebleu, over the whole set (its signatures: 13a tokens, mixed case).
- CIDEr-D by pycocoevalcap, on words in lower case without punctuation; COCO's own tokenizer is a Java program, and cuts
  some words otherwise ("don't", "U.S."). Frequencies are those of the references at hand, as usual.
- ROUGE-L by rapidfuzz, on the same words. Exact: the share of texts that are the reference, letter by letter.
- Word and character error rates by jiwer, on the same words: for what was heard.
"""

import re
from collections.abc import Sequence

import numpy as np

from plait.evaluate.measures import Measure, mean_of, package, ratio_of, resampled, share_of

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def text_measures(said: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """Return ``cider``, ``bleu``, ``chrf`` (both of 100), ``rouge_l`` and ``exact`` of texts, a reference for each."""
    found = {"cider": mean_of(cider(said, references))} if len(said) > 1 else {}
    found |= {name: _of_sacrebleu(name, said, references) for name in ("bleu", "chrf")}
    return found | {
        "rouge_l": mean_of(rouge_l(said, references)),
        "exact": share_of([a.strip() == b.strip() for a, b in zip(said, references, strict=True)]),
    }


def error_measures(heard: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """Return ``wer`` and ``cer``: errors over all words, and over all characters, of the references."""
    return {
        name: ratio_of(*map(list, zip(*pairs, strict=True)))
        for name, pairs in text_errors(heard, references).items()
        if any(whole for _, whole in pairs)
    }


def text_errors(heard: Sequence[str], references: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return of ``wer`` and ``cer``, for each text, the errors and how many words or characters its reference has."""
    jiwer = package("jiwer")
    errors: dict[str, list[tuple[int, int]]] = {"wer": [], "cer": []}
    for hypothesis, reference in zip(heard, references, strict=True):
        a, b = " ".join(words(hypothesis)), " ".join(words(reference))
        for name, process in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
            if not b:  # nothing to hear: it counts for nothing
                errors[name].append((0, 0))
                continue
            o = process(b, a)
            errors[name].append((o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions))
    return errors


def cider(said: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return each text's CIDEr-D (arXiv 1411.5726), times 10 as usual; needs two items or more."""
    scorer = package("pycocoevalcap.cider.cider_scorer").CiderScorer(n=4, sigma=6.0)
    for text, reference in zip(said, references, strict=True):
        scorer += (" ".join(words(text)), [" ".join(words(reference))])
    _, each = scorer.compute_score()
    return [float(score) for score in np.atleast_1d(each)]


def rouge_l(said: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return each text's ROUGE-L: the F-measure of the longest sequence of words that stand in both in this order."""
    lcs = package("rapidfuzz.distance").LCSseq.similarity
    pairs = [(words(text), words(reference)) for text, reference in zip(said, references, strict=True)]
    return [2 * lcs(a, b) / (len(a) + len(b)) if a or b else 0.0 for a, b in pairs]


def nearest_texts(texts: Sequence[str], others: Sequence[str]) -> list[int]:
    """Return for each text the place of the one among ``others`` that it shares most characters with, in order."""
    process = package("rapidfuzz.process")
    return [int(i) for i in process.cdist(texts, others).argmax(1)]


def text_likeness(texts: Sequence[str], others: Sequence[str]) -> list[float]:
    """Return how like each text is to the likest of ``others``: 1 less the share of characters to add and take out."""
    process = package("rapidfuzz.process")
    return [float(best) / 100 for best in process.cdist(texts, others).max(1)]


def _of_sacrebleu(name: str, said: Sequence[str], references: Sequence[str]) -> Measure:
    """Return a score of the whole set; it is made of counts that add up over texts, which is what is resampled.

    The library's own resampling fails where a resample has no word in common (numpy's numbers among Python's).
    """
    metric = getattr(package("sacrebleu"), {"bleu": "BLEU", "chrf": "CHRF"}[name])()
    counts = np.array(metric._extract_corpus_statistics(list(said), [list(references)]))

    def score(rows: np.ndarray) -> float:
        return float(metric._compute_score_from_stats(counts[rows.astype(int)].sum(0).tolist()).score)

    return resampled(lambda rows, axis=-1: np.apply_along_axis(score, axis, rows), np.arange(len(said)))
