"""Speech as discrete tokens at 25 Hz: a small convolutional autoencoder over log-mel frames, with FSQ or VQ.

A recording of n samples at 16 kHz becomes ceil(n / 640) ids, four frames of 10 ms each; repeats are kept, so the
length is known from the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from plait.codecs import saved
from plait.codecs.base import Encoded, Progress, ids_of
from plait.codecs.mel import BINS
from plait.codecs.quantizer import Quantizer, check_quantizer
from plait.codecs.speech_mel import MelAutoencoder, SpeechCodec, SpeechOptions, mel_error


@dataclass
class SpeechTokenOptions(SpeechOptions):
    """Settings of `SpeechTokenCodec`."""

    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq: finite scalar quantisation. vq: a learned codebook."""
    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels per dimension (fsq); their product is the number of ids."""
    codebook_size: int = 1024
    """Number of ids (vq)."""

    def __post_init__(self):
        super().__post_init__()
        check_quantizer(self.quantizer, self.levels, self.codebook_size)


class SpeechTokenCodec(SpeechCodec):
    """Trained speech tokens. Media: float32 [samples] at 16 kHz; decoded: 640 samples an id."""

    name: ClassVar[str] = "speech_tokens"
    options_class: ClassVar[type] = SpeechTokenOptions

    def __init__(self, options: SpeechTokenOptions):
        super().__init__(options)
        self.model = self._new_model()
        self.vocab_size = self.model.quantizer.vocab_size
        self._fitted = False

    model: "SpeechAutoencoder"

    @property
    def is_fitted(self) -> bool:
        return self._fitted

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        super().fit(media, minutes=minutes, seed=seed, folder=folder, progress=progress)
        self._fitted = True

    def _new_model(self) -> "SpeechAutoencoder":
        return SpeechAutoencoder(self.options)

    def _loss(self, model: Any, target_BFT: Tensor) -> Tensor:
        output, _, quantizer_loss = model(target_BFT)
        return mel_error(output, target_BFT) + quantizer_loss

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode recordings; raises DataError where one is empty."""
        encoded = [Encoded()] * len(media)
        for places, mel in self._batches(media):
            for i, ids in zip(places, self.model.ids(mel).numpy().astype(np.int32), strict=True):
                encoded[i] = Encoded(ids=ids)
        return encoded

    def _decoded_mel(self, item: Encoded) -> Tensor:
        return self.model.decode(torch.from_numpy(ids_of(item).astype(np.int64))[None])[0]

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``mel_l1`` (on log-mel with mean 0 and deviation 1 per bin), ``codes_used``, ``tokens_per_item``."""
        encoded = self.encode(media)
        return {
            "mel_l1": self._mel_error(media, encoded),
            "codes_used": len(np.unique(np.concatenate([ids_of(e) for e in encoded]))) / self.vocab_size,
            "tokens_per_item": float(np.mean([len(ids_of(e)) for e in encoded])),
        }

    @classmethod
    def from_pretrained(cls, folder: Path) -> "SpeechTokenCodec":
        codec, _ = saved.read_description(cls, folder)
        saved.read_weights(codec.model, folder)
        codec._fitted = True
        return codec


class SpeechAutoencoder(MelAutoencoder):
    """A quantiser between encoder and decoder."""

    def __init__(self, options: SpeechTokenOptions):
        super().__init__(options.channels)
        self.quantizer = Quantizer(
            options.quantizer, dim=options.channels, levels=options.levels, codebook_size=options.codebook_size
        )

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions, ids [B, T / FOLD] and the quantiser's loss, all on normalised mel."""
        quantized, ids, loss = self.quantizer(self.encoder(mel_BFT).transpose(1, 2))
        return self.decoder(quantized.transpose(1, 2)), ids, loss

    @torch.no_grad()
    def ids(self, mel_BFT: Tensor) -> Tensor:
        """Return the ids [B, T / FOLD] of log-mel."""
        self.eval()
        mel = self.normalize(mel_BFT.to(self.mean.device))
        return self.quantizer(self.encoder(mel).transpose(1, 2))[1].cpu()

    @torch.no_grad()
    def decode(self, ids_BN: Tensor) -> Tensor:
        """Return the log-mel [B, BINS, N * FOLD] of ids."""
        self.eval()
        if not ids_BN.numel():
            return torch.zeros(len(ids_BN), BINS, 0)
        vectors = self.quantizer.lookup(ids_BN.to(self.mean.device))
        return self.restore(self.decoder(vectors.transpose(1, 2))).cpu()
