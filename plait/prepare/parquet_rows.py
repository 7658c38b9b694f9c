"""Rows of Parquet files: manifests, and tables with media in columns as Hugging Face's datasets are written."""

import datetime
import decimal
import functools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from plait.codecs.chat_messages import FORMS
from plait.common.errors import DataError, PlaitError, ResourceError, nearest, printable, unknown
from plait.prepare.json_values import parse
from plait.prepare.raw import FIELDS, KEY_OF, BadRow
from plait.prepare.remote import reason_of

_MAX_GROUP_BYTES, _MAX_GROUP_ROWS = 1 << 31, 1 << 24  # of a row group


class Parquet:
    """Rows of a Parquet file; one row group is held at a time. A place is a row group's number and a row in it.

    With a column "parts" it is a manifest in Parquet. With one of messages it is one of conversations, where
    ``chat_fields`` says which columns are read for those. Else columns are parts: those that ``columns`` names, or
    those that are named like a manifest key or, where there is none, like a suffix of such files. Columns of plain
    values become the meta, others are left out. The account says which.
    """

    def __init__(
        self, file: BinaryIO, place: str, columns: dict[str, str], keys: Sequence[str], chat_fields: Sequence[str] = ()
    ):
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
        self._empty, self._columns = 0, dict[str, str]()
        self._is_manifest = "parts" in names and not columns
        self._is_chat = not (columns or self._is_manifest) and bool({*names} & {*FORMS} & {*chat_fields})
        if self._is_manifest:
            for name in names:
                if name not in FIELDS:
                    raise DataError(unknown(f"column of {place!r}", name, FIELDS))
            self._wanted, self._left_out = names, []
        else:
            chat_columns = {name: name for name in names if name in chat_fields}
            self._columns = chat_columns if self._is_chat else _columns_of(names, columns, keys, place)
            self._wanted = [*self._columns, *(n for n in names if n not in self._columns and _is_plain(schema, n))]
            self._left_out = [name for name in names if name not in self._wanted]
        self._group = functools.lru_cache(maxsize=1)(self._read_group)

    @property
    def account(self) -> dict[str, Any]:
        """What became of the columns."""
        if self._is_manifest:
            return {"form": "Parquet manifest"}
        columns = {
            "parts": self._columns,
            "meta": [name for name in self._wanted if name not in self._columns],
            "left out": self._left_out,
        }
        return {
            "form": "Parquet of chats" if self._is_chat else "Parquet",
            "columns": columns,
            "empty cells": self._empty,
        }

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (place, row number from 1, row or BadRow)."""
        line = self._empty = 0
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
        """Return the row at a place; raises BadRow."""
        table, at = self._group(place >> 32), place & 0xFFFFFFFF
        try:
            row = {name: table.column(name)[at].as_py() for name in table.column_names}
        except UnicodeDecodeError:
            raise BadRow("the row is not UTF-8") from None
        except Exception as error:
            raise BadRow(f"the row cannot be read ({reason_of(error)})") from None
        if self._is_chat:
            return self._chat_row(row)
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

    def _chat_row(self, row: dict) -> dict:
        """Return a row with its messages, as a list or as JSON text, and its media beside them."""
        meta = {name: _as_json(v) for name, v in row.items() if v is not None and name not in self._columns}
        fields = {name: row[name] for name in self._columns if row[name] is not None}
        for name in (*FORMS, "tools"):
            if isinstance(fields.get(name), str):
                fields[name] = parse(fields[name].encode(), f"column {name!r}")
        return fields | {"meta": meta}

    def _row_of_columns(self, row: dict) -> dict:
        parts = []
        for name, key in self._columns.items():
            values = row.pop(name)
            is_one = not isinstance(values, list) or any(isinstance(v, int | float | list) for v in values[:1])
            values = [values] if is_one else values  # numbers are one item: a list of parts holds texts or files
            parts += [{key: v} for v in values if v is not None]
            self._empty += sum(v is None for v in values)
        return {"parts": parts, "meta": {name: _as_json(v) for name, v in row.items() if v is not None}}


def _columns_of(names: Sequence[str], columns: dict[str, str], keys: Sequence[str], path: str) -> dict[str, str]:
    """Return the manifest key of every column that is a part."""
    for name in columns:
        if name not in names:
            raise DataError(unknown(f"prepare.columns (columns of {path!r})", name, names))
    part_keys = columns or {name: name for name in names if name in keys}
    if part_keys and not columns:  # beside a column "image", one "caption" is text where none is called so
        others = {name: KEY_OF[name.lower()] for name in names if KEY_OF.get(name.lower()) in keys and name not in keys}
        more = {name: key for name, key in others.items() if key not in part_keys.values()}
        part_keys = {name: (part_keys | more)[name] for name in names if name in part_keys | more}
    if not part_keys:
        listed = ", ".join(map(printable, names))
        hints = [nearest(name, [*FIELDS, *keys]) for name in names]
        if {*names} & {*FORMS}:
            hints = ["; conversations are read where the text codec has a chat template, see docs/chat.md"]
        raise DataError(
            f"prepare.source: {path!r} has no column 'parts', and none of its columns ({listed or 'none'}) "
            f"is named like a part ({', '.join(sorted(keys))}), name them in prepare.columns"
            + next(filter(None, hints), "")
        )
    return part_keys


def _is_plain(schema: Any, name: str) -> bool:
    import pyarrow

    kind, types = schema.field(name).type, pyarrow.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(f(kind) for f in (types.is_string, types.is_large_string, types.is_integer, types.is_floating,
                                 types.is_boolean, types.is_temporal, types.is_decimal))  # fmt: skip


def _as_json(value: Any) -> Any:
    """Return a plain value as JSON holds it: times and decimals as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal | datetime.timedelta) else value
