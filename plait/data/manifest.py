"""A user's own documents: a JSONL or Parquet manifest whose rows name texts and media files.

A row is ``{"parts": [{"text": "..."}, {"image": "a.png"}, {"audio": "b.wav"}, ...], "meta": {...}}``: any number of
parts in any order, ``meta`` optional. A part's key is that of the codec that reads it; paths are relative to the
manifest. In Parquet, the columns ``parts`` and ``meta`` hold lists and structs, or the same as JSON text.

A row that cannot be read is a `BrokenRow` with its line (Parquet: row) number, counted from 1, and the reason.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs import CODECS, Codec, codec_class
from plait.config import PrepareConfig
from plait.data.raw import BrokenRow, RawDocument
from plait.errors import DataError, PlaitError, ResourceError, nearest, unknown

FIELDS = ("parts", "meta")
SPLITS = ("train", "validation")


@dataclass
class RowIndex:
    """Where the rows are and which split each belongs to: a few bytes a row. R rows."""

    place: np.ndarray
    """[R] byte offset in a JSONL file; row number in a Parquet file."""
    line: np.ndarray
    """[R] line or row number, from 1."""
    split: np.ndarray
    """[R] place in SPLITS."""


class ManifestSource:
    """Documents of a manifest, by split and index; a `plait.data.raw.RawSource`.

    A row belongs to "validation" if a hash of its parts falls within ``prepare.validation_share``: the same rows in any
    order are split the same way, and equal rows never part. Raises DataError for a manifest that is absent, of another
    format, or without rows. ``index`` is that of another source on the same file, to save reading it again.
    """

    def __init__(
        self, path: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec], index: RowIndex | None = None
    ):
        self.path = Path(path)
        self._readers = {codec.key: codec for codec in codecs.values()}
        self._file = _open(self.path)
        self.index = index or _index(self._file, prepare.validation_share)
        if not len(self.index.place):
            raise DataError(f"prepare.source: manifest {str(path)!r} has no rows, it needs at least one document")
        self._rows = {name: np.flatnonzero(self.index.split == k) for k, name in enumerate(SPLITS)}

    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def line(self, split: str, row: int) -> int:
        """Return the line of a row of a split."""
        return int(self.index.line[self._rows[split][row]])

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read rows [start, stop) of a split. Parts that no codec of this model reads are handed on unread."""
        for r in self._rows[split][start:stop].tolist():
            line = int(self.index.line[r])
            try:
                yield self._document(self._file.row(int(self.index.place[r])))
            except _BadRow as error:
                yield BrokenRow(line, str(error))

    def _document(self, row: Any) -> RawDocument:
        parts, meta = _check(row)
        media = []
        for k, part in enumerate(parts, start=1):
            if not isinstance(part, dict) or len(part) != 1:
                raise _BadRow(f'part {k} is {_short(part)}, it must be a mapping with one key, such as {{"text": ...}}')
            ((key, value),) = part.items()
            media.append((key, self._read_part(k, key, value)))
        if not any(key in self._readers for key, _ in media):
            keys = ", ".join(dict.fromkeys(key for key, _ in media))
            raise _BadRow(f"none of its parts ({keys}) is of a kind that this model reads ({', '.join(self._readers)})")
        return RawDocument(media, meta)

    def _read_part(self, k: int, key: str, value: Any) -> Any:
        if key not in self._readers:
            if key in registered_keys():
                return value  # of a modality that this model leaves out
            raise _BadRow(unknown(f"part {k}", key, self._readers))
        try:
            return self._readers[key].read(value, self.path.parent)
        except ResourceError:
            raise  # a missing package is no fault of the row
        except (PlaitError, OSError, ValueError) as error:
            reason = _sentence(error).removeprefix(f"{key}: ")
            raise _BadRow(f"part {k} ({key}): {reason}") from None


class _BadRow(ValueError):
    """The reason why a row cannot be read."""


@functools.cache
def registered_keys() -> frozenset[str]:
    """Return the manifest keys of all codecs whose packages are installed."""
    keys = set()
    for name in CODECS:
        try:
            keys.add(codec_class(name).key)
        except (ImportError, ResourceError):
            continue
    return frozenset(keys)


def _check(row: Any) -> tuple[list, dict]:
    if not isinstance(row, dict):
        raise _BadRow(f'the row is {_short(row)}, it must be a mapping {{"parts": [...]}}')
    for name in row:
        if name not in FIELDS:
            raise _BadRow(f"unknown field {name!r}, allowed: parts, meta{nearest(name, FIELDS)}")
    parts, meta = row.get("parts"), row.get("meta")
    if not isinstance(parts, list):
        what = "has no 'parts'" if parts is None else f"has {_short(parts)} as 'parts'"
        raise _BadRow(f"the row {what}, it needs a list of parts")
    if not parts:
        raise _BadRow("the row has no parts, it needs at least one")
    if meta is not None and not isinstance(meta, dict):
        raise _BadRow(f"'meta' is {_short(meta)}, it must be a mapping")
    return parts, meta or {}


def _index(file: "_JsonLines | _Parquet", share: float) -> RowIndex:
    place, line, split = [], [], []
    for row_place, row_line, content in file.scan():
        place.append(row_place)
        line.append(row_line)
        draw = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
        split.append(draw < share)
    return RowIndex(np.array(place, np.int64), np.array(line, np.int64), np.array(split, np.uint8))


def _content(row: Any) -> bytes:
    """Return what a row is told apart by: its parts, not its meta."""
    parts = row.get("parts") if isinstance(row, dict) else row
    return json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()


def _open(path: Path) -> "_JsonLines | _Parquet":
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise DataError(f"prepare.source: there is no manifest {str(path)!r}") from None
    except OSError as error:
        raise DataError(f"prepare.source: manifest {str(path)!r} cannot be read ({error.strerror})") from None
    return _Parquet(path) if magic == b"PAR1" else _JsonLines(path)


class _JsonLines:
    """Rows as lines of JSON; blank lines count as lines but are no rows."""

    def __init__(self, path: Path):
        self._path = path

    def scan(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each row's byte offset, line number and content, without keeping any."""
        place = 0
        with open(self._path, "rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    try:
                        content = _content(_parse(text))
                    except _BadRow:
                        content = text.strip()
                    yield place, line, content
                place += len(text)

    def row(self, place: int) -> Any:
        """Return the row at a byte offset."""
        with open(self._path, "rb") as file:
            file.seek(place)
            return _parse(file.readline())


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _BadRow(f"the line is not UTF-8 (byte {error.start + 1} is 0x{text[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"the line is not JSON ({_sentence(error)})") from None


class _Parquet:
    """Rows of a Parquet file; one row group is held at a time."""

    def __init__(self, path: Path):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            message = "prepare.source: package 'pyarrow' is not installed, install it: pip install 'plait[media]'"
            raise ResourceError(message) from None
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"prepare.source: {str(path)!r} is not a Parquet file ({_sentence(error)})") from None
        columns = self._file.schema_arrow.names
        for name in columns:
            if name not in FIELDS:
                raise DataError(unknown(f"column of {str(path)!r}", name, FIELDS))
        if "parts" not in columns:
            raise DataError(f"prepare.source: {str(path)!r} has no column 'parts', only {', '.join(columns) or 'none'}")
        groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(int)
        self._group = functools.lru_cache(maxsize=1)(self._file.read_row_group)

    def scan(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each row's number from 0 and from 1, and its content."""
        for place in range(int(self._starts[-1])):
            try:
                yield place, place + 1, _content(self.row(place))
            except _BadRow as error:
                yield place, place + 1, str(error).encode()

    def row(self, place: int) -> Any:
        """Return the row of a number."""
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        table = self._group(group)
        at = place - int(self._starts[group])
        try:
            row = {name: table.column(name)[at].as_py() for name in table.column_names}
        except UnicodeDecodeError:
            raise _BadRow("the row is not UTF-8") from None
        row = {name: _parse(v.encode()) if isinstance(v, str) else v for name, v in row.items()}
        if isinstance(row["parts"], list):  # a struct has every key, most of them empty
            row["parts"] = [_without_none(part) for part in row["parts"]]
        return row


def _without_none(part: Any) -> Any:
    return {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
