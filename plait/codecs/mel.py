"""Log-mel spectrograms, and back to a waveform by Griffin and Lim's algorithm, on torch.stft."""

import math

import torch
from torch import Tensor, nn

RATE = 16_000
"""Samples per second."""
HOP = 160
"""Samples per frame: 100 frames a second."""
BINS = 80
"""Mel bins, from 0 to 8,000 Hz."""
FLOOR = 1e-4
"""Smallest magnitude, where a full-scale sine has about 0.5."""

_FFT, _WINDOW = 1024, 640
_ROUNDS, _MOMENTUM = 48, 0.99


class LogMel(nn.Module):
    """Waveforms [B, samples] to log-mel [B, BINS, samples / HOP], and back."""

    window: Tensor
    filters: Tensor
    inverse: Tensor

    def __init__(self):
        super().__init__()
        window = torch.hann_window(_WINDOW)
        self.register_buffer("window", window / window.sum(), persistent=False)
        filters = mel_filters()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(filters), persistent=False)

    def forward(self, waves_BN: Tensor) -> Tensor:
        """Return log-mel; the number of samples must be a multiple of HOP."""
        magnitudes = self._stft(waves_BN).abs()[..., :-1]  # one frame starts at each HOP samples
        return (self.filters @ magnitudes).clamp(min=FLOOR).log()

    def waveform(self, mel_BFT: Tensor) -> Tensor:
        """Return waveforms [B, T * HOP] whose magnitudes fit (fast Griffin-Lim, Perraudin et al. 2013)."""
        magnitudes = (self.inverse @ mel_BFT.exp()).clamp(min=1e-7)
        magnitudes = nn.functional.pad(magnitudes, (0, 1))
        generator = torch.Generator().manual_seed(0)  # the same phases to begin with, for every clip
        angles = 2 * math.pi * torch.rand(magnitudes.shape[1:], generator=generator).to(magnitudes)
        phase = torch.polar(torch.ones_like(magnitudes), angles.expand_as(magnitudes))
        previous = torch.zeros_like(phase)
        for _ in range(_ROUNDS):
            rebuilt = self._stft(self._istft(magnitudes * phase))
            phase = torch.sgn(rebuilt + _MOMENTUM * (rebuilt - previous))
            previous = rebuilt
        return self._istft(magnitudes * phase)

    def _stft(self, waves_BN: Tensor) -> Tensor:
        return torch.stft(
            waves_BN, _FFT, HOP, _WINDOW, self.window, center=True, pad_mode="constant", return_complex=True
        )

    def _istft(self, spectrum_BFT: Tensor) -> Tensor:
        length = (spectrum_BFT.shape[-1] - 1) * HOP
        return torch.istft(spectrum_BFT, _FFT, HOP, _WINDOW, self.window, center=True, length=length)


def mel_filters() -> Tensor:
    """Return triangular filters [BINS, frequencies] on the mel scale of O'Shaughnessy, each of area about 1."""
    frequencies = torch.linspace(0, RATE / 2, _FFT // 2 + 1, dtype=torch.float64)
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BINS + 2, dtype=torch.float64) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    return (filters / filters.sum(1, keepdim=True)).float()
