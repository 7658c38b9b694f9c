"""Raw documents, before encoding: what the scenes and a user's manifest both yield to `plait prepare`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from plait.codecs.base import Media

FIELDS = ("parts", "meta")
"""What a row has."""

_NAMES = {
    "text": ("txt", "text", "caption"),
    "image": ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "ico"),
    "audio": ("wav", "flac", "ogg", "oga", "mp3", "opus", "aif", "aiff"),
}
KEY_OF = {name: key for key, names in _NAMES.items() for name in names}
"""The manifest key of a file by its suffix, and of a column that is called so; other names may be keys themselves."""


@dataclass
class RawDocument:
    """Media in order: pairs of a manifest key (text, image, audio) and the raw item."""

    parts: list[tuple[str, Media]]
    meta: dict[str, Any] = field(default_factory=dict)
    """What is known of it, in plain JSON types."""
    without_loss: frozenset[int] = frozenset()
    """Places of the parts that are no targets (``loss: false`` in a manifest)."""


@dataclass
class BrokenRow:
    """A row that could not be read: where, and why."""

    line: int
    reason: str
    file: str = ""
    """Name of its file, where there are several."""


@dataclass
class Blob:
    """A media file's bytes, as they lie in a tar or in a Parquet column."""

    name: str
    data: bytes


class BadRow(ValueError):
    """The reason why a row cannot be read."""


class RawSource(Protocol):
    """Documents by split and index; reading is deterministic, whatever was read before."""

    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split; "train" is one of them."""

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read rows [start, stop) of a split."""


def raw_items(source: RawSource, split: str, key: str) -> Iterator[Media]:
    """Return a split's raw items of one key in order, whichever documents have them."""
    for row in source.read(split, 0, source.splits()[split]):
        if isinstance(row, RawDocument):
            yield from (item for k, item in row.parts if k == key)
