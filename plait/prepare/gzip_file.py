"""A gzip file that is read at any place: what its decoder knows is kept at points on the way, so that nothing before
them is unpacked again."""

import zlib
from typing import Any, BinaryIO

from plait.common.errors import DataError

MAGIC = b"\x1f\x8b"

_CHUNK = 1 << 16  # packed bytes that are read at once
_BLOCK = 1 << 18  # bytes that are unpacked at once
_SPACING = 1 << 22  # bytes between two points, at first
_MAX_POINTS = 256  # of about 45 kB each


class GzipFile:
    """The unpacked bytes of a gzip file, of one stream or several. Reading raises DataError where it is damaged."""

    def __init__(self, file: BinaryIO, place: str):
        self._file, self._place = file, place
        self._spacing = _SPACING
        self._points: list[tuple[int, int, Any]] = [(0, 0, zlib.decompressobj(31))]  # (unpacked, packed, decoder)
        self._go_to_point(0)

    def seek(self, at: int) -> int:
        """Go to a place of the unpacked bytes."""
        start = self._end - len(self._block)
        if start <= at <= self._end:
            self._at = at
            return at
        point = max((p for p in range(len(self._points)) if self._points[p][0] <= at), default=0)
        if at < start or self._points[point][0] > self._end:
            self._go_to_point(point)
        while self._end < at and self._next_block():
            pass
        self._at = at
        return at

    def read(self, count: int) -> bytes:
        """Read up to ``count`` bytes; fewer at the end alone."""
        return self._take(count, b"")

    def readline(self, count: int) -> bytes:
        """Read up to the end of the line, at most ``count`` bytes."""
        return self._take(count, b"\n")

    def _take(self, count: int, last: bytes) -> bytes:
        pieces: list[bytes] = []
        while count > 0:
            offset = self._at - (self._end - len(self._block))
            piece = self._block[offset : offset + count] if offset < len(self._block) else b""
            if not piece:
                if self._at > self._end or not self._next_block():
                    break
                continue
            line_end = piece.find(last) if last else -1
            piece = piece[: line_end + 1] if line_end >= 0 else piece
            pieces.append(piece)
            self._at += len(piece)
            count -= len(piece)
            if line_end >= 0:
                break
        return b"".join(pieces)

    def _go_to_point(self, point: int) -> None:
        self._end, self._packed, decoder = self._points[point]
        self._decoder, self._block, self._at, self._is_over = decoder.copy(), b"", self._end, False

    def _next_block(self) -> bool:
        """Unpack some more; say whether there was any."""
        while not self._is_over:
            self._file.seek(self._packed)
            chunk = self._file.read(_CHUNK)
            if self._decoder.eof:  # another stream may follow, or zeros
                padding = len(chunk) - len(chunk.lstrip(b"\0"))
                self._packed += padding
                self._is_over = chunk[padding : padding + 1] == b"" and len(chunk) < _CHUNK
                if chunk[padding:]:
                    self._decoder = zlib.decompressobj(31)
                continue
            if not chunk:
                raise DataError(f"prepare.source: {self._place!r} is cut short (gzip), get the file itself again")
            try:
                block = self._decoder.decompress(chunk, _BLOCK)
            except zlib.error as error:
                raise DataError(f"prepare.source: {self._place!r} is corrupt ({error}), get it again") from None
            self._packed += len(chunk) - len(self._decoder.unconsumed_tail) - len(self._decoder.unused_data)
            if block:
                self._block, self._end = block, self._end + len(block)
                self._keep_point()
                return True
        return False

    def _keep_point(self) -> None:
        if self._decoder.eof or self._end < self._points[-1][0] + self._spacing:
            return
        self._points.append((self._end, self._packed, self._decoder.copy()))
        if len(self._points) > _MAX_POINTS:
            self._points, self._spacing = self._points[::2], 2 * self._spacing
