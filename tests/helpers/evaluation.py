"""Documents, codecs and images of which everything is known."""

import numpy as np

from helpers.fake_data import FakeImage, FakeOptions, FakeSpeech, FakeText
from plait.batch.documents import Document, Part
from plait.codecs.base import Encoded

THINGS = ["fox", "owl", "key", "apple", "sun", "boat", "tree"]


SIDE = 4


class Text(FakeText):
    def decode(self, encoded):
        return [bytes(e.ids.astype(np.uint8)).decode(errors="replace") for e in encoded]


class Image(FakeImage):
    default_grid = (SIDE, SIDE)

    def decode(self, encoded):
        return [np.repeat(e.ids.reshape(SIDE, SIDE, 1).astype(np.uint8) * 4, 3, axis=2) for e in encoded]

    def encode(self, media):
        return [Encoded(m[:, :, 0].astype(np.int32).ravel() // 4, grid=(SIDE, SIDE)) for m in media]


class Speech(FakeSpeech):
    def encode(self, media):
        return [Encoded(wave.astype(np.int32)) for wave in media]


CODECS = {"text": Text(FakeOptions()), "image": Image(FakeOptions(SIDE)), "speech": Speech(FakeOptions())}
CODECS["image"].mean = 0.0


def drawn(thing: str) -> np.ndarray:
    ids = np.random.default_rng(THINGS.index(thing)).integers(0, 64, (SIDE, SIDE, 1))
    return np.repeat(ids.astype(np.uint8) * 4, 3, axis=2)


def caption(i: int) -> str:
    return f"a {THINGS[i]} on a blue ground"


def document(i: int) -> Document:
    """Return a caption, an image of ids, and speech, whose ids spell the caption."""
    said = np.frombuffer(caption(i).encode(), np.uint8).astype(np.int32)
    (shown,) = CODECS["image"].encode([drawn(THINGS[i])])
    parts = [Part("text", said), Part("image", shown.ids, grid=shown.grid), Part("speech", said)]
    return Document(parts, meta={"caption": caption(i), "shows": THINGS[i]})
