"""Speech as continuous latents at 25 Hz: a small convolutional autoencoder over log-mel frames, with a KL bottleneck.

A recording of n samples at 16 kHz becomes ceil(n / 640) tokens, four frames of 10 ms each. The latents are the
posterior's mean, normalised by mean and scale measured on training recordings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from plait.codecs import saved
from plait.codecs.base import Encoded, Progress
from plait.codecs.latents import Scaling, checked_latents, divergence, measured_places
from plait.codecs.mel import BINS
from plait.codecs.speech_mel import MelAutoencoder, SpeechCodec, SpeechOptions, count_tokens, mel_error
from plait.common.errors import CheckpointError, require


@dataclass
class SpeechLatentOptions(SpeechOptions):
    """Settings of `SpeechLatentCodec`."""

    latent_channels: int = 32
    """Numbers in one token."""
    kl_weight: float = 1e-3
    """Weight of the mean KL divergence of a latent's number from a standard Gaussian."""

    def __post_init__(self):
        super().__post_init__()
        where = "codec_options"
        require(self.latent_channels >= 1, f"{where}.latent_channels", self.latent_channels, "at least 1")
        require(self.kl_weight >= 0, f"{where}.kl_weight", self.kl_weight, "0 or more")


class SpeechLatentCodec(SpeechCodec):
    """Trained speech latents. Media: float32 [samples] at 16 kHz; decoded: 640 samples a token."""

    name: ClassVar[str] = "speech_latents"
    options_class: ClassVar[type] = SpeechLatentOptions

    def __init__(self, options: SpeechLatentOptions):
        super().__init__(options)
        self.model = self._new_model()
        self.latent_channels = options.latent_channels
        self.scaling: Scaling | None = None
        """Mean and scale of the latents, per channel; None until fitted."""
        self._median = 0  # tokens of a training clip

    @property
    def is_fitted(self) -> bool:
        return self.scaling is not None

    @property
    def default_grid(self) -> tuple[int, ...]:
        """The median length of the training clips, because a diffusion sampler must know the extent."""
        return (self._median,) if self._median else ()

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Train the network, then measure mean and scale of its latents and the clips' median length."""
        super().fit(media, minutes=minutes, seed=seed, folder=folder, progress=progress)
        chosen = [media[i] for i in measured_places(len(media))]
        self.scaling = Scaling.measure(self.model.latents(mel) for _, mel in self._batches(chosen))
        self._median = int(np.median([count_tokens(clip) for clip in media]))

    def _new_model(self) -> "SpeechVAE":
        return SpeechVAE(self.options)

    def _loss(self, model: Any, target_BFT: Tensor) -> Tensor:
        output, mean, log_variance = model(target_BFT)
        return mel_error(output, target_BFT) + self.options.kl_weight * divergence(mean, log_variance)

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode recordings: latents [n, latent_channels]; raises DataError where one is empty."""
        encoded = [Encoded()] * len(media)
        for places, mel in self._batches(media):
            latents = self.scaling.normalize(self.model.latents(mel)).transpose(1, 2)
            for i, row in zip(places, latents.contiguous().numpy(), strict=True):
                encoded[i] = Encoded(latents=row, grid=(len(row),))
        return encoded

    def _decoded_mel(self, item: Encoded) -> Tensor:
        latents = torch.from_numpy(checked_latents(item, self.latent_channels, "speech")).T[None]
        return self.model.decode(self.scaling.restore(latents))[0]

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``mel_l1`` (log-mel of deviation 1 per bin), ``latent_mean``, ``latent_std``, ``tokens_per_item``."""
        encoded = self.encode(media)
        values = np.concatenate([e.latents for e in encoded])
        return {
            "mel_l1": self._mel_error(media, encoded),
            "latent_mean": float(values.mean()),
            "latent_std": float(values.std()),
            "tokens_per_item": len(values) / len(encoded),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder, **self.scaling.describe(), median_tokens=self._median)
        saved.write_weights(self.model, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "SpeechLatentCodec":
        codec, description = saved.read_description(cls, folder)
        saved.read_weights(codec.model, folder)
        codec.scaling = Scaling.described(description, codec.latent_channels, folder)
        codec._median = description.get("median_tokens")
        if not isinstance(codec._median, int) or codec._median < 1:
            problem = f"median_tokens in {str(folder)!r} is {codec._median!r}"
            raise CheckpointError(f"codec: {problem}, it must be a whole number of at least 1")
        return codec


class SpeechVAE(MelAutoencoder):
    """A Gaussian posterior between encoder and decoder."""

    def __init__(self, options: SpeechLatentOptions):
        super().__init__(options.channels)
        self.posterior = nn.Conv1d(options.channels, 2 * options.latent_channels, 1)
        self.enter = nn.Conv1d(options.latent_channels, options.channels, 1)

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions of normalised mel, and mean and log-variance [B, C, T / FOLD] of the latents."""
        mean, log_variance = self.posterior(self.encoder(mel_BFT)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(self.enter(drawn)), mean, log_variance

    @torch.no_grad()
    def latents(self, mel_BFT: Tensor) -> Tensor:
        """Return the means [B, C, T / FOLD] of log-mel."""
        self.eval()
        mel = self.normalize(mel_BFT.to(self.mean.device))
        return self.posterior(self.encoder(mel)).chunk(2, dim=1)[0].cpu()

    @torch.no_grad()
    def decode(self, latents_BCN: Tensor) -> Tensor:
        """Return the log-mel [B, BINS, N * FOLD] of latents."""
        self.eval()
        if not latents_BCN.numel():
            return torch.zeros(len(latents_BCN), BINS, 0)
        return self.restore(self.decoder(self.enter(latents_BCN.to(self.mean.device)))).cpu()
