"""A user's own documents: manifests whose rows name texts and media files, or hold them.

A row is ``{"parts": [{"text": "..."}, {"image": "a.png"}, {"audio": "b.wav"}, ...], "meta": {...}}``: any number of
parts in any order, ``meta`` optional. A part's key is that of the codec that reads it; paths are relative to the
manifest. A part such as ``{"image": "a.png", "loss": false}`` is no target: it is given. Rows are lines of JSON, rows
of Parquet or samples of a WebDataset tar (plait/prepare/formats.py), and conversations in the first two where the text
codec has a chat template (plait/codecs/chat.py).

A row that cannot be read is a `BrokenRow` with its line (Parquet: row, tar: sample) number, from 1, and the reason.
"""

import functools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plait.codecs import CODECS, Codec, codec_class
from plait.codecs.base import remarks
from plait.codecs.chat import chat_of
from plait.common.errors import DataError, PlaitError, ResourceError, nearest, printable, unknown
from plait.config.run import PrepareConfig
from plait.data.document_table import MAX_PARTS
from plait.prepare.foreign import about_row
from plait.prepare.formats import Rows, open_rows
from plait.prepare.raw import FIELDS, BadRow, Blob, BrokenRow, RawDocument, RawSource
from plait.prepare.remote import fetch, is_remote, reason_of
from plait.prepare.row_index import RowIndex

_OPEN_FILES = 8


class ManifestSource:
    """Documents of manifests, by split and index; a `plait.prepare.raw.RawSource`.

    ``files`` are what `plait.prepare.remote.expand` returned, ``index`` says where their rows are. Raises DataError for
    a file that is absent or of another form.
    """

    def __init__(self, files: Sequence[str], prepare: PrepareConfig, codecs: dict[str, Codec], index: RowIndex):
        if len(files) != index.num_files:
            raise DataError(
                f"prepare.source: {len(files)} files are there, but {index.num_files} were prepared; start from "
                "scratch with --restart"
            )
        self.files = list(files)
        self._readers = {codec.key: codec for codec in codecs.values() if not codec.reads}
        self._also = [(name, codec) for name, codec in codecs.items() if codec.reads]
        self._index = index
        self._allow_outside = prepare.allow_outside
        keys, chat = known_keys(codecs), chat_of(codecs)
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(
            lambda number: open_rows(self.files[number], prepare.columns, keys, chat)
        )

    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return self._index.splits()

    credit, trials = "", None

    @property
    def truths(self) -> None:
        """A user's documents may say anything in their meta: nothing is known to be true of them."""
        return None

    def broken(self, split: str, row: int, reason: str) -> BrokenRow:
        """Return a row of a split as a broken one."""
        (location,) = self._index.locate(split, row, row + 1)
        return self._broken(location.file, location.line, reason)

    def kept(self, split: str, broken: Collection[tuple[str, int]]) -> np.ndarray:
        """Return the numbers of a split's rows but for broken ones, given by the name of their file and their line."""
        places = self._index.locate(split, 0, self.splits()[split])
        return np.array([i for i, p in enumerate(places) if (self._name(p.file), p.line) not in broken], np.int64)

    def files_of(self, split: str, start: int, stop: int) -> list[int]:
        """Return for each of the rows [start, stop) of a split the number of its file."""
        return [location.file for location in self._index.locate(split, start, stop)]

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read rows [start, stop) of a split. Parts that no codec of this model reads are handed on unread."""
        for location in self._index.locate(split, start, stop):
            try:
                with remarks() as said:
                    row = self._open(location.file).row(location.place)
                    document = self._document(row, self.files[location.file], said)
            except BadRow as error:
                yield self._broken(location.file, location.line, str(error))
            else:
                yield document

    def _broken(self, file: int, line: int, reason: str) -> BrokenRow:
        return BrokenRow(line, printable(reason), self._name(file))

    def _name(self, file: int) -> str:
        """Return a file's name, where there are several."""
        return printable(self.files[file].rsplit("/", 1)[-1]) if len(self.files) > 1 else ""

    def _document(self, row: Any, manifest: str, said: list[str]) -> RawDocument:
        parts, meta = _check(row)
        named = [_part(k, part) for k, part in enumerate(parts, start=1)]
        media = [(key, self._read_part(k, key, value, manifest)) for k, (key, value, _) in enumerate(named, start=1)]
        with remarks():  # they were said
            also = {
                (p, name): self._read_by(codec, p + 1, key, value, manifest)
                for p, (key, value, _) in enumerate(named)
                for name, codec in self._also
                if codec.key == key
            }
        if not any(key in self._readers for key, _ in media):
            keys = ", ".join(dict.fromkeys(key for key, _ in media))
            raise BadRow(f"none of its parts ({keys}) is of a kind that this model reads ({', '.join(self._readers)})")
        without_loss = frozenset(p for p, (_, _, loss) in enumerate(named) if not loss)
        return RawDocument(media, meta, without_loss, said, also)

    def _read_part(self, k: int, key: str, value: Any, manifest: str) -> Any:
        if key not in self._readers:
            if key in registered_keys():
                return value  # of a modality that this model leaves out
            raise BadRow(unknown(f"part {k}", key, self._readers))
        return self._read_by(self._readers[key], k, key, value, manifest)

    def _read_by(self, codec: Codec, k: int, key: str, value: Any, manifest: str) -> Any:
        try:
            return self._read_value(codec, value, manifest)
        except ResourceError:
            raise  # a missing package is no fault of the row
        except Exception as error:  # decoders fail in many ways, and what one row holds must not end all
            reason = reason_of(error).removeprefix(f"{key}: ")
            if not isinstance(error, PlaitError | OSError | ValueError):
                reason = f"it cannot be read ({type(error).__name__}: {reason})"
            raise BadRow(f"part {k} ({key}): {reason}") from None

    def _read_value(self, codec: Codec, value: Any, manifest: str) -> Any:
        """Read one item: bytes that the row holds, a file that it names, or the value itself."""
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # as in Hugging Face's datasets
            value = Blob(str(value.get("path") or ""), value["bytes"])
        elif isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            value = value["path"]
        if isinstance(value, bytes):
            value = Blob("", value)
        if isinstance(value, Blob):
            return codec.read_bytes(value.data, value.name)
        base = manifest.rsplit("/", 1)[0]
        if not codec.names_files or not isinstance(value, str) or not value:
            return codec.read(value, Path(base))
        self._check_place(value, base)
        if is_remote(value) or is_remote(base):
            return codec.read_bytes(fetch(value if is_remote(value) else f"{base}/{value}"), value)
        return codec.read(value, Path(base))

    def _check_place(self, value: str, base: str) -> None:
        """Refuse a name that leaves the manifest's folder, and one that is no file."""
        if is_remote(base) or is_remote(value):
            leaves = is_remote(value) or value.startswith("/") or ".." in value.split("/")
        else:
            try:
                path = (Path(base) / value).resolve()
            except RuntimeError:
                raise BadRow(f"{value!r} is a link that leads to itself") from None
            leaves = not path.is_relative_to(Path(base).resolve())
            if path.exists() and not path.is_file():
                raise BadRow(f"{value!r} is not a file")
        if leaves and not self._allow_outside:
            raise DataError(f"{value!r} lies outside of the manifest's folder, which needs prepare.allow_outside: true")


@functools.cache
def registered_keys() -> frozenset[str]:
    """Return the manifest keys of all codecs whose packages are installed."""
    keys = set()
    for name in CODECS:
        try:
            keys.add(codec_class(name).kind)
        except (ImportError, ResourceError):
            continue
    return frozenset(keys)


def known_keys(codecs: dict[str, Codec]) -> list[str]:
    """Return the manifest keys that a part may have, those of this model first."""
    keys = [codec.key for codec in codecs.values() if not codec.reads]
    return [*keys, *sorted(registered_keys() - set(keys))]


class Located(RawSource, Protocol):
    """A source of a user's own rows, which say where they lie: some may be broken."""

    def kept(self, split: str, broken: Collection[tuple[str, int]]) -> np.ndarray:
        """Return the numbers of a split's rows but for broken ones, given by the name of their file and their line."""


class Documents:
    """A user's rows that became documents, by the documents' numbers; a `plait.prepare.raw.RawSource`.

    ``broken`` are the name of the file, where there are several, and the line of each row that did not.
    """

    credit, truths, trials = "", None, None

    def __init__(self, rows: Located, broken: Collection[tuple[str, int]]):
        self._rows, self._kept = rows, {split: rows.kept(split, broken) for split in rows.splits()}

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return {split: len(numbers) for split, numbers in self._kept.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read documents [start, stop) of a split."""
        for number in self._kept[split][start:stop]:
            yield from self._rows.read(split, int(number), int(number) + 1)


def _check(row: Any) -> tuple[list, dict]:
    if not isinstance(row, dict):
        raise BadRow(f'the row is {_short(row)}, it must be a mapping {{"parts": [...]}}')
    if "parts" not in row and (known := about_row(row)):
        raise BadRow(known)
    for name in row:
        if name not in FIELDS:
            raise BadRow(f"unknown field {name!r}, allowed: parts, meta{nearest(name, FIELDS)}")
    parts, meta = row.get("parts"), row.get("meta")
    if not isinstance(parts, list):
        what = "has no 'parts'" if parts is None else f"has {_short(parts)} as 'parts'"
        raise BadRow(f"the row {what}, it needs a list of parts")
    if not parts:
        raise BadRow("the row has no parts, it needs at least one")
    if len(parts) > MAX_PARTS:
        raise BadRow(f"the row has {len(parts):,} parts, at most {MAX_PARTS:,} are allowed")
    if meta is not None and not isinstance(meta, dict):
        raise BadRow(f"'meta' is {_short(meta)}, it must be a mapping")
    try:
        json.dumps(meta, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"'meta' cannot be written as JSON ({reason_of(error)})") from None
    return parts, meta or {}


def _part(k: int, part: Any) -> tuple[str, Any, bool]:
    """Return the key and value of a row's k-th part, and whether it carries loss."""
    fields = dict(part) if isinstance(part, dict) else {}
    loss = fields.pop("loss", None)
    if len(fields) != 1:
        raise BadRow(f'part {k} is {_short(part)}, it must be a mapping with one key, such as {{"text": ...}}')
    if loss is not None and not isinstance(loss, bool):
        raise BadRow(f"part {k} has the loss {_short(loss)}, it must be true or false")
    ((key, value),) = fields.items()
    return key, value, loss is not False


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["ManifestSource", "Rows", "known_keys", "registered_keys"]
