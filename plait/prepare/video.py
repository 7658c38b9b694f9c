"""Frames of video files at given times, read and written by PyAV."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import DataError, PlaitError, ResourceError, first_line

_OPEN_FILES = 4
_CODEC, _OPTIONS = "libx264", {"g": "2", "crf": "18"}
"""What videos are written with. Every second frame is whole (LeRobot's choice), so that any frame is read quickly."""


def pyav() -> Any:
    """Return the package av. Raises ResourceError where it is missing."""
    try:
        import av
    except ImportError:
        raise ResourceError("videos: package 'av' is not installed, install it: pip install av") from None
    return av


class VideoFrames:
    """The frames of video files, of which a few stay open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, Any] = OrderedDict()

    def at(self, path: Path, times: Sequence[float], tolerance: float) -> Iterator[np.ndarray]:
        """Yield the frames uint8 [H, W, 3] at ``times``, in seconds, in ascending order.

        Raises DataError where the file cannot be decoded, or no frame is within ``tolerance`` of a time.
        """
        try:
            yield from self._decode(path, times, tolerance)
        except PlaitError:
            raise
        except Exception as error:  # FFmpeg has many
            self._close(path)
            raise DataError(f"video {path.name!r} cannot be decoded ({first_line(error)})") from None

    def _decode(self, path: Path, times: Sequence[float], tolerance: float) -> Iterator[np.ndarray]:
        container = self._open(path)
        (stream,) = container.streams.video[:1]
        container.seek(int(times[0] / stream.time_base), stream=stream)  # the whole frame before it
        waiting = list(reversed(times))
        for frame in container.decode(stream):
            if frame.time < waiting[-1] - tolerance:
                continue
            if frame.time > waiting[-1] + tolerance:
                break
            yield frame.to_ndarray(format="rgb24")
            waiting.pop()
            if not waiting:
                return
        raise DataError(f"video {path.name!r} has no frame at {waiting[-1]:.3f} s")

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            container = self._files[path] = pyav().open(str(path))
            if not container.streams.video:
                self._close(path)
                raise DataError(f"video {path.name!r} has no images")
            container.streams.video[0].codec_context.thread_count = 1  # workers share the cores
        self._files.move_to_end(path)
        while len(self._files) > _OPEN_FILES:
            self._close(next(iter(self._files)))
        return self._files[path]

    def _close(self, path: Path) -> None:
        container = self._files.pop(path, None)
        if container is not None:
            container.close()


class VideoFile:
    """A video that is written frame by frame; every call of `append` begins with a whole frame."""

    def __init__(self, path: Path, height: int, width: int, rate: float):
        self._path, self._file = path, pyav().open(str(path), "w")
        self._rate = Fraction(rate).limit_denominator(1001)
        self._stream = self._file.add_stream(_CODEC, rate=self._rate, options=_OPTIONS)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self.num_frames = 0

    @property
    def num_bytes(self) -> int:
        """Bytes written so far; the file begins with the first whole frames."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, frames: np.ndarray) -> None:
        """Write frames uint8 [T, H, W, 3] behind the others."""
        av = pyav()
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, 1 / self._rate
            if i == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._file.mux(self._stream.encode(frame))
            self.num_frames += 1

    def close(self) -> None:
        """Write what is left."""
        self._file.mux(self._stream.encode(None))
        self._file.close()
