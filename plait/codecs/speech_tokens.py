"""Speech as discrete tokens at 25 Hz: a small convolutional autoencoder over log-mel frames, with FSQ or VQ.

A recording of n samples at 16 kHz becomes ceil(n / 640) ids, four frames of 10 ms each; repeats are kept, so the
length is known from the ids. The waveform comes back from the mel frames by Griffin and Lim's algorithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import saved, sounds
from plait.codecs.base import Codec, Encoded, Progress
from plait.codecs.fitting import Schedule, fit_model, fitting_key
from plait.codecs.mel import BINS, FLOOR, HOP, RATE, LogMel
from plait.codecs.quantizer import Quantizer, check_quantizer
from plait.errors import DataError, require

FOLD = 4
"""Frames in one token."""
_TOKEN = FOLD * HOP  # samples
_BATCH = 16  # clips encoded or decoded together


@dataclass
class SpeechTokenOptions:
    """Settings of `SpeechTokenCodec`."""

    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq: finite scalar quantisation. vq: a learned codebook."""
    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels per dimension (fsq); their product is the number of ids."""
    codebook_size: int = 1024
    """Number of ids (vq)."""
    channels: int = 256
    """Width of the network at 25 Hz; half of it at 100 Hz."""
    crop: int = 32
    """Tokens of one training crop."""
    batch_size: int = 16
    """Crops in one training step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    steps: int = 0
    """Training steps; 0 trains for the given minutes."""

    def __post_init__(self):
        where = "codec_options"
        require(self.channels >= 2 and self.channels % 2 == 0, f"{where}.channels", self.channels, "even, at least 2")
        for name in ("crop", "batch_size"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "at least 1")
        check_quantizer(self.quantizer, self.levels, self.codebook_size, where)


class SpeechTokenCodec(Codec):
    """Trained speech tokens. Media: float32 [samples] at 16 kHz; decoded: 640 samples an id."""

    name: ClassVar[str] = "speech_tokens"
    key: ClassVar[str] = "audio"
    suffix: ClassVar[str] = ".wav"
    options_class: ClassVar[type] = SpeechTokenOptions
    sample_rate: ClassVar[int] = RATE

    def __init__(self, options: SpeechTokenOptions):
        super().__init__(options)
        self.model = SpeechAutoencoder(options)
        self.vocab_size = self.model.quantizer.vocab_size
        self._fitted = False

    @property
    def is_fitted(self) -> bool:
        return self._fitted

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        if not len(media):
            raise DataError("speech codec: there are no recordings to train on")
        options = self.options
        schedule = Schedule(minutes, options.steps, options.learning_rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = SpeechAutoencoder(options)
        frames, lengths = self._training_frames(media)
        starts = np.cumsum(lengths) - lengths
        crop = FOLD * options.crop

        def loss_of(model: SpeechAutoencoder, rng: np.random.Generator, device: torch.device) -> Tensor:
            clips = rng.integers(len(lengths), size=options.batch_size)
            # a crop begins anywhere from which it is full, or at the beginning of a short clip
            offsets = (rng.random(options.batch_size) * (np.maximum(lengths[clips] - crop, 0) + 1)).astype(int)
            at = torch.from_numpy((starts[clips] + offsets)[:, None] + np.arange(crop))
            inside = torch.from_numpy(offsets[:, None] + np.arange(crop) < lengths[clips][:, None])
            mel = frames[at.clamp(max=len(frames) - 1)].float()
            mel = torch.where(inside[..., None], mel, np.log(FLOOR)).to(device)
            target = model.normalize(mel.transpose(1, 2))
            output, _, quantizer_loss = model(target)
            error = output.float() - target
            return error.abs().mean() + 0.5 * error.square().mean() + quantizer_loss

        key = fitting_key(options, media, seed, schedule)
        fit_model(self.model, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)
        self._fitted = True

    def _training_frames(self, media: Sequence[np.ndarray]) -> tuple[Tensor, np.ndarray]:
        """Return all frames [T, BINS] in half precision and each clip's number; sets the model's mean and scale."""
        mels = [self._mel([clip])[0].T for clip in media]
        lengths = np.array([len(mel) for mel in mels])
        frames = torch.cat([mel.half() for mel in mels])
        self.model.mean.copy_(torch.stack([mel.mean(0) for mel in mels]).mean(0)[:, None])
        deviation = torch.stack([(mel - self.model.mean[:, 0]).square().mean(0) for mel in mels]).mean(0).sqrt()
        self.model.scale.copy_(deviation.clamp(min=0.1)[:, None])
        return frames, lengths

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode recordings; raises DataError where one is empty."""
        encoded: list[Encoded | None] = [None] * len(media)
        # clips of one length at a time: padding would reach into a clip's last ids
        by_length: dict[int, list[int]] = {}
        for i, clip in enumerate(media):
            by_length.setdefault(-(-len(sounds.check_sound(clip)) // _TOKEN), []).append(i)
        for same in by_length.values():
            for start in range(0, len(same), _BATCH):
                chosen = same[start : start + _BATCH]
                ids = self.model.ids(self._mel([media[i] for i in chosen])).numpy().astype(np.int32)
                for i, row in zip(chosen, ids):
                    encoded[i] = Encoded(ids=row)
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        waves: list[np.ndarray] = []
        for mel in self._decoded_mels(encoded):
            wave = self.model.mel.waveform(mel[None])[0] if mel.shape[1] else torch.zeros(0)
            waves.append(wave.clamp(-1, 1).numpy())
        return waves

    def read(self, value: Any, base: Path) -> np.ndarray:
        return sounds.read_sound(value, base, RATE)

    def write(self, media: np.ndarray, path: Path) -> None:
        sounds.write_sound(media, path, RATE)

    def to_html(self, media: np.ndarray) -> str:
        return sounds.sound_html(media, RATE)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``mel_l1`` (on log-mel with mean 0 and deviation 1 per bin), ``codes_used``, ``tokens_per_item``."""
        encoded = self.encode(media)
        errors, used = [], set()
        for clip, item, decoded in zip(media, encoded, self._decoded_mels(encoded)):
            original = self._mel([clip])[0]
            errors.append(((decoded - original) / self.model.scale).abs().mean().item())
            used.update(item.ids.tolist())
        return {
            "mel_l1": float(np.mean(errors)),
            "codes_used": len(used) / self.vocab_size,
            "tokens_per_item": float(np.mean([len(e.ids) for e in encoded])),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)
        saved.write_weights(self.model, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "SpeechTokenCodec":
        codec, _ = saved.read_description(cls, folder)
        saved.read_weights(codec.model, folder)
        codec._fitted = True
        return codec

    def _mel(self, clips: Sequence[np.ndarray]) -> Tensor:
        """Return log-mel [B, BINS, T] of clips with the same number of tokens; T is a multiple of FOLD."""
        size = -(-len(sounds.check_sound(clips[0])) // _TOKEN) * _TOKEN
        waves = np.stack([np.pad(sounds.check_sound(clip), (0, size - len(clip))) for clip in clips])
        return self.model.mel(torch.from_numpy(waves))

    def _decoded_mels(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """Return log-mel [BINS, T] of each item."""
        return [self.model.decode(torch.from_numpy(e.ids).long()[None])[0] for e in encoded]


class SpeechAutoencoder(nn.Module):
    """Encoder, quantiser and decoder over normalised log-mel [B, BINS, T]; T is a multiple of FOLD."""

    def __init__(self, options: SpeechTokenOptions):
        super().__init__()
        wide, narrow = options.channels, options.channels // 2
        self.mel = LogMel()
        self.register_buffer("mean", torch.zeros(BINS, 1))
        self.register_buffer("scale", torch.ones(BINS, 1))
        self.encoder = nn.Sequential(
            nn.Conv1d(BINS, wide, 2 * FOLD, stride=FOLD, padding=FOLD // 2),
            *(Residual(wide, 3) for _ in range(2)),
            ChannelNorm(wide),
            nn.SiLU(),
        )
        self.quantizer = Quantizer(
            options.quantizer, dim=wide, levels=options.levels, codebook_size=options.codebook_size
        )
        self.before = nn.Sequential(nn.Conv1d(wide, wide, 3, padding=1), *(Residual(wide, 3) for _ in range(3)))
        self.unfold = nn.Conv1d(wide, FOLD * narrow, 1)
        self.after = nn.Sequential(
            *(Residual(narrow, 5) for _ in range(2)), nn.SiLU(), nn.Conv1d(narrow, BINS, 3, 1, 1)
        )

    def normalize(self, mel_BFT: Tensor) -> Tensor:
        """Scale log-mel to mean 0 and deviation 1 per bin."""
        return (mel_BFT - self.mean) / self.scale

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions, ids [B, T / FOLD] and the quantiser's loss, all on normalised mel."""
        quantized, ids, loss = self.quantizer(self.encoder(mel_BFT).transpose(1, 2))
        return self._decode(quantized), ids, loss

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
        decoded = self._decode(self.quantizer.lookup(ids_BN.to(self.mean.device)))
        return (decoded * self.scale + self.mean).clamp(min=float(np.log(FLOOR)), max=1.0).cpu()

    def _decode(self, quantized_BNC: Tensor) -> Tensor:
        x_BCN = self.unfold(self.before(quantized_BNC.transpose(1, 2)))
        batch, _, count = x_BCN.shape
        x_BCT = x_BCN.view(batch, -1, FOLD, count).transpose(2, 3).reshape(batch, -1, FOLD * count)
        return self.after(x_BCT)


class ChannelNorm(nn.Module):
    """RMSNorm over the channels at each time, so that a frame's values do not depend on the clip's length."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT * torch.rsqrt(x_BCT.square().mean(1, keepdim=True) + 1e-5) * self.weight


class Residual(nn.Module):
    """Normalise, mix in time, mix channels, add; starts as the identity."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.inner = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.outer = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.outer(F.silu(self.inner(F.silu(self.norm(x_BCT)))))
