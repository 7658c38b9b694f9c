"""Tiny prepared folders and codecs for tests: no drawing, no speaking, no training."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.batch.documents import Document, Part
from plait.codecs.base import Codec, Encoded
from plait.common.errors import DataError
from plait.common.files import write_json
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import DataConfig, RunConfig
from plait.data.shards import split_record, write_index, write_shard

MODALITIES = {
    "text": {"codec": "fake_text", "key": "text", "vocab_size": 256, "latent_channels": 0},
    "image": {"codec": "fake_image", "key": "image", "vocab_size": 64, "latent_channels": 0},
    "speech": {"codec": "fake_speech", "key": "audio", "vocab_size": 128, "latent_channels": 0},
    "depth": {"codec": "fake_depth", "key": "depth", "vocab_size": 0, "latent_channels": 3},
}
for _record in MODALITIES.values():
    _record |= {"default_grid": [], "fingerprint": _record["codec"]}


def model_config(names=("text", "image", "speech"), **settings) -> ModelConfig:
    """Return a tiny model of some of MODALITIES."""
    modalities = {}
    for name in names:
        continuous = bool(MODALITIES[name]["latent_channels"])
        modalities[name] = ModalityConfig(
            objective="diffusion" if continuous else "next_token",
            attention="bidirectional" if continuous else "causal",
        )
    return ModelConfig(modalities=modalities, width=16, num_heads=2, num_layers=1, **settings)


def run_config(path, names=("text", "image", "speech"), *, seed=0, max_positions=8192, **data) -> RunConfig:
    """Return a run on the prepared folder at ``path``."""
    data = {"batch_tokens": 512, "num_workers": 0} | data
    model = model_config(names, max_positions=max_positions)
    return RunConfig(model=model, seed=seed, data=DataConfig(path=str(path), **data))


def scene_like(i: int, seed: int = 0) -> Document:
    """Return a caption, an image of 8 by 8 ids, and speech; the first id of the text tells the document."""
    rng = np.random.default_rng((seed, i))
    text = np.concatenate([[i % 256], rng.integers(0, 256, rng.integers(5, 20))])
    parts = [
        Part("text", text),
        Part("image", rng.integers(0, 64, 64), grid=(8, 8)),
        Part("speech", rng.integers(0, 128, rng.integers(30, 90))),
    ]
    return Document(parts, meta={"number": i})


def write_folder(folder: Path, splits: dict[str, list[Document]], *, per_shard=64, modalities=None) -> Path:
    """Write documents as a prepared folder."""
    modalities = modalities or MODALITIES
    records = {}
    for split, documents in splits.items():
        starts = range(0, len(documents), per_shard)
        written = [
            write_shard(Path(folder), split, n, documents[at : at + per_shard], modalities)
            for n, at in enumerate(starts)
        ]
        shards, tables = [entry for entry, _ in written], [table for _, table in written]
        records[split] = split_record(folder, split, shards, lambda tables=tables: tables)
    write_index(folder, modalities, records)
    return Path(folder)


@dataclass
class FakeOptions:
    """Settings of the fake codecs."""

    size: int = 4


class FakeCodec(Codec):
    """Base of codecs that need no training and keep nothing but their options."""

    options_class = FakeOptions
    suffix = ".bin"

    def decode(self, encoded):
        return [e.ids for e in encoded]

    def write(self, media, path):
        Path(path).write_bytes(np.asarray(media).tobytes())

    def to_html(self, media):
        return ""

    def quality(self, media):
        return {"items": float(len(media))}

    def save_pretrained(self, folder):
        write_json(Path(folder) / "codec.json", {"codec": self.name, "size": self.options.size})

    @classmethod
    def from_pretrained(cls, folder):
        return cls(FakeOptions(json.loads((Path(folder) / "codec.json").read_text())["size"]))


class FakeText(FakeCodec):
    """UTF-8 bytes."""

    name, kind, vocab_size, names_files = "fake_text", "text", 256, False

    def read(self, value, base):
        if not isinstance(value, str):
            raise DataError(f"{value!r} is not text")
        return value

    def encode(self, media):
        return [Encoded(np.frombuffer(text.encode(), np.uint8).astype(np.int32)) for text in media]


class FakeImage(FakeCodec):
    """The brightness of ``size`` by ``size`` tiles, less the mean brightness that `fit` found."""

    name, kind, vocab_size = "fake_image", "image", 64

    def __init__(self, options):
        super().__init__(options)
        self.mean: float | None = None

    @property
    def is_fitted(self):
        return self.mean is not None

    def fit(self, media, *, minutes, seed, folder, progress):
        self.mean = float(np.mean([image.mean() for image in media]))
        progress(1.0, "done")

    def read(self, value, base):
        from PIL import Image

        try:
            with Image.open(base / value) as image:
                return np.asarray(image.convert("RGB"))
        except FileNotFoundError:
            raise DataError(f"there is no file {value!r}") from None
        except (OSError, TypeError) as error:
            raise DataError(f"{value!r} is not an image ({error})") from None

    def encode(self, media):
        n = self.options.size
        ids = []
        for image in media:
            tiles = [np.array_split(row, n, axis=1) for row in np.array_split(image, n, axis=0)]
            values = np.array([[tile.mean() for tile in row] for row in tiles]) - self.mean
            ids.append(np.clip(values / 8 + 32, 0, 63).astype(np.int32).ravel())
        return [Encoded(i, grid=(n, n)) for i in ids]

    def save_pretrained(self, folder):
        write_json(Path(folder) / "codec.json", {"codec": self.name, "size": self.options.size, "mean": self.mean})

    @classmethod
    def from_pretrained(cls, folder):
        values = json.loads((Path(folder) / "codec.json").read_text())
        codec = cls(FakeOptions(values["size"]))
        codec.mean = values["mean"]
        return codec


class FakeSpeech(FakeCodec):
    """The loudness of chunks of 100 samples."""

    name, kind, vocab_size = "fake_speech", "audio", 128

    def read(self, value, base):
        import soundfile

        try:
            wave, _ = soundfile.read(base / value, dtype="float32")
        except (soundfile.SoundFileError, TypeError) as error:
            raise DataError(f"{value!r} is not audio ({error})") from None
        if not len(wave):
            raise DataError(f"{value!r} has no samples")
        return wave

    def encode(self, media):
        if any(len(wave) < 100 for wave in media):
            raise DataError("it is shorter than 100 samples")
        chunks = [wave[: len(wave) // 100 * 100].reshape(-1, 100) for wave in media]
        return [Encoded((np.abs(c).mean(1) * 127).astype(np.int32)) for c in chunks]


class FakeDepth(FakeCodec):
    """A continuous modality: latents [4, 3] in a 2 by 2 grid from a list of numbers."""

    name, kind, latent_channels = "fake_depth", "depth", 3

    def read(self, value, base):
        return np.resize(np.array(value, np.float32), (4, 3))

    def encode(self, media):
        return [Encoded(latents=item, grid=(2, 2)) for item in media]


CODEC_NAMES = {f"fake_{n.lower()}": f"helpers.fake_data:Fake{n}" for n in ("Text", "Image", "Speech", "Depth")}
