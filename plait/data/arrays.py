"""Arrays in a safetensors file, read at their places.

Only the header (at most `MAX_HEADER` bytes) is read on opening; a stretch of rows is one read at a computed place. A
memory map would be shorter to write, but its pages count as the process's memory once they were touched, and a file
that is cut short while it is read would end the process instead of raising an error.
"""

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.errors import DataError
from plait.files import atomic_file

MAX_HEADER = 1 << 20
"""Bytes that a header may have: far more than the few arrays of a shard need."""

_DTYPES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    """Where an array lies in the file."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


class ArrayFile:
    """The arrays of one file. Raises DataError where the file is missing, cut short, or no safetensors file.

    Any number of threads may read at once; the file is closed when nobody holds the object any more.
    """

    def __init__(self, path: str | Path, size: int | None = None):
        """``size`` is what the index says that the file has, in bytes."""
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (held open)
        except OSError as error:
            raise self.broken(f"cannot be read ({error.strerror})") from None
        self._bytes = os.fstat(self._file.fileno()).st_size
        if size is not None and self._bytes != size:
            raise self.broken(f"has {self._bytes} bytes, not {size}")
        self._places = self._read_header()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._place(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Return the type of an array's numbers."""
        return self._place(name).dtype

    def read(self, name: str, start: int, count: int) -> np.ndarray:
        """Return rows [start, start + count) of an array."""
        place = self._place(name)
        if not 0 <= start <= start + count <= place.shape[0]:
            raise self.broken(f"has {place.shape[0]} rows in {name!r}, not {start + count}")
        data = self.raw(place.start + start * place.row_bytes, count * place.row_bytes) or bytearray()
        return np.frombuffer(data, place.dtype).reshape(count, *place.shape[1:])

    def start_of(self, name: str) -> int:
        """Return the byte at which an array begins."""
        return self._place(name).start

    def raw(self, start: int, count: int) -> bytes:
        """Return bytes [start, start + count) of the file."""
        try:
            data = os.pread(self._file.fileno(), count, start)
        except OSError as error:
            raise self.broken(f"cannot be read ({error.strerror})") from None
        if len(data) != count:
            raise self.broken("is cut short")
        return data

    def broken(self, what: str) -> DataError:
        """Return the error that says what is wrong with the file."""
        return DataError(f"data: {str(self.path)!r} {what}, prepare the data again")

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise self.broken(f"has no array {name!r}")
        return self._places[name]

    def _read_header(self) -> dict[str, _Place]:
        size = int.from_bytes(self.raw(0, 8), "little") if self._bytes >= 8 else MAX_HEADER + 1
        if size > min(MAX_HEADER, self._bytes - 8):
            raise self.broken("is no file of prepared data (its header is absurd)")
        try:
            header = json.loads(self.raw(8, size))
            return {name: self._checked(field, 8 + size) for name, field in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise self.broken("is no file of prepared data (its header is damaged)") from None

    def _checked(self, field: dict, base: int) -> _Place:
        start, stop = field["data_offsets"]
        shape, dtype = tuple(field["shape"]), np.dtype(_DTYPES[field["dtype"]])
        if not shape or not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
            raise ValueError
        if math.prod(shape) * dtype.itemsize != stop - start or base + stop > self._bytes:
            raise ValueError
        return _Place(base + start, dtype, shape)


def write_arrays(path: Path, arrays: dict[str, tuple[type | np.dtype, tuple[int, ...], Iterable[np.ndarray]]]) -> int:
    """Write a safetensors file from arrays given as (dtype, shape, pieces in order); return its size in bytes.

    One piece is in memory at a time, and the file is whole or not there at all.
    """
    header, at = {}, 0
    for name, (dtype, shape, _) in arrays.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, _, pieces) in arrays.items():
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype).tobytes())
            if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"{name}: the pieces do not make up the shape")
    return 8 + len(text) + at
