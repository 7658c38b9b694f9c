"""What the codecs that only read share: the features of a frozen encoder of transformers.

The encoder is found by folder or Hub name, whatever holds it: a model of an image and a text tower (SigLIP, CLIP), an
encoder with a decoder (Whisper), or with a head. Features are normalised by mean and scale of each channel, which are
measured once, as those of all continuous codecs. There is no way back: `decode` returns what it is given.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Media, Progress
from plait.codecs.fitting import best_device
from plait.codecs.latents import Scaling, measured_places
from plait.common.errors import ConfigError, DataError, first_line, require


class FeatureCodec(Codec):
    """Base of the codecs that only read. Options have ``path`` and ``layer``; a subclass gives `_features`."""

    reads_only: ClassVar[bool] = True

    def __init__(self, options: Any, encoder: Any):
        super().__init__(options)
        self.encoder = encoder
        self.latent_channels = getattr(encoder.config, "hidden_size", 0)
        if not self.latent_channels:
            raise ConfigError(f"codec_options.path: {options.path!r} is no encoder of one width (hidden_size)")
        self.scaling: Scaling | None = None
        """Mean and scale of the features, per channel; None until fitted."""
        layers = encoder.config.num_hidden_layers
        require(-layers <= options.layer <= -1, "codec_options.layer", options.layer,
                f"between {-layers} and -1: this encoder has {layers} layers")  # fmt: skip

    @abstractmethod
    def _features(self, media: Sequence[Media]) -> Iterator[tuple[list[int], tuple[int, ...], Tensor]]:
        """Yield places of items of one size, their grid, and their features [B, n, C] on the CPU."""

    def _run(self, **inputs: Any) -> Tensor:
        """Return the features [B, n, C] of the layer that the options name."""
        layer = self.options.layer
        out = self.encoder(**inputs, output_hidden_states=layer != -1)
        return (out.last_hidden_state if layer == -1 else out.hidden_states[layer]).float().cpu()

    @property
    def _measured(self) -> Scaling:
        assert self.scaling is not None, "features are measured before any are encoded"
        return self.scaling

    @property
    def is_fitted(self) -> bool:
        return self.scaling is not None

    @torch.no_grad()
    def fit(self, media: Sequence[Media], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Measure mean and scale of each channel; nothing is trained."""
        if not len(media):
            raise DataError(f"{self.kind} codec: there is nothing to measure its features on")
        chosen = [media[i] for i in measured_places(len(media))]
        self.encoder.to(best_device())
        self.scaling = Scaling.measure(features.movedim(2, 1) for _, _, features in self._features(chosen))
        self.encoder.to("cpu")
        progress(1.0, "features measured")

    @torch.no_grad()
    def encode(self, media: Sequence[Media]) -> list[Encoded]:
        """Encode items of any sizes: features [n, latent_channels], normalised by `scaling`."""
        encoded = [Encoded()] * len(media)
        for places, grid, features in self._features(media):
            rows = self._measured.normalize(features.movedim(2, 1)).movedim(1, 2).contiguous().numpy()
            for i, row in zip(places, rows, strict=True):
                encoded[i] = Encoded(latents=row, grid=grid)
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[Media]:
        """Return the items as they are: nothing leads from features back to media."""
        return list(encoded)

    def quality(self, media: Sequence[Media]) -> dict[str, float]:
        """Return ``latent_mean``, ``latent_std`` and ``tokens_per_item``."""
        encoded = self.encode(media)
        values = np.concatenate([e.latents for e in encoded if e.latents is not None])
        return {
            "latent_mean": float(values.mean()),
            "latent_std": float(values.std()),
            "tokens_per_item": len(values) / len(encoded),
        }

    def _description(self) -> dict[str, Any]:
        """Return what codec.json holds besides."""
        return {}

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json, and the encoder as transformers writes it beside it."""
        with saved.quiet():
            self.encoder.save_pretrained(str(folder))
        saved.write_description(self, folder, **self._measured.describe(), **self._description())

    def _restore(self, description: dict[str, Any]) -> None:
        """Take back what `_description` said."""

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        codec, description = saved.read_copy(cls, folder)
        codec.scaling = Scaling.described(description, codec.latent_channels, folder)
        codec._restore(description)
        return codec


def load_encoder(path: str, tower: str) -> Any:
    """Load the encoder of a folder or Hub name; raises ConfigError where there is none.

    ``tower`` names the config of the tower that is meant, such as "vision_config", where a model has several.
    """
    with saved.installed("transformers"):
        from transformers import MODEL_MAPPING, AutoConfig
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config = getattr(config, tower, config)
        model_class: Any = MODEL_MAPPING[type(config)]
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ConfigError(f"codec_options.path: {path!r} holds no model of transformers ({reason})") from None
    with saved.quiet():
        if not getattr(config, "is_encoder_decoder", False):
            return saved.load_pretrained(model_class, path, is_part=True)
        with torch.device("meta"):
            encoder_class = type(model_class(config).get_encoder())
        if config.architectures == [encoder_class.__name__]:  # it was saved without its decoder
            return saved.load_pretrained(encoder_class, path)
        return saved.load_pretrained(model_class, path, is_part=True).get_encoder()
