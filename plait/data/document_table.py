"""The table of a split: what planning has to know of every document, without reading any of its contents.

``tables/<split>.safetensors`` holds, for D documents of P parts in all::

    documents [D + 1, 16] uint8   first part, checksum of the document's part records, checksum of its contents
    parts     [P, 7]      int32   modality (place in the index), tokens without delimiters, extent in space (three
                                  numbers, padded with 0), where the part's values start in its shard's array, and
                                  whether it carries loss (1 or 0)

A document is looked up by two reads at computed places. So opening takes as long for ten documents as for ten million,
and memory holds what was asked for and nothing else.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plait.data.arrays import ArrayFile, write_arrays

MAX_GRID_AXES = 3
MAX_PARTS = 1 << 16
"""Parts that one document may have."""

DOCUMENT = np.dtype([("part", "<u8"), ("parts_crc", "<u4"), ("contents_crc", "<u4")])
_COLUMNS = 4 + MAX_GRID_AXES


@dataclass
class Table:
    """The records of D documents in order, as a shard's writer makes them."""

    documents: np.ndarray
    """[D] of DOCUMENT; the first one's first part is 0."""
    parts: np.ndarray
    """[P, 7] int32."""


@dataclass
class PartTable:
    """The parts of some documents, one document after the other: n documents, p parts."""

    starts: np.ndarray
    """[n + 1]: the k-th document has parts starts[k] to starts[k + 1]."""
    modality: np.ndarray
    """[p] place of the part's modality in the index."""
    length: np.ndarray
    """[p] tokens, without delimiters."""
    grid: np.ndarray
    """[p, 3] extent in space, padded with zeros."""
    place: np.ndarray
    """[p] row at which the part's values start in its shard's array."""
    loss: np.ndarray
    """[p] 1 where the part carries loss, 0 where its document says ``loss: false``."""
    contents_crc: np.ndarray
    """[n] checksum of each document's contents."""
    features: np.ndarray
    """[p] tokens of the features that were read of the part, where the table is `folded`; 0 where there are none."""

    def folded(self, is_features: np.ndarray) -> "PartTable":
        """Return the table with features (``is_features`` [modalities]) as a number of the parts before them, of which
        they were read."""
        behind = is_features[self.modality]
        if not behind.any():
            return self
        keep, features = ~behind, np.zeros_like(self.length)
        features[np.flatnonzero(behind) - 1] = self.length[behind]
        starts = np.concatenate([[0], np.cumsum(keep)])[self.starts]
        modality, length, place, loss = (x[keep] for x in (self.modality, self.length, self.place, self.loss))
        return PartTable(starts, modality, length, self.grid[keep], place, loss, self.contents_crc, features[keep])

    @property
    def counts(self) -> np.ndarray:
        """Parts of each document, [n]."""
        return np.diff(self.starts)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum a number of every part [p] over each document [n]."""
        total = np.concatenate([[0], np.cumsum(values)])
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def rank(self, mine: np.ndarray) -> np.ndarray:
        """Return for each part [p] how many of the parts ``mine`` [p] come before it in its document."""
        before = np.concatenate([[0], np.cumsum(mine)])
        return before[:-1] - np.repeat(before[self.starts[:-1]], self.counts)


def make_table(parts: np.ndarray, counts: list[int], contents_crc: list[int]) -> Table:
    """Return the records of documents that have ``counts`` of the part records ``parts`` [P, 7]."""
    parts = np.ascontiguousarray(parts, "<i4").reshape(-1, _COLUMNS)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    documents = np.zeros(len(counts), DOCUMENT)
    documents["part"] = starts[:-1]
    documents["contents_crc"] = contents_crc
    documents["parts_crc"] = [zlib.crc32(parts[a:b].tobytes()) for a, b in itertools.pairwise(starts)]
    return Table(documents, parts)


def write_table(path: Path, num_documents: int, num_parts: int, tables: Callable[[], Iterable[Table]]) -> int:
    """Join shards' tables to a split's; return the file's size. ``tables`` is called twice, one is held at a time."""

    def documents() -> Iterable[np.ndarray]:
        first = 0
        for table in tables():
            records = table.documents.copy()
            records["part"] += first
            first += len(table.parts)
            yield _bytes(records)
        end = np.zeros(1, DOCUMENT)
        end["part"] = first
        yield _bytes(end)

    return write_arrays(path, {
        "documents": (np.uint8, (num_documents + 1, DOCUMENT.itemsize), documents()),
        "parts": (np.int32, (num_parts, _COLUMNS), (table.parts for table in tables())),
    })  # fmt: skip


def save_table(path: Path, table: Table) -> None:
    """Keep a shard's table until all are joined."""
    write_table(path, len(table.documents), len(table.parts), lambda: [table])


def load_table(path: Path) -> Table:
    """Read what `save_table` wrote."""
    file = ArrayFile(path)
    records = file.read("documents", 0, file.shape("documents")[0] - 1).reshape(-1).view(DOCUMENT)
    return Table(records, file.read("parts", 0, file.shape("parts")[0]))


def _bytes(records: np.ndarray) -> np.ndarray:
    return records.view(np.uint8).reshape(-1, DOCUMENT.itemsize)


class SplitTable:
    """A split's table on disk. Every record that is read is checked; raises DataError where one is damaged."""

    def __init__(self, path: Path, size: int, num_documents: int, num_modalities: int):
        """``size`` in bytes and ``num_documents`` are what the index says."""
        self._file = ArrayFile(path, size)
        self._num_modalities = num_modalities
        documents, parts = self._file.shape("documents"), self._file.shape("parts")
        if documents != (num_documents + 1, DOCUMENT.itemsize) or parts[1:] != (_COLUMNS,):
            raise self._file.broken("does not hold what the index says")
        self._num_documents, self._num_parts = num_documents, parts[0]
        self._documents_at, self._parts_at = self._file.start_of("documents"), self._file.start_of("parts")

    def __len__(self) -> int:
        return self._num_documents

    def look_up(self, documents: np.ndarray) -> PartTable:
        """Return the parts of documents, given by number in any order, [n]."""
        read, size, row = self._file.raw, DOCUMENT.itemsize, 4 * _COLUMNS
        data = b"".join([read(self._documents_at + size * i, 2 * size) for i in documents.tolist()])
        records = np.frombuffer(data or bytearray(), DOCUMENT).reshape(-1, 2)
        first, last = records["part"][:, 0].astype(np.int64), records["part"][:, 1].astype(np.int64)
        counts = last - first
        if (counts < 0).any() or (counts > MAX_PARTS).any() or (last > self._num_parts).any() or (first < 0).any():
            raise self._file.broken("is corrupt (impossible record of a document)")
        blocks = [read(self._parts_at + row * a, row * n) for a, n in zip(first.tolist(), counts.tolist(), strict=True)]
        if records["parts_crc"][:, 0].tolist() != [zlib.crc32(block) for block in blocks]:
            raise self._file.broken("is corrupt (checksum mismatch)")
        rows = np.frombuffer(b"".join(blocks) or bytearray(), "<i4").reshape(-1, _COLUMNS)
        sound = (rows >= 0).all() and (rows[:, 1] >= 1).all() and (rows[:, 6] <= 1).all()
        if not sound or (rows[:, 0] >= self._num_modalities).any():
            raise self._file.broken("is corrupt (impossible record of a part)")
        starts = np.concatenate([[0], np.cumsum(counts)])
        modality, length, place, loss = (rows[:, k] for k in (0, 1, 5, 6))
        contents_crc, features = records["contents_crc"][:, 0], np.zeros(len(rows), np.int32)
        return PartTable(starts, modality, length, rows[:, 2:5], place, loss, contents_crc, features)
