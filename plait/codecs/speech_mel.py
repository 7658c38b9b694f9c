"""What the speech codecs trained here share: log-mel frames at 100 Hz, four of them a token, and their networks.

A recording of n samples at 16 kHz becomes ceil(n / 640) tokens at 25 Hz; the waveform comes back from the mel frames
by Griffin and Lim's algorithm.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import saved, sounds
from plait.codecs.base import Codec, Encoded, Progress, alike
from plait.codecs.fitting import Schedule, fit_model, fitting_key
from plait.codecs.mel import BINS, FLOOR, HOP, RATE, LogMel
from plait.common.errors import DataError, require

FOLD = 4
"""Frames in one token."""
TOKEN = FOLD * HOP
"""Samples in one token."""
_BATCH = 16  # clips encoded together


@dataclass
class SpeechOptions:
    """Settings that the speech codecs trained here have in common."""

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


def count_tokens(clip: np.ndarray) -> int:
    """Return how many tokens a recording becomes; raises DataError where it is empty or none."""
    return -(-len(sounds.check_sound(clip)) // TOKEN)


class SpeechCodec(Codec):
    """Base of the trained speech codecs. Media: float32 [samples] at 16 kHz; decoded: 640 samples a token.

    Options are `SpeechOptions`. A subclass gives `_new_model`, `_loss`, `encode` and `_decoded_mel`.
    """

    kind: ClassVar[str] = "audio"
    suffix: ClassVar[str] = ".wav"
    sample_rate: int = RATE

    model: "MelAutoencoder"

    @abstractmethod
    def _new_model(self) -> "MelAutoencoder":
        """Return an untrained network."""

    @abstractmethod
    def _loss(self, model: Any, target_BFT: Tensor) -> Tensor:
        """Return the loss on normalised log-mel."""

    @abstractmethod
    def _decoded_mel(self, item: Encoded) -> Tensor:
        """Return the log-mel [BINS, T] of one item."""

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        if not len(media):
            raise DataError("speech codec: there are no recordings to train on")
        options = self.options
        schedule = Schedule(minutes, options.steps, options.learning_rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = self._new_model()
        crops = self._training_crops(media)

        def loss_of(model: MelAutoencoder, rng: np.random.Generator, device: torch.device) -> Tensor:
            return self._loss(model, model.normalize(crops(rng).to(device)))

        key = fitting_key(options, media, seed, schedule)
        fit_model(self.model, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)

    def _training_crops(self, media: Sequence[np.ndarray]) -> Callable[[np.random.Generator], Tensor]:
        """Set the model's mean and scale; return what draws a batch of log-mel crops [B, BINS, crop * FOLD]."""
        mels = [self._mel([clip])[0].T for clip in media]
        lengths = np.array([len(mel) for mel in mels])
        frames = torch.cat([mel.half() for mel in mels])
        self.model.mean.copy_(torch.stack([mel.mean(0) for mel in mels]).mean(0)[:, None])
        deviation = torch.stack([(mel - self.model.mean[:, 0]).square().mean(0) for mel in mels]).mean(0).sqrt()
        self.model.scale.copy_(deviation.clamp(min=0.1)[:, None])
        starts = np.cumsum(lengths) - lengths
        size, crop = self.options.batch_size, FOLD * self.options.crop

        def draw(rng: np.random.Generator) -> Tensor:
            clips = rng.integers(len(lengths), size=size)
            # a crop begins anywhere from which it is full, or at the beginning of a short clip
            offsets = (rng.random(size) * (np.maximum(lengths[clips] - crop, 0) + 1)).astype(int)
            at = torch.from_numpy((starts[clips] + offsets)[:, None] + np.arange(crop))
            inside = torch.from_numpy(offsets[:, None] + np.arange(crop) < lengths[clips][:, None])
            mel = frames[at.clamp(max=len(frames) - 1)].float()
            return torch.where(inside[..., None], mel, np.log(FLOOR)).transpose(1, 2)

        return draw

    def _batches(self, media: Sequence[np.ndarray]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield places and log-mel of clips with one number of tokens: padding would reach into a clip's last ones."""
        for _, places in alike([count_tokens(clip) for clip in media], _BATCH):
            yield places, self._mel([media[i] for i in places])

    def _mel(self, clips: Sequence[np.ndarray]) -> Tensor:
        """Return log-mel [B, BINS, T] of clips with the same number of tokens; T is a multiple of FOLD."""
        size = count_tokens(clips[0]) * TOKEN
        waves = np.stack([np.pad(sounds.check_sound(clip), (0, size - len(clip))) for clip in clips])
        return self.model.mel(torch.from_numpy(waves))

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        mels, threads = [self._decoded_mel(item) for item in encoded], torch.get_num_threads()
        if len(mels) < 2 or threads < 2:
            return [self._waveform(mel) for mel in mels]
        # one clip is too short to share: each core takes its own
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(self._waveform, mels))

    def _waveform(self, mel_FT: Tensor) -> np.ndarray:
        """Return the samples of one clip's log-mel [BINS, T]."""
        wave = self.model.mel.waveform(mel_FT[None])[0] if mel_FT.shape[1] else torch.zeros(0)
        return wave.clamp(-1, 1).numpy()

    def read(self, value: Any, base: Path) -> np.ndarray:
        return sounds.read_sound(value, base, RATE)

    def write(self, media: np.ndarray, path: Path) -> None:
        sounds.write_sound(media, path, RATE)

    def to_html(self, media: np.ndarray) -> str:
        return sounds.sound_html(media, RATE)

    def _mel_error(self, media: Sequence[np.ndarray], encoded: Sequence[Encoded]) -> float:
        """Return the mean absolute error of log-mel with mean 0 and deviation 1 per bin."""
        errors = []
        for clip, item in zip(media, encoded, strict=True):
            error = (self._decoded_mel(item) - self._mel([clip])[0]) / self.model.scale
            errors.append(error.abs().mean().item())
        return float(np.mean(errors))

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)
        saved.write_weights(self.model, folder)


class MelAutoencoder(nn.Module):
    """Encoder and decoder over normalised log-mel [B, BINS, T], T a multiple of FOLD; a subclass adds a bottleneck."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int):
        super().__init__()
        wide, narrow = channels, channels // 2
        self.mel = LogMel()
        self.register_buffer("mean", torch.zeros(BINS, 1))
        self.register_buffer("scale", torch.ones(BINS, 1))
        self.encoder = nn.Sequential(
            nn.Conv1d(BINS, wide, 2 * FOLD, stride=FOLD, padding=FOLD // 2),
            *(Residual(wide, 3) for _ in range(2)),
            ChannelNorm(wide),
            nn.SiLU(),
        )
        self.before = nn.Sequential(nn.Conv1d(wide, wide, 3, padding=1), *(Residual(wide, 3) for _ in range(3)))
        self.unfold = nn.Conv1d(wide, FOLD * narrow, 1)
        self.after = nn.Sequential(
            *(Residual(narrow, 5) for _ in range(2)), nn.SiLU(), nn.Conv1d(narrow, BINS, 3, 1, 1)
        )

    def normalize(self, mel_BFT: Tensor) -> Tensor:
        """Scale log-mel to mean 0 and deviation 1 per bin."""
        return (mel_BFT - self.mean) / self.scale

    def restore(self, normalized_BFT: Tensor) -> Tensor:
        """Undo `normalize`, within what a recording can have."""
        return (normalized_BFT * self.scale + self.mean).clamp(min=float(np.log(FLOOR)), max=1.0)

    def decoder(self, x_BCN: Tensor) -> Tensor:
        """Return the normalised log-mel [B, BINS, N * FOLD] of vectors of the network's width."""
        x_BCN = self.unfold(self.before(x_BCN))
        batch, _, count = x_BCN.shape
        x_BCT = x_BCN.view(batch, -1, FOLD, count).transpose(2, 3).reshape(batch, -1, FOLD * count)
        return self.after(x_BCT)


def mel_error(output_BFT: Tensor, target_BFT: Tensor) -> Tensor:
    """Return the absolute and half the squared error, means over normalised log-mel."""
    error = output_BFT.float() - target_BFT
    return error.abs().mean() + 0.5 * error.square().mean()


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
        assert self.outer.bias is not None
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT + self.outer(F.silu(self.inner(F.silu(self.norm(x_BCT)))))
