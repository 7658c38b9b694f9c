"""Media as they travel: data from requests, checked before anything unpacks them, and files in answers."""

import base64
import io
from typing import Any

import numpy as np

from plait.codecs import Codec, Encoded
from plait.codecs.base import read_only
from plait.common.errors import DataError, first_line

SOUND_FORMATS = {"wav": ("WAV", "PCM_16", "audio/wav"), "flac": ("FLAC", "PCM_16", "audio/flac"),
                 "mp3": ("MP3", None, "audio/mpeg"), "opus": ("OGG", "OPUS", "audio/ogg"),
                 "pcm": ("RAW", "PCM_16", "audio/pcm"), "pcm16": ("RAW", "PCM_16", "audio/pcm")}  # fmt: skip
"""libsndfile's format and encoding, and the type of the answer."""
IMAGE_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def check_size(kind: str, data: bytes, *, max_pixels: int, max_seconds: float) -> None:
    """Refuse what unpacks to more than the server takes. Its codec says what cannot be read."""
    if kind == "image":
        pixels = _pixels(data)
        if pixels > max_pixels:
            raise DataError(f"image: {pixels:,} pixels are not allowed, at most {max_pixels:,}; send a smaller one")
    elif kind == "audio":
        seconds = _seconds(data)
        if seconds > max_seconds:
            raise DataError(
                f"audio: {seconds:,.0f} s are not allowed, at most {max_seconds:,.0f} s; send a shorter one"
            )


def _pixels(data: bytes) -> int:
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"image: {first_line(error)}") from None
    except Exception:
        return 0


def _seconds(data: bytes) -> float:
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(data))
    except Exception:
        return 0.0
    return float(info.frames / info.samplerate) if info.samplerate else 0.0


def image_bytes(image: np.ndarray, form: str = "png") -> bytes:
    """Return an image, uint8 [H, W, 3], as a file."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, IMAGE_FORMATS[form])
    return buffer.getvalue()


def sound_bytes(samples: np.ndarray, rate: int, form: str = "wav") -> bytes:
    """Return sound, float32 [samples] at a rate, as a file, or as bare samples (pcm: 16 bits, little endian)."""
    import soundfile

    container, encoding, _ = SOUND_FORMATS[form]
    buffer = io.BytesIO()
    if container == "RAW":
        return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate, format=container, subtype=encoding)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode()


def content_part(codec: Codec, media: Any, *, sound: str = "wav") -> dict[str, Any]:
    """Return a made item as a part of a message's content: text, image_url, audio, or another kind with its file."""
    if isinstance(media, Encoded):
        return {"type": "text", "text": read_only(media)}
    if codec.kind == "text":
        return {"type": "text", "text": media}
    if codec.kind == "image":
        url = f"data:image/png;base64,{base64_of(image_bytes(media))}"
        return {"type": "image_url", "image_url": {"url": url}}
    if codec.kind == "audio":
        data = base64_of(sound_bytes(media, codec.sample_rate, sound))
        return {"type": "audio", "audio": {"data": data, "format": sound}}
    raise DataError(f"{codec.kind}: items of this kind are not sent, only text, images and sound")
