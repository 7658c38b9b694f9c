"""A small model that reads and makes text, images and sound, and a real server of it."""

import base64
import contextlib
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import uvicorn
from PIL import Image

from helpers.chat import chat_codec
from helpers.fake_data import FakeSpeech
from helpers.ports import free_port
from plait.codecs import Codec
from plait.codecs.image_pixels import ImagePixelCodec, ImagePixelOptions
from plait.codecs.image_tokens import ImageTokenCodec
from plait.codecs.text import BytePairCodec, BytePairOptions
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.serve.app import Load, create_app
from plait.serve.service import Limits

SIDE = 16


class Tones(FakeSpeech):
    """Sound as the loudness of chunks of 100 samples, which are played as steps."""

    suffix = ".wav"

    def decode(self, encoded):
        return [np.repeat(np.asarray(e.ids) / 127, 100).astype(np.float32) for e in encoded]


def small_pipeline(folder: Path, *, chat: bool, steps: int = 6, tokens: bool = False, longest: int = 12,
                   speech: Codec | None = None) -> Pipeline:  # fmt: skip
    """Return a random model in float64, with a chat template or none; images by flow or as ids, sound as ids."""
    rng = np.random.default_rng(0)
    if tokens:
        image = ImageTokenCodec.from_options({"size": SIDE, "levels": [3, 3], "channels": 8, "steps": 1})
    else:
        image = ImagePixelCodec(ImagePixelOptions(size=SIDE))
    image.fit([rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)], minutes=0, seed=0, folder=folder,
              progress=lambda *_: None)  # fmt: skip
    if chat:
        text = chat_codec(folder)
    else:
        text = BytePairCodec(BytePairOptions(vocab_size=270))
        text.fit(["a fox on a blue background, and an owl"] * 4, minutes=0, seed=0, folder=folder,
                 progress=lambda *_: None)  # fmt: skip
    tones = speech or Tones(Tones.options_class())
    images = {"vocab_size": image.vocab_size} if tokens else {
        "objective": "diffusion", "attention": "bidirectional", "latent_channels": image.latent_channels,
        "patch_size": image.patch_size}  # fmt: skip
    records = {
        "text": ModalityConfig(vocab_size=text.vocab_size),
        "image": ModalityConfig(**images),
        "speech": ModalityConfig(vocab_size=tones.vocab_size),
    }  # fmt: skip
    config = ModelConfig(records, width=32, num_heads=2, num_layers=2, max_positions=512,
                         bos=text.bos, eos=text.eos, stops=text.stops)  # fmt: skip
    torch.manual_seed(0)
    model = MixtureOfTransformers(config).double().requires_grad_(False)
    sampling = {} if tokens else {"image": SamplingConfig(steps=steps)}
    settings = GenerateConfig(max_tokens={"text": longest, "speech": 20}, batch_size=8, sampling=sampling)
    return Pipeline(model, {"text": text, "image": image, "speech": tones}, settings)


def served(pipeline: Pipeline, **settings) -> contextlib.AbstractContextManager[str]:
    """Serve a model called small as `served_models` does."""
    return served_models({"small": lambda: pipeline}, **settings)


@contextlib.contextmanager
def served_models(models: dict[str, Load], *, key: str = "", run: Path | None = None, **limits) -> Iterator[str]:
    """Serve models on a port of this machine; yields the address."""
    app = create_app(models, key=key, run=run, limits=Limits(**limits))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_loaded(address)
        yield address
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive(), "the server did not end"


def wait_until_loaded(address: str, seconds: float = 60.0) -> None:
    """Wait until a server says that its model is loaded."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{address} did not come up in {seconds} s")


def pixels_of(data: str) -> np.ndarray:
    """Return the pixels of an image in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
