"""Is speech understood? An independent recogniser (pocketsphinx, US English) chooses among known sentences.

The set of sentences is closed: a grammar made of the captions in question. So the figure says whether a clip can be
told from the others, not whether it could be transcribed freely. Words that the recogniser's dictionary lacks cannot
be recognised; captions with such words are left out, and counted.
"""

import functools
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.common.cores import num_cores
from plait.common.errors import DataError, ResourceError
from plait.common.randomness import generator

SAMPLE_RATE = 16_000
"""Samples per second of the clips that are judged, unless told otherwise."""

GRAMMAR = 100
"""Texts that are chosen among, about: clips are judged in groups of like size."""

_PADDING = 0.3  # seconds before and after, which the recogniser needs to find the speech
_NOISE = 1e-3  # of full scale: it was never trained on digital silence


class Recogniser:
    """Recognises one sentence of a grammar: one choice from every slot, in order.

    ``Recogniser([captions])`` chooses among whole captions; ``Recogniser([["a fox", "an ox"], ["on blue", "on red"]])``
    knows four sentences. Choices with unknown words are left out, see ``left_out``. Raises ResourceError without
    pocketsphinx, DataError where a slot has no choice left.
    """

    def __init__(self, slots: Sequence[Sequence[str]], *, sample_rate: int = SAMPLE_RATE):
        self._decoder = _decoder()
        self.sample_rate = sample_rate
        self.left_out: list[str] = []
        """Choices with a word that the dictionary lacks."""
        self._said: list[dict[str, str]] = []
        for choices in slots:
            said = {spoken: choice for choice in choices if (spoken := self.spoken(choice))}
            self.left_out += [choice for choice in choices if not self.spoken(choice)]
            if not said:
                raise DataError(f"speech judge: none of {len(choices)} choices has only words that it knows")
            self._said.append(said)
        sentence = " ".join(f"( {_tree([spoken.split() for spoken in said])} )" for said in self._said)
        grammar = f"#JSGF V1.0; grammar captions; public <sentence> = {sentence};"
        self._decoder.add_jsgf_string("captions", grammar)
        self._decoder.activate_search("captions")

    def spoken(self, text: str) -> str:
        """Return the words of a text as the dictionary spells them, or "" where it lacks one."""
        words: list[str] = []
        for word in re.sub(r"[^\w' .-]", " ", text.lower().replace("’", "'")).split():
            whole = word.strip(".-") if self._decoder.lookup_word(word) is None else word
            parts = [whole] if self._decoder.lookup_word(whole) else [p for p in re.split(r"[-.]", whole) if p]
            if not all(self._decoder.lookup_word(part) for part in parts):
                return ""
            words += parts
        return " ".join(words)

    def recognise(self, clips: Sequence[np.ndarray]) -> list[str]:
        """Return the words heard in each clip, float32 [samples]; "" where none of the sentences fits."""
        return [self.hear(clip, i) for i, clip in enumerate(clips)]

    def hear(self, clip: np.ndarray, index: int = 0) -> str:
        """Return the words heard in one clip; ``index`` chooses the noise that is laid under it."""
        wave = np.asarray(clip, np.float32)
        if self.sample_rate != SAMPLE_RATE:
            import soxr  # not by plait.codecs, whose import takes each process longer than its clips

            wave = soxr.resample(wave, self.sample_rate, SAMPLE_RATE)
        wave = np.pad(wave, round(_PADDING * SAMPLE_RATE))
        noisy = wave + _NOISE * generator(0, "speech judge", item=index).standard_normal(len(wave))
        samples = (np.clip(noisy, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.reinit_feat()  # else the noise of the clip before would be subtracted
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard else ""


def _tree(sentences: list[list[str]]) -> str:
    """Return sentences as one JSGF expression that says a common beginning once: many times faster to search."""
    rest: dict[str, list[list[str]]] = {}
    for words in sorted(sentences):
        rest.setdefault(words[0], []).append(words[1:])
    branches = []
    for word, endings in rest.items():
        longer = [ending for ending in endings if ending]
        brackets = "[  ]" if len(longer) < len(endings) else "(  )"
        branches.append(f"{word} {brackets[:2]}{_tree(longer)}{brackets[2:]}" if longer else word)
    return " | ".join(branches)


@dataclass
class Recognised:
    """What came of recognising clips of known captions."""

    share: float
    """Clips whose caption was recognised, of those tried."""
    trials: int
    """Clips whose caption the recogniser has all words for."""
    left_out: int
    """Clips whose caption has a word that it lacks."""
    hits: list[bool | None]
    """For each clip: recognised, or None where left out."""
    heard: list[str]
    """For each clip: what was heard, "" where it fits none of the captions."""


def recognise(clips: Sequence[np.ndarray], captions: Sequence[str]) -> list[str]:
    """Return for each clip the caption, out of ``captions``, that it says; "" where none fits."""
    judge = Recogniser([list(dict.fromkeys(captions))])
    by_spoken = {judge.spoken(caption): caption for caption in reversed(captions)}
    return [by_spoken.get(heard, "") if heard else "" for heard in judge.recognise(clips)]


def recognised_share(
    clips: Sequence[np.ndarray], captions: Sequence[str], *, sample_rate: int = SAMPLE_RATE
) -> Recognised:
    """Count the clips in which a recogniser hears their own caption, out of all ``captions``, one for each clip."""
    if not len(clips):
        return Recognised(0.0, 0, 0, [], [])
    judge = Recogniser([list(dict.fromkeys(captions))], sample_rate=sample_rate)
    heard = judge.recognise(clips)
    spoken = [judge.spoken(caption) for caption in captions]
    hits = [said == own if own else None for said, own in zip(heard, spoken, strict=True)]
    tried = [hit for hit in hits if hit is not None]
    share = float(np.mean(tried)) if tried else 0.0
    return Recognised(share, len(tried), len(hits) - len(tried), hits, heard)


def recognise_all(
    clips: Sequence[np.ndarray], texts: Sequence[str], sample_rate: int, advance: Callable[[float, str], None]
) -> tuple[list[bool | None], list[str]]:
    """Return for each clip whether a recogniser hears its own text, among groups of about GRAMMAR, and what it hears.

    None stands for a text with unknown words. A process for each core: the recogniser is slow, and uses one.
    """
    groups = np.array_split(np.arange(len(texts)), max(1, round(len(texts) / GRAMMAR)))
    jobs = [([clips[i] for i in group], [texts[i] for i in group]) for group in groups]
    judge = functools.partial(recognised_share, sample_rate=sample_rate)
    hits: list[bool | None] = []
    heard: list[str] = []
    with ProcessPoolExecutor(min(len(jobs), num_cores()), multiprocessing.get_context("spawn")) as pool:
        for recognised in pool.map(judge, *zip(*jobs, strict=True)):
            hits += recognised.hits
            heard += recognised.heard
            advance(len(hits) / len(texts), "")
    return hits, heard


def _decoder():
    try:
        import pocketsphinx
    except ImportError:
        message = "speech judge: package 'pocketsphinx' is not installed, install it: pip install 'plait[judges]'"
        raise ResourceError(message) from None
    models = Path(pocketsphinx.get_model_path("en-us"))
    return pocketsphinx.Decoder(
        hmm=str(models / "en-us"),
        dict=str(models / "cmudict-en-us.dict"),
        lm=None,
        samprate=SAMPLE_RATE,
        loglevel="FATAL",
    )
