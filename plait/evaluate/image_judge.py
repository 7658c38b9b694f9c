"""Images: how near they are to real ones as a set, whether each shows what it should, and whether it is remembered.

Beside every figure stand those of the documents' own images (real), of the codec's round trip of them (codec, the
ceiling), of blurred ones, of the training image whose text is nearest (nearest) and of noise (random, the floor).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch

from plait.codecs import Media
from plait.codecs.images import psnr
from plait.common.randomness import generator
from plait.config.run import EvaluateConfig
from plait.evaluate.clip_score import ClipScore
from plait.evaluate.extractors import extractor
from plait.evaluate.held import Held
from plait.evaluate.image_sets import LEAST, set_figures
from plait.evaluate.judge import Found, Judge
from plait.evaluate.measures import mean_of, share_of
from plait.evaluate.neighbours import cosines, neighbours
from plait.evaluate.reference_classifier import NUM_CONCEPTS, ReferenceClassifier

Arrays = Mapping[str, np.ndarray]
ENDS = {"real": "originals", "codec": "codec", "nearest": "nearest"}
"""Sets of images whose names are judged beside the made ones', and how their figures end."""


class ImageJudge(Judge):
    """Measures images, uint8 [H, W, 3]."""

    setting = "images"
    modules: ClassVar = ("torchmetrics.image.kid", "scipy.stats")

    def __init__(self, config: EvaluateConfig):
        super().__init__(config)
        self.extractor = extractor(config.features)
        self.clip = ClipScore(config.clip) if config.clip else None
        self._classifier = functools.lru_cache(1)(self._classifier_of)

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure images."""
        beside = {
            name: held.references(f"images_{name}", functools.partial(self._reference, name, held), **self._key)
            for name in ("real", "codec", "blurred", "nearest", "random")
        }
        beside = {name: arrays for name, arrays in beside.items() if arrays}  # no nearest one without texts
        own = self._judged(made, held)
        found = Found(ranked_by="likeness to the document's own image")
        self._as_sets(own, beside, held, found)
        self._one_by_one(own, beside, held, found)
        for name in [n for n in own if n.startswith("hit_")]:
            self._named(name, own, beside, held, found)
        return found

    @property
    def _key(self) -> dict[str, str]:
        return {"features": self.extractor.key, "clip": self.clip.key if self.clip else ""}

    def _classifier_of(self, held: Held, size: int) -> ReferenceClassifier:
        """Return what names images as large as ``size``; the same for every set of images of these documents."""
        assert held.truths is not None, "things are those that the source knows"

        def features_of(images: Sequence[Media]) -> torch.Tensor:
            kept = held.references(f"images_names_{size}", lambda: {"it": self.extractor.features(images).numpy()},
                                   **self._key)  # fmt: skip
            return torch.from_numpy(kept["it"])

        return ReferenceClassifier(held.truths, held.metas, size, features_of)

    def _reference(self, name: str, held: Held) -> dict[str, np.ndarray]:
        """Return what is judged of a set of images beside the made ones; {} where there is no such set."""
        if name == "real":
            return self._judged(held.real, held)
        if name == "codec":
            copies = held.codec.decode(held.codec.encode(held.real))
            return self._judged(copies, held) | {"psnr": _psnr(copies, held.real)}
        if name == "blurred":
            return self._judged([blurred(image) for image in held.real], held)
        if name == "random":
            return self._judged([noise(image, i) for i, image in enumerate(held.real)], held)
        return self._judged(held.nearest, held) if held.nearest is not None else {}

    def _judged(self, images: Sequence[Media], held: Held) -> dict[str, np.ndarray]:
        """Return features and what is said of each image by itself, as arrays with a row for each."""
        features = self.extractor.features(images)
        found = {"features": features.numpy()}
        if self.clip and all(held.texts):
            found["clip"] = np.array(self.clip.scores(images, held.texts))
        if held.truths:
            names = self._classifier(held, images[0].shape[0])
            hits = {"object": names.hits(features)} | held.truths.image_scores(images, held.metas)
            found |= {f"hit_{name}": np.array([-1 if h is None else int(h) for h in v]) for name, v in hits.items()}
        return found

    def _training(self, held: Held) -> torch.Tensor:
        return held.training_features("images", self.extractor.features, features=self.extractor.key)

    def _as_sets(self, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add the distances of the whole set to as many images of training."""
        features = {name: torch.from_numpy(arrays["features"]) for name, arrays in {"": own, **beside}.items()}
        others = self._training(held)[: len(features[""])]
        if min(len(features[""]), len(others)) < LEAST:
            held.say(
                f"{len(features[''])} images of {held.made!r} are too few to be compared as a set with real ones, it "
                f"needs {LEAST} (evaluate.images, and documents of the split {held.split!r})"
            )
            return
        measures, figures = set_figures(features, others)
        found.measures |= measures
        found.beside |= figures

    def _one_by_one(self, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how like images are to the documents' own, and to training's; CLIP scores; the codec's PSNR."""
        training = self._training(held)
        made, real, copies = (torch.from_numpy(x["features"]) for x in (own, beside["real"], beside["codec"]))
        mean = training.mean(0)
        found.ranking = cosines(made, real, mean).tolist()
        found.measures["match"] = mean_of(found.ranking)
        found.beside |= {"match_codec": float(cosines(copies, real, mean).mean()),
                         "match_shuffled": float(cosines(real.roll(1, 0), real, mean).mean()),
                         "psnr_codec": float(beside["codec"]["psnr"].mean())}  # fmt: skip
        measures, figures = neighbours({"": made, "real": real, "codec": copies}, training)
        found.measures |= measures
        found.beside |= figures
        if self.clip and "clip" in own:
            found.measures["clip"] = mean_of(own["clip"].tolist())
            found.beside |= {f"clip_{name}": float(x["clip"].mean()) for name, x in beside.items()}
            shuffled = self.clip.scores(held.real, [*held.texts[1:], *held.texts[:1]])
            found.beside["clip_shuffled"] = float(np.mean(shuffled))

    def _named(self, name: str, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how often images are right in something that the source of the data knows."""
        assert held.truths is not None, "hits are of truths"
        said = name.removeprefix("hit_")
        found.measures[f"{said}_accuracy"] = share_of([None if hit < 0 else bool(hit) for hit in own[name]])
        chance = 1 / NUM_CONCEPTS if said == "object" else held.truths.chances.get(said)
        found.beside |= {f"{said}_chance": chance} if chance is not None else {}
        for key, end in ENDS.items():
            hits = beside[key][name] if key in beside else np.zeros(0)
            if (hits >= 0).any():
                found.beside[f"{said}_{end}"] = float(hits[hits >= 0].mean())


def _psnr(images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Return dB [B] of images against others, of those of one size; nan where a codec changes it."""
    pairs = zip(images, others, strict=True)
    found = [psnr(image[None], other[None]) for image, other in pairs if image.shape == other.shape]
    return np.array(found or [np.nan])


def noise(image: np.ndarray, number: int) -> np.ndarray:
    """Return an image of noise, as large as another one: the floor."""
    return generator(0, "images of noise", item=number).integers(0, 256, image.shape).astype(np.uint8)


def blurred(image: np.ndarray, sigma_of_64: float = 2.0) -> np.ndarray:
    """Return an image blurred by a Gaussian of 2 pixels where it is 64 high: the reference of the Fréchet distance."""
    from PIL import Image, ImageFilter

    radius = sigma_of_64 * image.shape[0] / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
