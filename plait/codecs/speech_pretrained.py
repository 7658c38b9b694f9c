"""Speech tokens of pretrained codecs with several codebooks: EnCodec and Mimi in transformers.

A frame has one id of each codebook. How frames become one sequence is named in the settings::

    interleaved   frame by frame, all codebooks in turn; codebook k's ids are shifted by k * codebook size
    first         the first codebook alone: shorter, and poorer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from plait.codecs import saved, sounds
from plait.codecs.base import Codec, Encoded, ids_of
from plait.common.errors import ConfigError, require


@dataclass
class PretrainedSpeechOptions:
    """Settings of `PretrainedSpeechCodec`."""

    path: str
    """Folder or Hub name that the model's from_pretrained loads."""
    kind: Literal["encodec", "mimi"] = "mimi"
    """encodec: EncodecModel (mono, without loudness normalisation). mimi: MimiModel."""
    flattening: Literal["interleaved", "first"] = "interleaved"
    """How the codebooks become one sequence."""
    codebooks: int = 0
    """Codebooks in use (interleaved). 0: as many as the model's lowest bandwidth has (encodec), or all (mimi)."""


class PretrainedSpeechCodec(Codec):
    """Pretrained speech tokens. Media: float32 [samples] at ``sample_rate``, which is the model's."""

    name: ClassVar[str] = "speech_tokens_pretrained"
    kind: ClassVar[str] = "audio"
    suffix: ClassVar[str] = ".wav"
    options_class: ClassVar[type] = PretrainedSpeechOptions

    def __init__(self, options: PretrainedSpeechOptions):
        super().__init__(options)
        with saved.installed("transformers"):
            from transformers import EncodecModel, MimiModel
        model_class = {"encodec": EncodecModel, "mimi": MimiModel}[options.kind]
        self.model = saved.load_pretrained(model_class, options.path)
        config = self.model.config
        if options.kind == "encodec" and (config.normalize or config.chunk_length_s or config.audio_channels != 1):
            raise ConfigError(
                f"codec_options.path: {options.path!r} normalises loudness, cuts into chunks or is not mono, "
                "which ids cannot tell, use a model such as encodec_24khz"
            )
        self.sample_rate: int = config.sampling_rate
        self._bandwidths = self._codebooks_by_bandwidth() if options.kind == "encodec" else {}
        most = max(self._bandwidths.values()) if self._bandwidths else config.num_quantizers
        fewest = min(self._bandwidths.values()) if self._bandwidths else config.num_quantizers
        require(0 <= options.codebooks <= most, "codec_options.codebooks", options.codebooks, f"between 0 and {most}")
        self.num_codebooks = 1 if options.flattening == "first" else options.codebooks or fewest
        self.codebook_size: int = config.codebook_size
        self.vocab_size = self.num_codebooks * self.codebook_size

    def _codebooks_by_bandwidth(self) -> dict[float, int]:
        quantizer = self.model.quantizer
        return {b: quantizer.get_num_quantizers_for_bandwidth(b) for b in self.model.config.target_bandwidths}

    @torch.no_grad()
    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode recordings one by one, of any lengths; raises DataError where one is empty."""
        encoded = []
        for clip in media:
            wave = torch.from_numpy(np.array(sounds.check_sound(clip)))[None, None]
            codes_KT = self._codes(wave)[: self.num_codebooks]
            shifts = self.codebook_size * torch.arange(self.num_codebooks)[:, None]
            encoded.append(Encoded(ids=(codes_KT + shifts).T.reshape(-1).to(torch.int32).numpy()))
        return encoded

    @torch.no_grad()
    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode; an id counts for the codebook whose turn it is, and an incomplete last frame is left out."""
        waves = []
        for item in encoded:
            frames = len(ids_of(item)) // self.num_codebooks
            ids = torch.from_numpy(ids_of(item)[: frames * self.num_codebooks]).long() % self.codebook_size
            wave = self._wave(ids.view(frames, self.num_codebooks).T[None]) if frames else torch.zeros(0)
            waves.append(wave.flatten().clamp(-1, 1).numpy())
        return waves

    def _codes(self, wave_BCN: torch.Tensor) -> torch.Tensor:
        """Return the ids [codebooks, frames] of one recording."""
        if self.options.kind == "mimi":
            return self.model.encode(wave_BCN, num_quantizers=self.num_codebooks).audio_codes[0]
        enough = min(b for b, count in self._bandwidths.items() if count >= self.num_codebooks)
        return self.model.encode(wave_BCN, bandwidth=enough).audio_codes[0, 0]

    def _wave(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        if self.options.kind == "mimi":
            return self.model.decode(codes_BKT).audio_values
        return self.model.decode(codes_BKT[None], [None]).audio_values

    def read(self, value: Any, base: Path) -> np.ndarray:
        return sounds.read_sound(value, base, self.sample_rate)

    def write(self, media: np.ndarray, path: Path) -> None:
        sounds.write_sound(media, path, self.sample_rate)

    def to_html(self, media: np.ndarray) -> str:
        return sounds.sound_html(media, self.sample_rate)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``codes_used`` (share of ids) and ``tokens_per_item``."""
        encoded = self.encode(media)
        used = np.unique(np.concatenate([ids_of(e) for e in encoded]))
        tokens = float(np.mean([len(ids_of(e)) for e in encoded]))
        return {"codes_used": len(used) / self.vocab_size, "tokens_per_item": tokens}

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json and the model's own files beside it."""
        self.model.save_pretrained(str(folder))
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "PretrainedSpeechCodec":
        return saved.read_copy(cls, folder)[0]
