"""Media as they travel: data from requests, checked before anything unpacks them, and files in answers."""

import base64
import binascii
import io
import mimetypes
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
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
PLAIN_KINDS = ("text", "image", "audio")
"""Kinds that OpenAI's answers know by themselves; items of other kinds are files."""
MAX_UNPACKED = 1 << 28
"""Bytes that the members of a zip file, such as .npz, may unpack to."""


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
    elif (unpacked := _unpacked(data)) > MAX_UNPACKED:
        raise DataError(
            f"{kind}: {unpacked:,} bytes once unpacked are not allowed, at most {MAX_UNPACKED:,}; send a smaller one"
        )


def _unpacked(data: bytes) -> int:
    """Return the bytes that a zip file says to hold; 0 for what is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return sum(member.file_size for member in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 0


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


def file_of(data: bytes, name: str = "") -> dict[str, Any]:
    """Return a file's bytes as prompts take them."""
    return {"bytes": data, "path": name}


def sent_file(item: dict[str, Any]) -> dict[str, Any]:
    """Return the file of a part {"file_data", "filename"} as prompts take it. Raises DataError where it is none."""
    name, said = item.get("filename", ""), item["file_data"]
    head, mark, text = said.rpartition(";base64,")
    if bool(mark) != said.startswith("data:") or (mark and not head.startswith("data:")):
        raise DataError(f"file: {said[:40]!r} is not allowed, it must be base64 or data:TYPE;base64,...")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"file: {name!r} is not base64 ({error})") from None
    if not data:
        raise DataError(f"file: {name!r} is empty")
    return file_of(data, name)


def data_uri(data: bytes, name: str) -> str:
    """Return a file's bytes as a data: address, of the type that its name says."""
    return f"data:{mimetypes.guess_type(name)[0] or 'application/octet-stream'};base64,{base64_of(data)}"


def written(codec: Codec, media: Any, others: Sequence[tuple[str, Any]]) -> bytes:
    """Return an item as a file of its codec's suffix, among the other parts of its document (kind, item)."""
    with tempfile.TemporaryDirectory(prefix="plait-") as folder:
        path = Path(folder) / f"item{codec.suffix}"
        codec.write_among(media, path, others)
        return path.read_bytes()


def content_part(
    codec: Codec, media: Any, *, sound: str = "wav", others: Sequence[tuple[str, Any]] = (), html: bool = False
) -> dict[str, Any]:
    """Return a made item as a part of a message's content: text, image_url, audio, or a file of another kind.

    ``others`` are the other parts of its document, each its kind and the item. ``html`` is whether files come with HTML
    that shows them.
    """
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
    name = f"{codec.kind}{codec.suffix}"
    part: dict[str, Any] = {"type": "file", "file": {"filename": name}}
    part["file"]["file_data"] = data_uri(written(codec, media, others), name)
    return part | ({"html": codec.to_html_among(media, others)} if html else {})
