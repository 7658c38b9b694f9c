"""The forms of a source, each as rows at places: lines of JSON, Parquet, WebDataset tars, folders of files.

A row is ``{"parts": [{key: value}, ...], "meta": {...}}`` whatever the form: conversations in JSON or Parquet are
written as parts by the text codec's chat template. ``rows`` yields every row once with its place, and a `BadRow` where
one cannot be read; ``row`` reads the one at a place again.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from plait.codecs.chat import Chat
from plait.codecs.chat_messages import is_chat
from plait.common.errors import DataError, printable
from plait.prepare.folder import Folder
from plait.prepare.foreign import refuse_file
from plait.prepare.gzip_file import MAGIC, GzipFile
from plait.prepare.json_values import JsonValues, parse
from plait.prepare.parquet_rows import Parquet
from plait.prepare.raw import FIELDS, KEY_OF, BadRow, Blob
from plait.prepare.remote import MAX_ITEM_BYTES, open_place, reason_of
from plait.prepare.tar import Sample, TarFile

_FATES = ("parts", "meta", "in broken samples")
_SHOWN = 12  # suffixes
_SKIP = 1 << 20
_HEAD = 1 << 16


class Rows(Protocol):
    """The rows of one file."""

    account: dict[str, Any]
    """What became of what the file holds besides rows, known once `rows` came to its end: its form; a tar's members,
    a table's columns and empty cells, blank lines."""

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (place, line or row number from 1, row or BadRow)."""

    def row(self, place: int) -> Any:
        """Return the row at a place; raises BadRow."""


def open_rows(place: str, columns: dict[str, str], keys: Sequence[str], chat: Chat | None = None) -> Rows:
    """Open a file as what its first bytes, or its suffix, say. ``columns`` are prepare.columns, ``keys`` the known
    manifest keys, ``chat`` reads conversations. Raises DataError."""
    if os.path.isdir(place):
        return _Samples("folder", Folder(place), columns, keys)
    file = open_place(place)
    head = _read(file, place, 0, _HEAD)
    if head[:4] == b"PAR1":
        return _with_chats(Parquet(file, place, columns, keys, chat.fields if chat else ()), chat)
    if head[257:262] == b"ustar" or place.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return _Samples("tar", TarFile(file, place), columns, keys)
    if head[:2] == MAGIC:
        file = GzipFile(file, place)
        head = file.read(_HEAD)
        if head[:4] == b"PAR1" or head[257:262] == b"ustar":
            raise DataError(f"prepare.source: {place!r} is packed (gzip), only lines of JSON may be; unpack it")
    refuse_file(head, place)
    return _with_chats(JsonValues(file) if JsonValues.fits(head) else _JsonLines(file), chat)


def _with_chats(rows: Rows, chat: Chat | None) -> Rows:
    return _Chats(rows, chat) if chat else rows


class _Chats:
    """The rows of a file, of which conversations become rows of parts."""

    def __init__(self, rows: Rows, chat: Chat):
        self._rows, self._chat = rows, chat

    @property
    def account(self) -> dict[str, Any]:
        """What became of what the file holds besides rows."""
        return self._rows.account

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        for place, line, row in self._rows.rows():
            try:
                yield place, line, self._as_parts(row)
            except BadRow as error:
                yield place, line, error

    def row(self, place: int) -> Any:
        return self._as_parts(self._rows.row(place))

    def _as_parts(self, row: Any) -> Any:
        if not is_chat(row):
            return row
        try:
            return self._chat.row(row)
        except DataError as error:
            raise BadRow(str(error)) from None


def _read(file: BinaryIO, path: str, at: int, count: int) -> bytes:
    try:
        file.seek(at)
        return file.read(count)
    except OSError as error:  # a folder
        raise DataError(f"prepare.source: manifest {path!r} cannot be read ({reason_of(error)})") from None


class _JsonLines:
    """Rows as lines of JSON; blank lines count as lines but are no rows."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._blank = 0

    @property
    def account(self) -> dict[str, Any]:
        """What became of the lines."""
        return {"form": "JSON lines", "blank lines": self._blank}

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        offset = line = self._blank = 0
        while True:
            self._file.seek(offset)  # a reader of rows may share the file
            text = self._file.readline(MAX_ITEM_BYTES + 1)
            if not text:
                return
            line += 1
            if text.strip():
                yield offset, line, _parsed(text)
            else:
                self._blank += 1
            offset += len(text)
            if len(text) > MAX_ITEM_BYTES:
                offset = self._after_line(offset)

    def row(self, place: int) -> Any:
        self._file.seek(place)
        return _good(_parsed(self._file.readline(MAX_ITEM_BYTES + 1)))

    def _after_line(self, offset: int) -> int:
        """Return the place after a line that is too long to be held."""
        self._file.seek(offset)
        while block := self._file.readline(_SKIP):
            offset += len(block)
            if block.endswith(b"\n"):
                break
        return offset


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


class _Samples:
    """Samples of a WebDataset tar or of a folder: members are parts by their suffix, a .json member is the meta."""

    def __init__(self, form: str, file: TarFile | Folder, columns: dict[str, str], keys: Sequence[str]):
        self._form, self._file = form, file
        known = {suffix: key for suffix, key in KEY_OF.items() if key in keys}
        known |= {key: key for key in keys if key not in known}
        self._columns = {suffix.lower(): key for suffix, key in columns.items()} or known
        self._used: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()

    @property
    def account(self) -> dict[str, Any]:
        """What became of the members."""
        left_out = self._file.left_out + self._unused
        return {"form": self._form, "members": {**{k: self._used[k] for k in _FATES}, "left out": dict(left_out)}}

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (place, sample number from 1, row or BadRow)."""
        self._used.clear()
        self._unused.clear()
        for line, (place, sample) in enumerate(self._file.samples(), start=1):
            try:
                row: Any = self._row(sample)
                self._count(sample)
            except BadRow as error:
                row = error
                self._used["in broken samples"] += sample.size
            yield place, line, row

    def _count(self, sample: Sample) -> None:
        for suffix in sample.members:
            if suffix in self._columns:
                self._used["parts"] += 1
            elif suffix == "json":
                self._used["meta"] += 1
            else:
                self._unused[f".{printable(suffix)}"] += 1

    def row(self, place: int) -> Any:
        """Return the row at a place; raises BadRow."""
        return self._row(self._file.sample(place))

    def _row(self, sample: Sample) -> dict:
        if sample.wrong:
            raise BadRow(sample.wrong)
        parts = [{key: sample.members[s]} for s, key in self._columns.items() if s in sample.members]
        if not parts:
            have, known = _listed(sample.members), ", ".join(self._columns)
            raise BadRow(f"none of the sample's suffixes ({have}) is one of a part ({known}), see prepare.columns")
        meta: Any = {}
        if "json" in sample.members and "json" not in self._columns:
            meta = parse(sample.members["json"].data)
            if not isinstance(meta, dict):
                raise BadRow(f"{sample.members['json'].name!r} is not a mapping")
        key = sample.key.encode("utf-8", "backslashreplace").decode()  # names may be any bytes
        return {"parts": parts, "meta": {"key": key} | meta}


def _listed(names: Iterable[str]) -> str:
    """List the suffixes of a sample; many of them are of files whose names have a dot before their suffix's."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more: a sample's name ends at its first dot" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


__all__ = ["FIELDS", "Blob", "Rows", "open_rows", "parse"]
