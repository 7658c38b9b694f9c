"""Recordings as a speech encoder hears them, to be read and never made: Whisper's encoder, wav2vec 2.0, HuBERT, WavLM.

Long recordings are encoded in pieces of the length that the encoder was made for (Whisper), or of half a minute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plait.codecs import saved, sounds
from plait.codecs.base import Codec, Encoded, read_only
from plait.codecs.features import FeatureCodec, load_encoder
from plait.common.errors import ConfigError

_PIECE_SECONDS = 30  # of encoders that take any length: attention's memory grows with its square
_SHORTEST = 400  # samples of the first convolutions of wav2vec 2.0 and its kin


@dataclass
class SpeechFeatureOptions:
    """Settings of `SpeechFeatureCodec`."""

    path: str
    """Folder or Hub name of a speech model of transformers: Whisper, of which the encoder is taken, wav2vec 2.0,
    HuBERT, WavLM, data2vec."""
    layer: int = -1
    """Whose features are taken: -1 is the encoder's output, -2 what the last block but one makes, and so on."""


class SpeechFeatureCodec(FeatureCodec):
    """Features at the encoder's own rate, such as 50 a second. Media: float32 [samples] at ``sample_rate``."""

    name: ClassVar[str] = "speech_features"
    kind: ClassVar[str] = "audio"
    suffix: ClassVar[str] = ".wav"
    options_class: ClassVar[type] = SpeechFeatureOptions

    def __init__(self, options: SpeechFeatureOptions):
        super().__init__(options, load_encoder(options.path, "audio_config"))
        self._hears_mel = self.encoder.main_input_name == "input_features"
        self.extractor = _extractor(options.path, self.encoder, self._hears_mel)
        self.sample_rate: int = self.extractor.sampling_rate
        self._stride = 2 * self.extractor.hop_length if self._hears_mel else 0  # samples of a token
        made_for = self.encoder.config.max_source_positions * self._stride if self._hears_mel else 0
        self._piece_samples = made_for or _PIECE_SECONDS * self.sample_rate

    def _features(self, media: Sequence[np.ndarray]) -> Iterator[tuple[list[int], tuple[int, ...], Tensor]]:
        for i, clip in enumerate(media):
            samples = sounds.check_sound(clip)
            piece = self._piece_samples
            pieces = [samples[at : at + piece] for at in range(0, len(samples), piece)]
            features = torch.cat([self._piece(samples, piece) for samples in pieces], dim=1)
            yield [i], (features.shape[1],), features

    def _piece(self, samples: np.ndarray, longest: int) -> Tensor:
        """Return the features [1, n, C] of one piece."""
        settings = {"sampling_rate": self.sample_rate, "return_tensors": "pt"}
        device = self.encoder.device
        if self._hears_mel:  # it always hears ``longest`` samples, silence at the end: that is left out again
            mel = self.extractor(samples, padding="max_length", max_length=longest, **settings).input_features
            return self._run(input_features=mel.to(device))[:, : -(-len(samples) // self._stride)]
        samples = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))
        return self._run(input_values=self.extractor(samples, **settings).input_values.to(device))

    def taken_from(self, media: np.ndarray, other: Codec) -> np.ndarray:
        return sounds.resample(media, other.sample_rate, self.sample_rate)

    def read(self, value: Any, base: Path) -> np.ndarray:
        return sounds.read_sound(value, base, self.sample_rate)

    def write(self, media: np.ndarray, path: Path) -> None:
        sounds.write_sound(media, path, self.sample_rate)

    def to_html(self, media: np.ndarray | Encoded) -> str:
        return read_only(media) if isinstance(media, Encoded) else sounds.sound_html(media, self.sample_rate)

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json, and encoder and feature extractor as transformers writes them beside it."""
        super().save_pretrained(folder)
        self.extractor.save_pretrained(str(folder))


def _extractor(path: str, encoder: Any, hears_mel: bool) -> Any:
    """Return what turns samples into an encoder's input: that beside its weights, or its kind's own."""
    with saved.installed("transformers"):
        from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
    try:
        extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        bins = getattr(encoder.config, "num_mel_bins", 80)
        extractor = WhisperFeatureExtractor(feature_size=bins) if hears_mel else Wav2Vec2FeatureExtractor()
    wanted = WhisperFeatureExtractor if hears_mel else Wav2Vec2FeatureExtractor
    is_read = (
        hasattr(encoder.config, "max_source_positions") if hears_mel else encoder.main_input_name == "input_values"
    )
    if not isinstance(extractor, wanted) or not is_read:
        raise ConfigError(
            f"codec_options.path: {path!r} is no speech encoder that is read, use Whisper, wav2vec 2.0, HuBERT, WavLM "
            "or data2vec"
        )
    return extractor
