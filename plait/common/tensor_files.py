"""Tensors on disk: safetensors, written and read one tensor at a time, whole or in pieces. No pickle, no memory map.

A `TensorStore` is named by one file, such as ``model.safetensors``. That file holds all; or, where it would be too
large or several ranks wrote it, ``model.safetensors.index.json`` beside it says what the files
``model-00001-of-00004.safetensors`` hold. The index is the one that Hugging Face's libraries read (``weight_map``: the
file of each tensor); where a tensor is cut over ranks, ``pieces`` gives its shape and each piece's place in it.
"""

import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from plait.common.errors import CheckpointError
from plait.common.files import read_json
from plait.common.tensor_header import BadHeader, read_header, write_header

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors' own library reads."""

_CODES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: code for code, dtype in _CODES.items()}
_WRITTEN_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Stored:
    """What a file holds under a name."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    """First byte in the file."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and the file that holds it under the tensor's name."""

    file: str
    start: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """A tensor and the pieces that it lies in."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def whole(cls, stored: "Stored | Cut", file: str) -> "Cut":
        """Return a tensor that lies in one file as a whole."""
        return cls(stored.dtype, stored.shape, (Piece(file, (0,) * len(stored.shape), stored.shape),))


def write_tensors(path: Path, tensors: Mapping[str, Stored], read: Callable[[str], Tensor]) -> int:
    """Write a safetensors file and flush it to the disk; return its CRC-32.

    ``read`` is asked for one tensor after another, so that only one is held; its dtype and shape must be the promised.
    """
    # the widest types first, so that each tensor begins at a multiple of its own size
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    codes = {name: (_NAMES[tensors[name].dtype], tensors[name].shape) for name in order}
    header = write_header(codes, metadata={"format": "pt"})
    with open(path, "wb") as file:
        checksum = _write(file, memoryview(header), 0)
        for name in order:
            checksum = _write(file, _bytes(name, read(name), tensors[name]), checksum)
        file.flush()
        os.fsync(file.fileno())
    return checksum


def _write(file: BinaryIO, data: memoryview, checksum: int) -> int:
    for start in range(0, len(data), _WRITTEN_AT_ONCE):
        block = data[start : start + _WRITTEN_AT_ONCE]
        checksum = zlib.crc32(block, checksum)
        file.write(block)
    return checksum


def _bytes(name: str, tensor: Tensor, promised: Stored) -> memoryview:
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype != promised.dtype or tuple(tensor.shape) != promised.shape:
        raise AssertionError(f"{name}: {tensor.dtype} {list(tensor.shape)} is not what was promised")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class TensorFile:
    """One safetensors file, open for reading. Raises CheckpointError where it is missing or not whole."""

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise CheckpointError(f"{what}: there is no file {str(path)!r}") from None
        except OSError as error:
            raise CheckpointError(f"{what}: {str(path)!r} cannot be read ({error.strerror})") from None
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> Tensor:
        """Read a tensor, or the box of ``shape`` that begins at ``start``; of the file only the box's rows are read."""
        stored = self.tensors[name]
        start = tuple(start) if start is not None else (0,) * len(stored.shape)
        shape = tuple(shape) if shape is not None else stored.shape
        rows, offset = shape, stored.offset
        if shape:
            row = math.prod(stored.shape[1:]) * stored.dtype.itemsize
            rows, offset = (shape[0], *stored.shape[1:]), offset + start[0] * row
        tensor = self._read(offset, rows, stored.dtype)
        for axis in range(1, len(shape)):
            tensor = tensor.narrow(axis, start[axis], shape[axis])
        return tensor

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(offset)
        done = 0
        while done < len(data):
            count = self._file.readinto(data[done:])
            if not count:
                raise self._broken("it ends too early")
            done += count
        return tensor

    def _read_header(self) -> dict[str, Stored]:
        number = self._file.fileno()
        try:
            entries = read_header(
                lambda start, count: os.pread(number, count, start), os.fstat(number).st_size, longest=MAX_HEADER_BYTES
            )
            return {name: Stored(_CODES[entry.code], entry.shape, entry.offset) for name, entry in entries.items()}
        except BadHeader as error:
            raise self._broken(str(error)) from None
        except KeyError as error:
            raise self._broken(f"it has numbers of the type {error}") from None

    def _broken(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.what}: {str(self.path)!r} is not a whole safetensors file ({reason})")


class TensorStore:
    """The tensors of ``path``, in one file or in several with an index. Files are opened when they are first read.

    ``what`` names it in errors (CheckpointError for a missing or broken file).
    """

    def __init__(self, path: str | Path, what: str):
        self.path, self.what = Path(path), what
        self._files: dict[str, TensorFile] = {}
        index = index_path(self.path)
        self.tensors = self._single() if self.path.is_file() or not index.is_file() else self._indexed(index)
        """What is stored, by name."""

    def __enter__(self) -> "TensorStore":
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, name: str) -> Tensor:
        """Read a tensor, put together from its pieces."""
        cut = self.tensors[name]
        if len(cut.pieces) == 1 and cut.pieces[0].shape == cut.shape:
            return self.read_piece(name, cut.pieces[0])
        whole = torch.empty(cut.shape, dtype=cut.dtype)
        for piece in cut.pieces:
            box = tuple(slice(s, s + n) for s, n in zip(piece.start, piece.shape, strict=True))
            whole[box] = self.read_piece(name, piece)
        return whole

    def read_piece(
        self, name: str, piece: Piece, start: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """Read a piece of a tensor, or the box of ``shape`` that begins at ``start`` within the piece."""
        file = self._open(piece.file)
        stored = file.tensors.get(name)
        if stored is None or stored.shape != piece.shape or stored.dtype != self.tensors[name].dtype:
            raise self._unlike_index(file, name)
        return file.read(name, start, shape)

    def _open(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(self.path.parent / name, self.what)
        return self._files[name]

    def _single(self) -> dict[str, Cut]:
        name = self.path.name
        tensors = self._open(name).tensors
        return {n: Cut.whole(stored, name) for n, stored in tensors.items()}

    def _indexed(self, path: Path) -> dict[str, Cut]:
        index = read_json(path, self.what)
        try:
            files, pieces = index["weight_map"], index.get("pieces", {})
            if not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
                raise ValueError
            cuts = {name: _cut(pieces[name]) for name in pieces}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{self.what}: {str(path)!r} is not an index of safetensors files") from None
        for name in files.keys() - cuts.keys():
            file = self._open(files[name])
            if name not in file.tensors:
                raise self._unlike_index(file, name)
            cuts[name] = Cut.whole(file.tensors[name], files[name])
        return {name: cuts[name] for name in files}

    def _unlike_index(self, file: TensorFile, name: str) -> CheckpointError:
        return CheckpointError(f"{self.what}: {str(file.path)!r} does not hold {name!r} as its index says")


def _cut(record: dict) -> Cut:
    """Read an index's entry of a tensor in pieces: they must lie within it and fill it."""
    shape = tuple(record["shape"])
    pieces = tuple(Piece(file, tuple(start), tuple(size)) for file, start, size in record["at"])
    for piece in pieces:
        boxes = zip(piece.start, piece.shape, shape, strict=True)
        if Path(piece.file).name != piece.file or not all(s >= 0 <= n <= whole - s for s, n, whole in boxes):
            raise ValueError
    if sum(math.prod(p.shape) for p in pieces) != math.prod(shape):
        raise ValueError
    return Cut(_CODES[record["dtype"]], shape, pieces)


def make_index(tensors: Mapping[str, Cut]) -> dict[str, Any]:
    """Return the index of tensors that lie in several files."""
    size = sum(cut.num_bytes for cut in tensors.values())
    index: dict[str, Any] = {"metadata": {"total_size": size}}
    index["weight_map"] = {name: cut.pieces[0].file for name, cut in tensors.items()}
    pieces = {
        name: {"dtype": _NAMES[cut.dtype], "shape": list(cut.shape),
               "at": [[p.file, list(p.start), list(p.shape)] for p in cut.pieces]}
        for name, cut in tensors.items() if len(cut.pieces) > 1
    }  # fmt: skip
    return index | ({"pieces": pieces} if pieces else {})


def index_path(path: Path) -> Path:
    """Return the path of the index of a store."""
    return path.with_name(path.name.removesuffix(SUFFIX) + INDEX_SUFFIX)


def part_name(stem: str, number: int, count: int) -> str:
    """Return the name of file ``number`` (from 1) of ``count``; a single one has no number."""
    return f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" if count > 1 else f"{stem}{SUFFIX}"
