"""Where a manifest's rows are and which split each belongs to: 16 bytes a row on disk, nothing in memory.

``rows/<split>.rows`` in a prepared folder holds the place and the line of every row of a split, in the order of the
files; ``rows/files.json`` says how many each file has. They are made file by file, and joined once all are done.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import DataError
from plait.common.files import atomic_file, write_json
from plait.prepare.account import count_given
from plait.prepare.formats import Rows
from plait.prepare.raw import BadRow, Blob

SPLITS = ("train", "validation")
RECORD = np.dtype([("place", "<i8"), ("line", "<i8")])
FILES_NAME = "files.json"

_AT_ONCE = 4096


@dataclass(frozen=True)
class RowPlace:
    """Where a row is."""

    file: int
    """Number of its file."""
    place: int
    line: int


def scan(
    rows: Rows, folder: Path, number: int, share: float, advance: Callable[[int], None], keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the places of a file's rows, by split; return how many there are, and what else the file holds.

    A row belongs to "validation" if a hash of its parts falls within ``share``: the same rows in any order are split
    the same way, and equal rows never part. ``advance`` is called with numbers of rows; parts are counted by ``keys``.
    """
    counts: dict[str, Any] = dict.fromkeys(SPLITS, 0)
    part_counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        files = {}
        for split in SPLITS:
            temporary = stack.enter_context(atomic_file(folder / f"{number:05d}-{split}.rows"))
            files[split] = stack.enter_context(open(temporary, "wb"))
        waiting = 0
        for place, line, row in rows.rows():
            split = SPLITS[_draw(row) < share]
            files[split].write(np.array((place, line), RECORD).tobytes())
            counts[split] += 1
            count_given(part_counts, row, keys)
            waiting += 1
            if waiting == _AT_ONCE:
                advance(waiting)
                waiting = 0
        advance(waiting)
    counts |= {"given": part_counts, "account": rows.account}
    write_json(folder / f"{number:05d}.json", counts)  # last: it says that the others are whole
    return counts


def scanned(folder: Path, number: int) -> dict[str, Any] | None:
    """Return what `scan` found of a file, if it was done with it."""
    try:
        return json.loads((folder / f"{number:05d}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def join(parts: Path, folder: Path, num_files: int) -> None:
    """Join what `scan` wrote into ``parts`` for every file to the index in ``folder``."""
    counts = [scanned(parts, number) for number in range(num_files)]
    for split in SPLITS:
        with atomic_file(folder / f"{split}.rows") as temporary, open(temporary, "wb") as file:
            for number in range(num_files):
                with open(parts / f"{number:05d}-{split}.rows", "rb") as part:
                    while block := part.read(1 << 20):
                        file.write(block)
    write_json(folder / FILES_NAME, counts)


def scans_of(folder: Path) -> list[dict[str, Any]]:
    """Return what `scan` found of each file."""
    try:
        return json.loads((folder / FILES_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"data.path: {str(folder)!r} is no index of rows, prepare the data again") from None


class RowIndex:
    """The index of a prepared folder's manifest."""

    def __init__(self, folder: Path):
        self._folder = folder
        counts = scans_of(folder)
        try:
            self._first = {s: np.concatenate([[0], np.cumsum([c[s] for c in counts])]).astype(int) for s in SPLITS}
        except (KeyError, TypeError):
            raise DataError(f"data.path: {str(folder)!r} is no index of rows, prepare the data again") from None
        self.num_files = len(counts)

    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {split: int(first[-1]) for split, first in self._first.items()}

    def locate(self, split: str, start: int, stop: int) -> list[RowPlace]:
        """Return where rows [start, stop) of a split are."""
        first, path = self._first[split], self._folder / f"{split}.rows"
        stop = min(stop, int(first[-1]))
        with open(path, "rb") as file:
            records = np.frombuffer(
                os.pread(file.fileno(), (stop - start) * RECORD.itemsize, start * RECORD.itemsize) or bytearray(),
                RECORD,
            )
        files = np.searchsorted(first, np.arange(start, stop), side="right") - 1
        return [
            RowPlace(*values)
            for values in zip(files.tolist(), records["place"].tolist(), records["line"].tolist(), strict=True)
        ]


def _draw(row: Any) -> float:
    """Return a number in [0, 1) that follows from what a row says: its parts, not its meta."""
    parts = row.get("parts") if isinstance(row, dict) else str(row) if isinstance(row, BadRow) else row
    try:
        content = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=_digest).encode()
    except (ValueError, TypeError, RecursionError):
        content = b""  # no row anyway: it is broken when it is read
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64


def _digest(value: Any) -> str:
    if isinstance(value, Blob):
        value = value.data
    if not isinstance(value, bytes):
        return str(value)
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def sources_of(source: str | Sequence[str]) -> list[str]:
    """Return prepare.source as a list."""
    return [source] if isinstance(source, str) else list(source)
