"""The forms of a manifest's file, each as rows at places: lines of JSON, Parquet, WebDataset tars.

A row is ``{"parts": [{key: value}, ...], "meta": {...}}`` whatever the form. ``rows`` yields every row once with its
place, and a `BadRow` where one cannot be read; ``row`` reads the one at a place again.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from plait.data.places import MAX_ITEM_BYTES, open_place, reason_of
from plait.data.raw import BadRow, Blob
from plait.data.tar import Sample, TarFile
from plait.errors import DataError, PlaitError, ResourceError, nearest, printable, unknown

FIELDS = ("parts", "meta")

SUFFIXES = {
    "txt": "text", "text": "text", "caption": "text", "jpg": "image", "jpeg": "image", "png": "image", "webp": "image",
    "bmp": "image", "gif": "image", "tif": "image", "tiff": "image", "wav": "audio", "flac": "audio", "ogg": "audio",
    "mp3": "audio", "opus": "audio",
}  # fmt: skip
"""The manifest key of a tar member by its suffix; other suffixes may be keys themselves."""

_MAX_GROUP_BYTES, _MAX_GROUP_ROWS = 1 << 31, 1 << 24  # of a Parquet row group
_SKIP = 1 << 20


class Rows(Protocol):
    """The rows of one file."""

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (place, line or row number from 1, row or BadRow)."""

    def row(self, place: int) -> Any:
        """Return the row at a place; raises BadRow."""


def open_rows(place: str, columns: dict[str, str], keys: Sequence[str]) -> Rows:
    """Open a file as what its first bytes, or its suffix, say. ``columns`` are prepare.columns, ``keys`` the known
    manifest keys. Raises DataError."""
    file = open_place(place)
    magic = _read(file, place, 0, 265)
    if magic[:4] == b"PAR1":
        return _Parquet(file, place, columns, keys)
    if magic[257:262] == b"ustar" or place.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return _Tar(TarFile(file, place), columns, keys)
    return _JsonLines(file)


def _read(file: BinaryIO, place: str, at: int, count: int) -> bytes:
    try:
        file.seek(at)
        return file.read(count)
    except OSError as error:  # a folder
        raise DataError(f"prepare.source: manifest {place!r} cannot be read ({reason_of(error)})") from None


class _JsonLines:
    """Rows as lines of JSON; blank lines count as lines but are no rows."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        place = line = 0
        while True:
            self._file.seek(place)  # a reader of rows may share the file
            text = self._file.readline(MAX_ITEM_BYTES + 1)
            if not text:
                return
            line += 1
            if text.strip():
                yield place, line, _parsed(text)
            place += len(text)
            if len(text) > MAX_ITEM_BYTES:
                place = self._after_line(place)

    def row(self, place: int) -> Any:
        self._file.seek(place)
        return _good(_parsed(self._file.readline(MAX_ITEM_BYTES + 1)))

    def _after_line(self, place: int) -> int:
        """Return the place after a line that is too long to be held."""
        self._file.seek(place)
        while block := self._file.readline(_SKIP):
            place += len(block)
            if block.endswith(b"\n"):
                break
        return place


def _parsed(text: bytes) -> Any:
    try:
        if len(text) > MAX_ITEM_BYTES:
            raise BadRow(f"the line has more than {MAX_ITEM_BYTES:,} bytes")
        return parse(text)
    except BadRow as error:
        return error


def _good(row: Any) -> Any:
    if isinstance(row, BadRow):
        raise row
    return row


def parse(text: bytes) -> Any:
    """Return JSON as plain values; raises BadRow."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow(f"the line is not UTF-8 (byte {error.start + 1} is 0x{text[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"the line is not JSON ({reason_of(error)})") from None


class _Parquet:
    """Rows of a Parquet file; one row group is held at a time. A place is a row group's number and a row in it.

    With a column "parts" it is a manifest in Parquet. Else columns are parts: those that ``columns`` names, or those
    that are named like a manifest key; columns of plain values become the meta.
    """

    def __init__(self, file: BinaryIO, place: str, columns: dict[str, str], keys: Sequence[str]):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            message = "prepare.source: package 'pyarrow' is not installed, install it: pip install 'plait[media]'"
            raise ResourceError(message) from None
        try:
            self._file = pyarrow.parquet.ParquetFile(file)
            schema = self._file.schema_arrow
        except Exception as error:  # pyarrow has many
            raise DataError(f"prepare.source: {place!r} is not a Parquet file ({reason_of(error)})") from None
        names = schema.names
        self._is_manifest = "parts" in names and not columns
        if self._is_manifest:
            for name in names:
                if name not in FIELDS:
                    raise DataError(unknown(f"column of {place!r}", name, FIELDS))
            self._columns, self._wanted = {}, names
        else:
            self._columns = _columns_of(names, columns, keys, place)
            self._wanted = [*self._columns, *(n for n in names if n not in self._columns and _is_plain(schema, n))]
        self._group = functools.lru_cache(maxsize=1)(self._read_group)

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        line = 0
        for group in range(self._file.num_row_groups):
            try:
                size = self._group(group).num_rows
            except BadRow as error:
                line += 1
                yield group << 32, line, error
                continue
            for at in range(size):
                line += 1
                place = group << 32 | at
                try:
                    yield place, line, self.row(place)
                except BadRow as error:
                    yield place, line, error

    def row(self, place: int) -> Any:
        table, at = self._group(place >> 32), place & 0xFFFFFFFF
        try:
            row = {name: table.column(name)[at].as_py() for name in table.column_names}
        except UnicodeDecodeError:
            raise BadRow("the row is not UTF-8") from None
        except Exception as error:
            raise BadRow(f"the row cannot be read ({reason_of(error)})") from None
        return self._manifest_row(row) if self._is_manifest else self._row_of_columns(row)

    def _read_group(self, group: int) -> Any:
        try:
            record = self._file.metadata.row_group(group)
            if record.num_rows > _MAX_GROUP_ROWS or record.total_byte_size > _MAX_GROUP_BYTES:
                raise BadRow(
                    f"row group {group + 1} has {record.num_rows:,} rows and {record.total_byte_size:,} bytes, at most "
                    f"{_MAX_GROUP_ROWS:,} and {_MAX_GROUP_BYTES:,} are held at once; write smaller row groups"
                )
            return self._file.read_row_group(group, columns=self._wanted)
        except (BadRow, PlaitError):
            raise
        except Exception as error:
            raise BadRow(f"row group {group + 1} cannot be read ({reason_of(error)})") from None

    def _manifest_row(self, row: dict) -> dict:
        row = {name: parse(v.encode()) if isinstance(v, str) else v for name, v in row.items()}
        if isinstance(row["parts"], list):  # a struct has every key, most of them empty
            row["parts"] = [
                {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part
                for part in row["parts"]
            ]
        return row

    def _row_of_columns(self, row: dict) -> dict:
        parts = []
        for name, key in self._columns.items():
            values = row.pop(name)
            parts += [{key: v} for v in (values if isinstance(values, list) else [values]) if v is not None]
        return {"parts": parts, "meta": {name: v for name, v in row.items() if v is not None}}


def _columns_of(names: Sequence[str], columns: dict[str, str], keys: Sequence[str], place: str) -> dict[str, str]:
    """Return the manifest key of every column that is a part."""
    for name in columns:
        if name not in names:
            raise DataError(unknown(f"prepare.columns (columns of {place!r})", name, names))
    found = columns or {name: name for name in names if name in keys}
    if not found:
        listed = ", ".join(map(printable, names))
        hints = [nearest(name, [*FIELDS, *keys]) for name in names]
        raise DataError(
            f"prepare.source: {place!r} has no column 'parts', and none of its columns ({listed or 'none'}) "
            f"is named like a part ({', '.join(sorted(keys))}), name them in prepare.columns"
            + next(filter(None, hints), "")
        )
    return found


def _is_plain(schema: Any, name: str) -> bool:
    import pyarrow

    kind, types = schema.field(name).type, pyarrow.types
    return any(f(kind) for f in (types.is_string, types.is_large_string, types.is_integer, types.is_floating,
                                 types.is_boolean))  # fmt: skip


class _Tar:
    """Samples of a WebDataset tar: members are parts by their suffix, a .json member is the meta."""

    def __init__(self, file: TarFile, columns: dict[str, str], keys: Sequence[str]):
        self._file = file
        known = {suffix: key for suffix, key in SUFFIXES.items() if key in keys}
        self._columns = columns or known | {key: key for key in keys if key not in known}

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        for line, (place, sample) in enumerate(self._file.samples(), start=1):
            try:
                yield place, line, self._row(sample)
            except BadRow as error:
                yield place, line, error

    def row(self, place: int) -> Any:
        sample = self._file.sample(place)
        if sample is None:
            raise BadRow("the tar ends before this sample")
        return self._row(sample)

    def _row(self, sample: Sample) -> dict:
        if sample.wrong:
            raise BadRow(sample.wrong)
        parts = [{key: sample.members[s]} for s, key in self._columns.items() if s in sample.members]
        if not parts:
            have, known = ", ".join(sample.members) or "none", ", ".join(self._columns)
            raise BadRow(f"none of the sample's suffixes ({have}) is one of a part ({known}), see prepare.columns")
        meta: Any = {}
        if "json" in sample.members and "json" not in self._columns:
            meta = parse(sample.members["json"].data)
            if not isinstance(meta, dict):
                raise BadRow(f"{sample.members['json'].name!r} is not a mapping")
        key = sample.key.encode("utf-8", "backslashreplace").decode()  # names may be any bytes
        return {"parts": parts, "meta": {"key": key} | meta}


__all__ = ["FIELDS", "Blob", "Rows", "open_rows", "parse"]
