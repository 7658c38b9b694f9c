"""Recordings as the speech codecs know them: reading, resampling, writing, and playing in a page."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import DataError, ResourceError

MAX_SECONDS = 3600
"""Length of a recording that is read."""

_MAX_SAMPLES = 1 << 28  # of all channels: 1 GiB as numbers
_RATES = (1000, 768_000)


def _libraries():
    try:
        import soundfile
        import soxr
    except ImportError as error:
        message = f"speech: package {error.name!r} is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    return soundfile, soxr


def read_sound(value: Any, base: Path, rate: int) -> np.ndarray:
    """Read a wav, flac or ogg file as float32 [samples] at ``rate``, channels averaged. Raises DataError."""
    soundfile, soxr = _libraries()
    if not isinstance(value, str) or not value:
        raise DataError(f"audio: {value!r} is not allowed, it must be the path of a recording")
    path = Path(base) / value
    if not path.exists():
        raise DataError(f"audio: there is no file {str(path)!r}")
    try:
        with soundfile.SoundFile(path) as file:
            _check_size(path, file.frames, file.channels, file.samplerate)
            samples, found = file.read(dtype="float32", always_2d=True), file.samplerate
    except DataError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"audio: {str(path)!r} is not a readable recording ({reason})") from None
    if not len(samples):
        raise DataError(f"audio: {str(path)!r} is empty")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(f"audio: {str(path)!r} holds samples that are not numbers")
    mono = mono if found == rate else soxr.resample(mono, found, rate)
    return check_sound(mono.astype(np.float32))


def _check_size(path: Path, frames: int, channels: int, rate: int) -> None:
    """Refuse what would not fit in memory, by the file's header alone."""
    low, high = _RATES
    if not low <= rate <= high:
        raise DataError(f"audio: {str(path)!r} has {rate:,} samples a second, {low:,} to {high:,} are allowed")
    if frames > MAX_SECONDS * rate or frames * channels > _MAX_SAMPLES:
        what = f"{frames / rate:,.0f} s in {channels} channels"
        allowed = f"at most {MAX_SECONDS:,} s and {_MAX_SAMPLES:,} samples are allowed"
        raise DataError(f"audio: {str(path)!r} lasts {what}, {allowed}")


def check_sound(samples: np.ndarray) -> np.ndarray:
    """Return float32 [samples]; raises DataError where there are none, or they are no recording."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        what = f"{samples.dtype} {list(samples.shape)}"
        raise DataError(f"audio: an array of {what} is not allowed, it must be float32 [samples]")
    if not len(samples):
        raise DataError("audio: it is empty")
    return samples.astype(np.float32, copy=False)


def write_sound(samples: np.ndarray, path: Path, rate: int) -> None:
    """Write float32 [samples] as the kind of file that the suffix says, in 16 bits."""
    _libraries()[0].write(path, np.clip(samples, -1, 1), rate, subtype="PCM_16")


def sound_html(samples: np.ndarray, rate: int) -> str:
    """Return an <audio> player with the recording inside."""
    buffer = io.BytesIO()
    _libraries()[0].write(buffer, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'
