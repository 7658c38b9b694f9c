"""Recordings as the speech codecs know them: reading, resampling, writing, and playing in a page."""

import base64
import io
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plait.codecs.signatures import unreadable
from plait.common.errors import DataError, ResourceError, shown

MAX_SECONDS = 3600
"""Length of a recording that is read."""

_MAX_SAMPLES = 1 << 28  # of all channels: 1 GiB as numbers
_RATES = (1000, 768_000)
_BLOCK = 1 << 20  # samples of all channels that are decoded at once
_UNKNOWN_FRAMES = 1 << 62  # a header that leaves the length open
_UNKNOWN_BYTES = 0x7FFFF000  # sizes from here on are what programs write that do not know them yet
_MP3_EDGES = 2304  # samples by which decoders disagree
_STATED = re.compile(
    r"^ *(data|SSND|BODY|Data Size|Data length|riff|Riff size)(?:\s*:)? (\d+) \(?should be (\d+)",
    re.IGNORECASE | re.MULTILINE,
)
_LOGGED_FRAMES = re.compile(r"\b(?:Frames|Cols)\s*: (\d+)")
_LOGS_FRAMES = ("AVR", "MPC2K", "MAT4", "MAT5", "SDS")  # in libsndfile's log, the sound's last


def _libraries():
    try:
        import soundfile
        import soxr
    except ImportError as error:
        message = f"speech: package {error.name!r} is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    return soundfile, soxr


def read_sound(value: Any, base: Path, rate: int) -> np.ndarray:
    """Read a file of any kind that libsndfile opens as float32 [samples] at ``rate``, channels averaged.

    Whole numbers become -1 to 1; floats are taken as they are. A file that holds less sound than it says is refused
    rather than read in part. Raises DataError.
    """
    soundfile, soxr = _libraries()
    if not isinstance(value, str) or not value:
        raise DataError(f"audio: {shown(value)} is not allowed, it must be the path of a recording")
    path = Path(base) / value
    if not path.exists():
        raise DataError(f"audio: there is no file {str(path)!r}")
    try:
        with _stream(soundfile, path) as file:
            _check_size(path, file.frames, file.channels, file.samplerate)
            samples, file_rate = _read_all(path, file), file.samplerate
            cut = _why_not_whole(path, file, len(samples))
    except DataError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"audio: {str(path)!r} is not a readable recording ({unreadable(path, reason)})") from None
    if cut:
        raise DataError(f"audio: {str(path)!r} is not whole: {cut}")
    if not len(samples):
        raise DataError(f"audio: {str(path)!r} is empty")
    if not np.isfinite(samples).all():
        raise DataError(f"audio: {str(path)!r} holds samples that are not numbers")
    mono = samples if file_rate == rate else soxr.resample(samples, file_rate, rate)
    return check_sound(mono.astype(np.float32))


def _stream(soundfile: Any, path: Path) -> Any:
    """Open a file that is read from start to end: some kinds cannot be sought, nor those that leave the length open."""

    class Stream(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Stream(path)


def _read_all(path: Path, file: Any) -> np.ndarray:
    """Read to the end, whatever the header says of the length; return the mean of the channels, float32 [samples]."""
    blocks, frames = [], 0
    while len(block := file.read(max(_BLOCK // file.channels, 1), dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
        frames += len(block)
        _check_size(path, frames, file.channels, file.samplerate)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _check_size(path: Path, frames: int, channels: int, rate: int) -> None:
    """Refuse what would not fit in memory, by the header where it knows."""
    low, high = _RATES
    if not low <= rate <= high:
        raise DataError(f"audio: {str(path)!r} has {rate:,} samples per second, {low:,} to {high:,} are allowed")
    if frames < _UNKNOWN_FRAMES and (frames > MAX_SECONDS * rate or frames * channels > _MAX_SAMPLES):
        what = f"{frames / rate:,.0f} s in {channels} channels"
        allowed = f"at most {MAX_SECONDS:,} s and {_MAX_SAMPLES:,} samples are allowed"
        raise DataError(f"audio: {str(path)!r} lasts {what}, {allowed}")


def _why_not_whole(path: Path, file: Any, frames: int) -> str:
    """Say in what a file differs from what its headers say of its length; "" where it does not."""
    edges = _MP3_EDGES if file.format == "MP3" else 0
    if frames + edges < file.frames < _UNKNOWN_FRAMES:
        return f"its header says {file.frames:,} samples, {frames:,} are there"
    if (logged := _logged_frames(path, file)) is not None:
        stated, there = (file.frames, logged) if file.format == "SDS" else (logged, frames)
        if there < stated:
            return f"its header says {stated:,} samples, {there:,} are there"
    if file.format == "VOC" and "truncated" in file.extra_info:
        return "its header says more samples than are there"
    for name, stated, actual in sorted(_STATED.findall(file.extra_info), key=lambda said: "riff" in said[0].lower()):
        if int(actual) < int(stated) < _UNKNOWN_BYTES:
            return f"its header says {int(stated):,} bytes ({name}), {int(actual):,} are there"
    if file.format in ("WAV", "WAVEX"):
        return _after_wave(path)
    return "its last page is missing" if file.format == "OGG" and not _ogg_ends(path) else ""


def _logged_frames(path: Path, file: Any) -> int | None:
    """Return the samples that the header says (SDS: that are there), where libsndfile itself goes by the other."""
    if file.format == "NIST":
        with open(path, "rb") as header:
            counts = re.findall(rb"^sample_count -i (\d+)", header.read(1024), re.MULTILINE)
    else:
        counts = _LOGGED_FRAMES.findall(file.extra_info) if file.format in _LOGS_FRAMES else []
    return int(counts[-1]) if counts else None


def _after_wave(path: Path) -> str:
    """Say what follows a WAV file's samples, unless it is another chunk, padding or nothing."""
    with open(path, "rb") as file:
        end = file.seek(0, io.SEEK_END)
        at = 12
        order: Literal["big", "little"] = "big" if _at(file, 0, 4) == b"RIFX" else "little"
        while at + 8 <= end:
            size = int.from_bytes(_at(file, at + 4, 4), order)
            is_data, at = _at(file, at, 4) == b"data", at + 8 + size
            if is_data:
                break
            at += size % 2
        rest = _at(file, at, 4096) if at < end else b""
        is_chunk = all(32 <= byte < 127 for byte in (rest[at % 2 :] if at % 2 and rest[:1] == b"\0" else rest)[:4])
        if len(rest) < 8 or is_chunk or not rest.strip(b"\0"):
            return ""
        return f"its header says {size:,} bytes of sound, {end - at:,} more follow"


def _at(file: Any, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _ogg_ends(path: Path) -> bool:
    """Say whether an Ogg file's last page is marked as the last."""
    with open(path, "rb") as file:
        end = file.seek(0, io.SEEK_END)
        tail = _at(file, max(end - (1 << 17), 0), 1 << 17)
    at = tail.rfind(b"OggS\0")
    return at < 0 or len(tail) <= at + 5 or bool(tail[at + 5] & 4)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return float32 [samples] at another rate."""
    return samples if rate == wanted else _libraries()[1].resample(samples, rate, wanted).astype(np.float32)


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
