"""Arrays in a safetensors file, read at their places.

Only the header (at most `MAX_HEADER` bytes) is read on opening; a stretch of rows is one read at a computed place. A
memory map would be shorter to write, but its pages count as the process's memory once they were touched, and a file
that is cut short while it is read would end the process instead of raising an error.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from plait.common.errors import DataError
from plait.common.files import atomic_file
from plait.common.tensor_header import BadHeader, Entry, read_header, write_header

MAX_HEADER = 1 << 20
"""Bytes that a header may have: far more than the few arrays of a shard need."""

_KINDS = {"U8": "u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
_DTYPES = {code: np.dtype(kind) for code, kind in _KINDS.items()}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


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
        return _DTYPES[self._place(name).code]

    def read(self, name: str, start: int, count: int) -> np.ndarray:
        """Return rows [start, start + count) of an array."""
        entry = self._place(name)
        if not 0 <= start <= start + count <= entry.shape[0]:
            raise self.broken(f"has {entry.shape[0]} rows in {name!r}, not {start + count}")
        dtype, shape = _DTYPES[entry.code], (count, *entry.shape[1:])
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        data = self.raw(entry.offset + start * row_bytes, count * row_bytes) or bytearray()
        return np.frombuffer(data, dtype).reshape(shape)

    def start_of(self, name: str) -> int:
        """Return the byte at which an array begins."""
        return self._place(name).offset

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

    def _place(self, name: str) -> Entry:
        if name not in self._places:
            raise self.broken(f"has no array {name!r}")
        return self._places[name]

    def _read_header(self) -> dict[str, Entry]:
        try:
            entries = read_header(self.raw, self._bytes, longest=MAX_HEADER)
        except BadHeader as error:
            raise self.broken(f"is no file of prepared data ({error})") from None
        if not all(entry.shape and entry.code in _DTYPES for entry in entries.values()):
            raise self.broken("is no file of prepared data (its header has other arrays)")
        return entries


def write_arrays(path: Path, arrays: dict[str, tuple[type | np.dtype, tuple[int, ...], Iterable[np.ndarray]]]) -> int:
    """Write a safetensors file from arrays given as (dtype, shape, pieces in order); return its size in bytes.

    One piece is in memory at a time, and the file is whole or not there at all.
    """
    header = write_header({name: (_CODES[np.dtype(d)], shape) for name, (d, shape, _) in arrays.items()})
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for name, (dtype, shape, pieces) in arrays.items():
            end = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype).tobytes())
            if file.tell() != end:
                raise ValueError(f"{name}: the pieces do not make up the shape")
        return file.tell()
